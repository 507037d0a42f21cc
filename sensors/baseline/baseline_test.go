package baseline_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/baseline"
)

const testImageDigest = "sha256:0123"

type fakeClock struct{ current time.Time }

func (c *fakeClock) now() time.Time { return c.current }

func learningOptions(c *fakeClock) baseline.Options { return baseline.Options{Now: c.now} }

func execEvent(container, exe string) *sensors.Event {
	return &sensors.Event{
		Kind: sensors.KindExec, Container: sensors.Container{ID: container, Image: "shop:1", ImageDigest: testImageDigest},
		Process: sensors.Process{Exe: exe},
	}
}

func connectEvent(address string, port uint16) *sensors.Event {
	return &sensors.Event{
		Kind: sensors.KindConnect, Container: sensors.Container{ID: "c", ImageDigest: testImageDigest},
		Network: sensors.Network{Address: address, Port: port},
	}
}

func TestNothingIsNewDuringTheLearningPeriod(t *testing.T) {
	c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learningOptions(c))
	require.Equal(t, sensors.Baseline{}, b.Compare(execEvent("c1", "/usr/sbin/nginx")))
	c.current = c.current.Add(25 * time.Hour)
	require.Equal(t, sensors.Baseline{LearningComplete: true}, b.Compare(execEvent("c2", "/usr/sbin/nginx")),
		"it was learned")
	got := b.Compare(execEvent("c2", "/bin/sh"))
	require.Equal(t, sensors.Baseline{
		LearningComplete: true, NewExe: true,
		Reason: "Never executed in the 2 containers of this image that this node watched for a day: /bin/sh.",
	}, got)
	require.True(t, b.Compare(execEvent("c2", "/bin/sh")).NewExe, "an attack is not learned")
	c.current = c.current.Add(25 * time.Hour)
	require.False(t, b.Compare(execEvent("c2", "/bin/sh")).NewExe, "after a day it is known")
}

func TestProgramsOutsideTheImageAreNeverLearned(t *testing.T) {
	c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learningOptions(c))
	dropped := execEvent("c1", "/tmp/x")
	dropped.Process.ExeInUpperLayer = true
	b.Compare(dropped)
	entered := execEvent("c1", "/bin/sh")
	entered.Process.ExecedInto = true
	b.Compare(entered)
	c.current = c.current.Add(72 * time.Hour)
	require.True(t, b.Compare(dropped).NewExe)
	require.True(t, b.Compare(execEvent("c1", "/bin/sh")).NewExe, "programs started from outside are not learned")
}

func TestDestinationsAreLearnedByNetworkAndPort(t *testing.T) {
	c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learningOptions(c))
	b.Compare(connectEvent("10.1.2.3", 5432))
	b.Compare(connectEvent("198.51.100.7", 443))
	c.current = c.current.Add(48 * time.Hour)
	require.False(t, b.Compare(connectEvent("10.9.9.9", 5432)).NewDestination,
		"a pod's address changes with every rollout")
	require.False(t, b.Compare(connectEvent("198.51.100.99", 443)).NewDestination, "the same network")
	require.True(t, b.Compare(connectEvent("198.51.100.7", 4444)).NewDestination)
	require.True(t, b.Compare(connectEvent("2001:db8::1", 443)).NewDestination)
	require.Equal(t, sensors.Baseline{LearningComplete: true}, b.Compare(connectEvent("127.0.0.1", 1)))
	require.Equal(t, "169.254.169.254:80", baseline.DestinationKey(sensors.Network{Address: "169.254.169.254", Port: 80}))
	require.Empty(t, baseline.DestinationKey(sensors.Network{Address: "no address"}))
}

// A scan connects to many destinations for a minute. It must not make later destinations usual.
func TestScanDoesNotTeachDestinations(t *testing.T) {
	for name, at := range map[string]time.Duration{
		"while the image is learnt": 20 * time.Hour,
		"after it":                  30 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
			b := baseline.New(learningOptions(c))
			for range 5 {
				b.Compare(connectEvent("10.0.0.1", 5432))
			}
			c.current = c.current.Add(at)
			for port := range uint16(20000) {
				b.Compare(connectEvent("10.0.0.1", 10000+port))
			}
			c.current = c.current.Add(30 * 24 * time.Hour)
			require.False(t, b.Compare(connectEvent("10.0.0.2", 5432)).NewDestination, "known destinations stay known")
			require.True(t, b.Compare(connectEvent("203.0.113.9", 443)).NewDestination)
			require.LessOrEqual(t, len(b.Images()[0].Destinations), 500)
		})
	}
}

// If no observation can be evicted, a new one stays novel.
func TestObservationBeyondTheLimitStaysNew(t *testing.T) {
	c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learningOptions(c))
	for port := range uint16(500) {
		b.Compare(connectEvent("10.0.0.1", 10000+port))
	}
	c.current = c.current.Add(48 * time.Hour)
	for range 3 {
		require.True(t, b.Compare(connectEvent("203.0.113.9", 443)).NewDestination)
	}
	require.False(t, b.Compare(connectEvent("10.0.0.1", 10007)).NewDestination)
}

func TestNothingIsNewIfTooManyExecutablesWereSeen(t *testing.T) {
	c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(baseline.Options{Now: c.now, MaxImages: 2})
	for i := range 8000 {
		b.Compare(execEvent("c"+strconv.Itoa(i), "/bin/"+strconv.Itoa(i)))
		c.current = c.current.Add(10 * time.Second)
	}
	c.current = c.current.Add(48 * time.Hour)
	require.False(t, b.Compare(execEvent("c", "/bin/never")).NewExe)
	require.LessOrEqual(t, len(b.Images()[0].Executables), 2000)
	for _, other := range []string{"sha256:a", "sha256:b"} {
		e := execEvent("c", "/bin/a")
		e.Container.ImageDigest = other
		b.Compare(e)
	}
	require.Len(t, b.Images(), 2)
	require.NotEqual(t, testImageDigest, b.Images()[1].Digest, "the least recently used image is evicted")
}

func TestBaselinesSurviveRestartsAndImports(t *testing.T) {
	c := &fakeClock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	file := filepath.Join(t.TempDir(), "deep", "baselines.json")
	b, err := baseline.Open(file, learningOptions(c))
	require.NoError(t, err)
	b.Compare(execEvent("c1", "/usr/sbin/nginx"))
	require.NoError(t, b.Save(file))
	c.current = c.current.Add(48 * time.Hour)

	again, err := baseline.Open(file, learningOptions(c))
	require.NoError(t, err)
	require.False(t, again.Compare(execEvent("c9", "/usr/sbin/nginx")).NewExe)
	require.True(t, again.Compare(execEvent("c9", "/bin/sh")).NewExe)

	other := baseline.New(learningOptions(c))
	other.Compare(execEvent("c5", "/usr/bin/curl"))
	var exported bytes.Buffer
	require.NoError(t, b.Write(&exported))
	n, err := other.Read(&exported)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, 2, other.Images()[0].ContainerCount)
	require.True(t, other.Compare(execEvent("c5", "/bin/sh")).LearningComplete, "observations of another node count")

	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	fresh, err := baseline.Open(file, learningOptions(c))
	require.ErrorContains(t, err, file+".damaged")
	require.Empty(t, fresh.Images())
	require.FileExists(t, file+".damaged")

	c.current = c.current.Add(100 * 24 * time.Hour)
	require.NoError(t, again.Save(file))
	require.Empty(t, again.Images(), "an unused image is removed")
}

func TestNewBehaviorRaisesConfidence(t *testing.T) {
	d := sensors.Detection{
		Confidence: 0.6, Reasons: []string{"A shell."},
		Event: sensors.Event{Baseline: sensors.Baseline{LearningComplete: true, NewExe: true, Reason: "Never."}},
	}
	baseline.AdjustConfidence(&d)
	require.InDelta(t, 0.72, d.Confidence, 1e-9)
	require.Equal(t, []string{"A shell.", "Never."}, d.Reasons)
	usual := sensors.Detection{Confidence: 0.6, Event: sensors.Event{Baseline: sensors.Baseline{LearningComplete: true}}}
	baseline.AdjustConfidence(&usual)
	require.InDelta(t, 0.6, usual.Confidence, 1e-9)
}

func FuzzRead(f *testing.F) {
	f.Add(
		`{"version":1,"images":[{"digest":"sha256:a","first":"2026-11-01T00:00:00Z","last":"2026-11-02T00:00:00Z","containers":1,"executables":{"/a":{"first":"2026-11-01T00:00:00Z","last":"2026-11-01T00:00:00Z","count":1}}}]}`,
	)
	f.Fuzz(func(t *testing.T, text string) {
		b := baseline.New(baseline.Options{})
		n, err := b.Read(strings.NewReader(text))
		if err != nil && (n != 0 || len(b.Images()) != 0) {
			t.Fatal("an invalid file changed the baselines")
		}
		b.Compare(execEvent("c", "/bin/sh"))
		if err := b.Write(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
	})
}
