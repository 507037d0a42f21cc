package gatewayrpc

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

func spooledIDs(t *testing.T, s *Spool) []string {
	t.Helper()
	var ids []string
	for _, line := range s.Peek(1 << 20) {
		var d sensors.Detection
		require.NoError(t, json.Unmarshal(line, &d))
		ids = append(ids, d.ID)
	}
	return ids
}

func TestSpoolResendsOnlyUnacknowledgedAfterRestart(t *testing.T) {
	dir := t.TempDir()
	reopen := func() *Spool { // without Close, as after a kill
		s, err := OpenSpool(dir, SpoolLimits{MaxDetections: 100_000})
		require.NoError(t, err)
		return s
	}
	s := reopen()
	var want []string
	for n := range 9000 {
		id := fmt.Sprintf("d-%d", n)
		require.NoError(t, s.Add(sensors.Detection{ID: id, Title: "a title that makes the line longer"}))
		want = append(want, id)
		if n%3 == 0 && n%500 != 0 {
			require.NoError(t, s.Acknowledge(2))
			want = want[min(2, len(want)):]
		}
		if n%1000 == 999 {
			s = reopen()
			require.Equal(t, want, spooledIDs(t, s), "after %d", n)
		}
	}
	require.NoError(t, s.Acknowledge(len(want)))
	s = reopen()
	require.Empty(t, spooledIDs(t, s))
	require.NoError(t, s.Add(sensors.Detection{ID: "after"}))
	require.Equal(t, []string{"after"}, spooledIDs(t, reopen()))
	info, err := os.Stat(filepath.Join(dir, "detections.spool"))
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(4096))
}

func TestSpoolReadsOldAndTruncatedFiles(t *testing.T) {
	for name, text := range map[string]string{
		"format of an older sensor": `{"id":"a"}` + "\n" + `{"id":"b"}` + "\n",
		"truncated last line":       string(headerLine(0)) + `{"id":"a"}` + "\n" + `{"id":"b"}` + "\n" + `{"id":"c`,
		"header beyond the end":     string(headerLine(9999)) + `{"id":"a"}` + "\n" + `{"id":"b"}` + "\n",
		"negative header":           string(headerLine(-5)) + `{"id":"a"}` + "\n" + `{"id":"b"}` + "\n",
		"one acknowledged":          string(headerLine(11)) + `{"id":"z"}` + "\n" + `{"id":"a"}` + "\n" + `{"id":"b"}` + "\n",
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "detections.spool"), []byte(text), 0o600))
		s, err := OpenSpool(dir, SpoolLimits{})
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, spooledIDs(t, s), name)
	}
}

func TestSpoolDropsDetectionsThatAreTooLarge(t *testing.T) {
	dir := t.TempDir()
	// An older sensor wrote one line that fits into no message, and one that exceeds the line reader's buffer.
	text := string(headerLine(0)) + `{"id":"a"}` + "\n" + `{"id":"b","title":"` + strings.Repeat("x", 300<<10) + `"}` +
		"\n" + `{"id":"c","title":"` + strings.Repeat("x", 5<<20) + `"}` + "\n" + `{"id":"d"}` + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "detections.spool"), []byte(text), 0o600))
	s, err := OpenSpool(dir, SpoolLimits{})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "d"}, spooledIDs(t, s))
	require.Equal(t, uint64(2), s.Dropped())

	annotated := sensors.Detection{ID: "annotated"}
	annotated.Event.Container.Pod = sensors.Pod{
		Name:        "shop",
		Annotations: map[string]string{"a": strings.Repeat("<", 250<<10)},
	}
	require.NoError(t, s.Add(annotated))
	require.Equal(t, []string{"a", "d", "annotated"}, spooledIDs(t, s), "it is sent without its large fields")
	require.NotEmpty(t, annotated.Event.Container.Pod.Annotations, "the caller's detection is not changed")
	require.ErrorContains(t, s.Add(sensors.Detection{ID: "large", Reasons: []string{strings.Repeat("<", 250<<10)}}),
		"at most 262144")
	require.Equal(t, uint64(3), s.Dropped())
	for _, line := range s.Peek(10) {
		require.LessOrEqual(t, len(line), MaxDetectionBytes)
	}
}

// After a rewrite that failed, the open file may have lost its name: nothing may count as stored until a rewrite works.
func TestNothingCountsAsStoredAfterFailedRewrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s, err := OpenSpool(dir, SpoolLimits{})
	require.NoError(t, err)
	s.closeOnce.Do(func() { close(s.closing) })
	<-s.syncerEnded
	for _, id := range []string{"a", "b"} {
		require.NoError(t, s.Add(sensors.Detection{ID: id}))
	}
	require.NoError(t, os.RemoveAll(dir))
	s.mu.Lock()
	require.Error(t, s.compact())
	s.mu.Unlock()
	require.ErrorContains(t, s.Add(sensors.Detection{ID: "c"}), "kept in memory only")
	require.Error(t, s.Sync())

	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, s.Sync())
	require.NoError(t, s.Add(sensors.Detection{ID: "d"}))
	require.NoError(t, s.Sync())
	again, err := OpenSpool(dir, SpoolLimits{})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c", "d"}, spooledIDs(t, again))
}
