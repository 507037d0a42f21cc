package acceptance

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/harness"
	lacking "stanch/testenv/prereq"
)

// drillOutputKeys is what `stanch drill -o json` promises, key by key.
var drillOutputKeys = map[string][]string{
	"":           {"checks", "drill", "evidence", "incident", "latency_ms", "leases", "ok"},
	"checks":     {"detail", "name", "ok"},
	"latency_ms": {"event_to_contained", "event_to_detection", "event_to_incident"},
	"leases":     {"action", "facet", "outcome", "target", "undone", "verified"},
}

func sortedKeys(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(raw, &fields))
	return slices.Sorted(maps.Keys(fields))
}

func TestEveryDrillSucceeds(t *testing.T) {
	harness.SkipUnlessSupported(t)
	if pid := otherStanchPID(); pid != "" {
		lacking.SkipOrFail(t, "a host of its own: process %s is another Stanch, which contains the drill too and for longer",
			pid)
	}
	s := harness.Start(t, stanchBinary, harness.Options{})
	for _, name := range []string{"cryptominer", "shell", "reverse-shell", "credentials"} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := s.Run(t, "drill", name, "-o", "json")
			require.Zero(t, code, "%s\n%s", stdout, stderr)
			require.Empty(t, stderr, "no log lines beside the JSON")
			require.Equal(t, drillOutputKeys[""], sortedKeys(t, json.RawMessage(stdout)))
			var result struct {
				Drill    string            `json:"drill"`
				OK       bool              `json:"ok"`
				Incident string            `json:"incident"`
				Checks   []json.RawMessage `json:"checks"`
				Latency  json.RawMessage   `json:"latency_ms"`
				Evidence int               `json:"evidence"`
				Leases   []json.RawMessage `json:"leases"`
			}
			decoder := json.NewDecoder(bytes.NewBufferString(stdout))
			decoder.DisallowUnknownFields()
			require.NoError(t, decoder.Decode(&result))
			require.False(t, decoder.More(), "one object and nothing else")
			require.True(t, result.OK)
			require.Equal(t, name, result.Drill)
			require.Regexp(t, `^INC-[0-9A-Z]{26}$`, result.Incident)
			require.Positive(t, result.Evidence)
			require.NotEmpty(t, result.Checks)
			for _, raw := range result.Checks {
				require.Equal(t, drillOutputKeys["checks"], sortedKeys(t, raw))
				var check struct {
					Name string
					OK   bool
				}
				require.NoError(t, json.Unmarshal(raw, &check))
				require.True(t, check.OK, "%s", raw)
			}
			require.Equal(t, drillOutputKeys["latency_ms"], sortedKeys(t, result.Latency))
			require.NotEmpty(t, result.Leases)
			for _, raw := range result.Leases {
				require.Equal(t, drillOutputKeys["leases"], sortedKeys(t, raw))
				var lease struct{ Verified, Undone bool }
				require.NoError(t, json.Unmarshal(raw, &lease))
				require.True(t, lease.Verified && lease.Undone, "%s", raw)
			}
			t.Logf("%s", result.Latency)
			require.Empty(t, s.ActiveLocks(t), "nothing is left in the kernel")
		})
	}
}

// otherStanchPID is the process id of another `stanch up` on this machine, "" if there is none.
func otherStanchPID() string {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		words := bytes.Split(raw, []byte{0})
		if len(words) > 1 && filepath.Base(string(words[0])) == "stanch" && string(words[1]) == "up" {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}
