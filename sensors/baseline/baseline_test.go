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

const digest = "sha256:0123"

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func learning(c *clock) baseline.Options { return baseline.Options{Now: c.now} }

func exec(container, exe string) *sensors.Event {
	return &sensors.Event{
		Kind: sensors.KindExec, Container: sensors.Container{ID: container, Image: "shop:1", ImageDigest: digest}, Process: sensors.Process{Exe: exe},
	}
}

func connect(address string, port uint16) *sensors.Event {
	return &sensors.Event{
		Kind: sensors.KindConnect, Container: sensors.Container{ID: "c", ImageDigest: digest}, Network: sensors.Network{Address: address, Port: port},
	}
}

func TestNothingIsNewBeforeItWasLearnt(t *testing.T) {
	c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learning(c))
	require.Equal(t, sensors.Baseline{}, b.Judge(exec("c1", "/usr/sbin/nginx")))
	c.at = c.at.Add(25 * time.Hour)
	require.Equal(t, sensors.Baseline{Learnt: true}, b.Judge(exec("c2", "/usr/sbin/nginx")), "it was learnt")
	got := b.Judge(exec("c2", "/bin/sh"))
	require.Equal(t, sensors.Baseline{Learnt: true, NewExe: true, Reason: "Never executed in the 2 containers of this image that this node watched for a day: /bin/sh."}, got)
	require.True(t, b.Judge(exec("c2", "/bin/sh")).NewExe, "an attack does not teach itself")
	c.at = c.at.Add(25 * time.Hour)
	require.False(t, b.Judge(exec("c2", "/bin/sh")).NewExe, "after a day it is usual")
}

func TestWhatWasNotInTheImageIsNeverUsual(t *testing.T) {
	c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learning(c))
	dropped := exec("c1", "/tmp/x")
	dropped.Process.UpperLayer = true
	b.Judge(dropped)
	entered := exec("c1", "/bin/sh")
	entered.Process.Entered = true
	b.Judge(entered)
	c.at = c.at.Add(72 * time.Hour)
	require.True(t, b.Judge(dropped).NewExe)
	require.True(t, b.Judge(exec("c1", "/bin/sh")).NewExe, "what somebody ran in it from outside is not what it runs")
}

func TestDestinationsAreNetworksAndPorts(t *testing.T) {
	c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learning(c))
	b.Judge(connect("10.1.2.3", 5432))
	b.Judge(connect("198.51.100.7", 443))
	c.at = c.at.Add(48 * time.Hour)
	require.False(t, b.Judge(connect("10.9.9.9", 5432)).NewDestination, "a pod's address changes with every rollout")
	require.False(t, b.Judge(connect("198.51.100.99", 443)).NewDestination, "its neighbour")
	require.True(t, b.Judge(connect("198.51.100.7", 4444)).NewDestination)
	require.True(t, b.Judge(connect("2001:db8::1", 443)).NewDestination)
	require.Equal(t, sensors.Baseline{Learnt: true}, b.Judge(connect("127.0.0.1", 1)))
	require.Equal(t, "169.254.169.254:80", baseline.Destination(sensors.Network{Address: "169.254.169.254", Port: 80}))
	require.Empty(t, baseline.Destination(sensors.Network{Address: "no address"}))
}

// A scan connects to everything for a minute: before, nothing was new to the image from then on.
func TestAScanDoesNotMakeEverythingUsual(t *testing.T) {
	for name, at := range map[string]time.Duration{"while the image is learnt": 20 * time.Hour, "after it": 30 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
			b := baseline.New(learning(c))
			for range 5 {
				b.Judge(connect("10.0.0.1", 5432))
			}
			c.at = c.at.Add(at)
			for port := range uint16(20000) {
				b.Judge(connect("10.0.0.1", 10000+port))
			}
			c.at = c.at.Add(30 * 24 * time.Hour)
			require.False(t, b.Judge(connect("10.0.0.2", 5432)).NewDestination, "what was usual before is usual")
			require.True(t, b.Judge(connect("203.0.113.9", 443)).NewDestination)
			require.LessOrEqual(t, len(b.Images()[0].Destinations), 500)
		})
	}
}

// Where every fact is an old one there is no room, and what is new stays new.
func TestWhatFindsNoRoomIsNewAgainAndAgain(t *testing.T) {
	c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(learning(c))
	for port := range uint16(500) {
		b.Judge(connect("10.0.0.1", 10000+port))
	}
	c.at = c.at.Add(48 * time.Hour)
	for range 3 {
		require.True(t, b.Judge(connect("203.0.113.9", 443)).NewDestination)
	}
	require.False(t, b.Judge(connect("10.0.0.1", 10007)).NewDestination)
}

func TestWhatIsTooMuchIsNotCalledNew(t *testing.T) {
	c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	b := baseline.New(baseline.Options{Now: c.now, Images: 2})
	for i := range 8000 {
		b.Judge(exec("c"+strconv.Itoa(i), "/bin/"+strconv.Itoa(i)))
		c.at = c.at.Add(10 * time.Second)
	}
	c.at = c.at.Add(48 * time.Hour)
	require.False(t, b.Judge(exec("c", "/bin/never")).NewExe)
	require.LessOrEqual(t, len(b.Images()[0].Executables), 2000)
	for _, other := range []string{"sha256:a", "sha256:b"} {
		e := exec("c", "/bin/a")
		e.Container.ImageDigest = other
		b.Judge(e)
	}
	require.Len(t, b.Images(), 2)
	require.NotEqual(t, digest, b.Images()[1].Digest, "the one that was not seen for the longest time goes")
}

func TestWhatWasLearntSurvivesAndTravels(t *testing.T) {
	c := &clock{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	file := filepath.Join(t.TempDir(), "deep", "baselines.json")
	b, err := baseline.Open(file, learning(c))
	require.NoError(t, err)
	b.Judge(exec("c1", "/usr/sbin/nginx"))
	require.NoError(t, b.Save(file))
	c.at = c.at.Add(48 * time.Hour)

	again, err := baseline.Open(file, learning(c))
	require.NoError(t, err)
	require.False(t, again.Judge(exec("c9", "/usr/sbin/nginx")).NewExe)
	require.True(t, again.Judge(exec("c9", "/bin/sh")).NewExe)

	other := baseline.New(learning(c))
	other.Judge(exec("c5", "/usr/bin/curl"))
	var exported bytes.Buffer
	require.NoError(t, b.Write(&exported))
	n, err := other.Read(&exported)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, 2, other.Images()[0].Containers)
	require.True(t, other.Judge(exec("c5", "/bin/sh")).Learnt, "what another node watched counts")

	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	fresh, err := baseline.Open(file, learning(c))
	require.ErrorContains(t, err, file+".damaged")
	require.Empty(t, fresh.Images())
	require.FileExists(t, file+".damaged")

	c.at = c.at.Add(100 * 24 * time.Hour)
	require.NoError(t, again.Save(file))
	require.Empty(t, again.Images(), "an image that nobody has any more is forgotten")
}

func TestADetectionOfSomethingNewIsSurer(t *testing.T) {
	d := sensors.Detection{Confidence: 0.6, Reasons: []string{"A shell."}, Event: sensors.Event{Baseline: sensors.Baseline{Learnt: true, NewExe: true, Reason: "Never."}}}
	baseline.Weigh(&d)
	require.InDelta(t, 0.72, d.Confidence, 1e-9)
	require.Equal(t, []string{"A shell.", "Never."}, d.Reasons)
	usual := sensors.Detection{Confidence: 0.6, Event: sensors.Event{Baseline: sensors.Baseline{Learnt: true}}}
	baseline.Weigh(&usual)
	require.InDelta(t, 0.6, usual.Confidence, 1e-9)
}

func FuzzRead(f *testing.F) {
	f.Add(`{"version":1,"images":[{"digest":"sha256:a","first":"2026-11-01T00:00:00Z","last":"2026-11-02T00:00:00Z","containers":1,"executables":{"/a":{"first":"2026-11-01T00:00:00Z","last":"2026-11-01T00:00:00Z","count":1}}}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		b := baseline.New(baseline.Options{})
		n, err := b.Read(strings.NewReader(text))
		if err != nil && (n != 0 || len(b.Images()) != 0) {
			t.Fatal("a file that is not sound changed something")
		}
		b.Judge(exec("c", "/bin/sh"))
		if err := b.Write(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
	})
}
