package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/probe"
	"stanch/worker/health"
	"stanch/worker/nodeserver"
)

// fakeIngester is an ingester that accepts nothing while Temporal is unavailable.
type fakeIngester struct {
	mu          sync.Mutex
	unavailable bool
	accepted    []sensors.Detection
}

func (*fakeIngester) Check(context.Context, *sensors.Detection, string) error { return nil }

func (i *fakeIngester) Accept(_ context.Context, d []sensors.Detection) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.unavailable {
		return errors.New("Temporal is away")
	}
	i.accepted = append(i.accepted, d...)
	return nil
}

func (i *fakeIngester) findDetections(rule, node string) []sensors.Detection {
	return slices.DeleteFunc(slices.Clone(i.accepted), func(d sensors.Detection) bool {
		return d.Rule != rule ||
			d.Node != node
	})
}

// monitorFixture is a monitor with a clock that the test controls.
type monitorFixture struct {
	*health.Monitor
	ingester *fakeIngester
	now      time.Time
}

func newMonitorFixture(o health.Options) *monitorFixture {
	d := &monitorFixture{ingester: &fakeIngester{}, now: time.Now()}
	o.Ingester, o.Log, o.Now = d.ingester, slog.New(slog.DiscardHandler), func() time.Time { return d.now }
	d.Monitor = health.NewMonitor(o)
	return d
}

func (d *monitorFixture) sendNodeReport(t *testing.T, node string, r agent.StatusReport) {
	t.Helper()
	raw, err := json.Marshal(r)
	require.NoError(t, err)
	d.OnNodeEvent(nodeserver.Event{Node: node, Kind: nodeserver.Reported, Status: raw})
}

func TestFakeGapsOfNodeDoNotHideOtherReports(t *testing.T) {
	d := newMonitorFixture(health.Options{})
	d.ingester.unavailable = true
	for _, name := range []string{"victim", "liar"} {
		d.OnNodeEvent(nodeserver.Event{Node: name, Kind: nodeserver.Connected})
	}
	d.OnNodeEvent(nodeserver.Event{Node: "victim", Kind: nodeserver.Disconnected})
	began := d.now
	for n := range 3000 {
		r := agent.StatusReport{Drops: agent.DropStats{
			CountingSince: began, EpisodeStart: began, LastDropAt: d.now,
			KernelEvents: uint64(n+1) * 5,
		}}
		for c := range 5 {
			id := fmt.Sprintf("invented-%d-%d", n, c)
			r.Drops.TopSources = append(r.Drops.TopSources, agent.DropSource{
				Container: sensors.Container{ID: id}, Cgroup: id,
				Dropped: 5,
			})
		}
		d.sendNodeReport(t, "liar", r)
		if n%100 == 0 {
			d.now = d.now.Add(time.Second)
			d.CheckOnce(t.Context())
		}
	}
	d.now = d.now.Add(2 * time.Minute)
	d.CheckOnce(t.Context())
	d.ingester.unavailable = false
	d.CheckOnce(t.Context())
	require.Len(t, d.ingester.findDetections("telemetry-lost", "victim"), 1)
	first := func(rule string) int {
		return slices.IndexFunc(d.ingester.accepted, func(d sensors.Detection) bool { return d.Rule == rule })
	}
	require.Less(t, first("telemetry-lost"), first("event-flood"), "the gateway's own reports are sent first")
	flooded := d.ingester.findDetections("event-flood", "liar")
	require.NotEmpty(t, flooded)
	require.LessOrEqual(t, len(flooded), 40)
	over := d.ingester.findDetections("node-rate-limited", "liar")
	require.Len(t, over, 1, "dropped reports are reported")
	require.Contains(t, over[0].Reasons[0], "were dropped")

	// With free capacity, it is reported again.
	d.now = d.now.Add(2 * time.Minute)
	d.sendNodeReport(t, "liar", agent.StatusReport{Drops: agent.DropStats{
		CountingSince: began, EpisodeStart: began,
		LastDropAt: d.now, KernelEvents: 20_000, TopSources: []agent.DropSource{{
			Container: sensors.Container{ID: "true"},
			Dropped:   5000,
		}},
	}})
	d.CheckOnce(t.Context())
	require.Equal(t, "true", d.ingester.accepted[len(d.ingester.accepted)-1].Event.Container.ID+
		d.ingester.accepted[len(d.ingester.accepted)-2].Event.Container.ID)
}

func TestUnsentConditionStaysPending(t *testing.T) {
	d := newMonitorFixture(health.Options{})
	d.ingester.unavailable = true
	const n = 2100 // more than the capacity
	for i := range n {
		d.OnNodeEvent(nodeserver.Event{Node: fmt.Sprintf("n-%d", i), Kind: nodeserver.Disconnected})
	}
	d.now = d.now.Add(2 * time.Minute)
	d.CheckOnce(t.Context())
	d.ingester.unavailable = false
	d.CheckOnce(t.Context())
	d.CheckOnce(t.Context())
	d.CheckOnce(t.Context())
	names := map[string]bool{}
	for _, each := range d.ingester.accepted {
		names[each.Node] = true
	}
	require.Equal(t, n, len(names)) //nolint:testifylint // Len would print them all
}

func TestBlindSensorIsReportedUntilItRecovers(t *testing.T) {
	for name, c := range map[string]struct {
		blind      probe.Status
		wantReason string
		times      int
	}{
		"detached hook": {probe.Status{
			LoadedAt: time.Now(),
			Hooks:    []probe.HookStatus{{Hook: "exec", Reason: "it was taken away"}},
		}, "The hook exec", 4},
		"unmonitored kernel": {probe.Status{}, "no longer monitors the kernel", 4},
		"disabled hook": {probe.Status{
			LoadedAt: time.Now(),
			Hooks:    []probe.HookStatus{{Hook: "exec", Reason: probe.ReasonDisabled}},
		}, "disabled by configuration", 1},
		"unsupported hook": {probe.Status{
			LoadedAt: time.Now(),
			Hooks:    []probe.HookStatus{{Hook: "exec", Enabled: true}, {Hook: "dns", Reason: "none"}},
		}, "", 0},
		"unsupported hook among others": {probe.Status{
			LoadedAt: time.Now(),
			Hooks:    []probe.HookStatus{{Hook: "dns", Reason: "none"}},
		}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := newMonitorFixture(health.Options{})
			sendReport := func(s probe.Status) {
				d.sendNodeReport(t, "n", agent.StatusReport{Health: agent.Health{ProbeStatus: s}})
				d.CheckOnce(t.Context())
			}
			healthy := probe.Status{LoadedAt: time.Now(), Hooks: []probe.HookStatus{{Hook: "exec", Enabled: true}}}
			sendReport(healthy)
			for range 120 { // twenty minutes, with a report every five
				sendReport(c.blind)
				d.now = d.now.Add(10 * time.Second)
			}
			reports := d.ingester.findDetections("heartbeat-failing", "n")
			require.Equal(t, c.times, len(reports)) //nolint:testifylint // Len would print them all
			if c.times > 0 {
				require.Contains(t, reports[0].Reasons[0], c.wantReason)
			}
			sendReport(healthy)
			d.now = d.now.Add(10 * time.Minute)
			sendReport(healthy)
			require.Equal(
				t,
				c.times,
				len(d.ingester.findDetections("heartbeat-failing", "n")),
				"the sensor recovered",
			) //nolint:testifylint // see above
		})
	}
}
