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
	"stanch/worker/gateway"
	"stanch/worker/health"
)

// takes is an intake that takes nothing while Temporal is away.
type takes struct {
	mu   sync.Mutex
	away bool
	all  []sensors.Detection
}

func (*takes) Check(context.Context, *sensors.Detection, string) error { return nil }

func (i *takes) Accept(_ context.Context, d []sensors.Detection) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.away {
		return errors.New("Temporal is away")
	}
	i.all = append(i.all, d...)
	return nil
}

func (i *takes) of(rule, node string) []sensors.Detection {
	return slices.DeleteFunc(slices.Clone(i.all), func(d sensors.Detection) bool { return d.Rule != rule || d.Node != node })
}

// desk is a monitor whose clock the test turns.
type desk struct {
	*health.Monitor
	intake *takes
	now    time.Time
}

func sit(o health.Options) *desk {
	d := &desk{intake: &takes{}, now: time.Now()}
	o.Intake, o.Log, o.Now = d.intake, slog.New(slog.DiscardHandler), func() time.Time { return d.now }
	d.Monitor = health.New(o)
	return d
}

func (d *desk) says(t *testing.T, node string, r agent.StatusReport) {
	t.Helper()
	raw, err := json.Marshal(r)
	require.NoError(t, err)
	d.NodeNote(gateway.NodeNote{Node: node, What: gateway.NodeSpoke, Status: raw})
}

func TestANodeThatInventsGapsHidesNobodyElses(t *testing.T) {
	d := sit(health.Options{})
	d.intake.away = true
	for _, name := range []string{"victim", "liar"} {
		d.NodeNote(gateway.NodeNote{Node: name, What: gateway.NodeCame})
	}
	d.NodeNote(gateway.NodeNote{Node: "victim", What: gateway.NodeLeft})
	began := d.now
	for n := range 3000 {
		r := agent.StatusReport{Drops: agent.DropStats{CountingSince: began, EpisodeStart: began, LastDropAt: d.now, KernelEvents: uint64(n+1) * 5}}
		for c := range 5 {
			id := fmt.Sprintf("invented-%d-%d", n, c)
			r.Drops.TopSources = append(r.Drops.TopSources, agent.DropSource{Container: sensors.Container{ID: id}, Cgroup: id, Dropped: 5})
		}
		d.says(t, "liar", r)
		if n%100 == 0 {
			d.now = d.now.Add(time.Second)
			d.Look(t.Context())
		}
	}
	d.now = d.now.Add(2 * time.Minute)
	d.Look(t.Context())
	d.intake.away = false
	d.Look(t.Context())
	require.Len(t, d.intake.of("telemetry-lost", "victim"), 1)
	first := func(rule string) int {
		return slices.IndexFunc(d.intake.all, func(d sensors.Detection) bool { return d.Rule == rule })
	}
	require.Less(t, first("telemetry-lost"), first("events-flooded"), "what the gateway itself noticed goes first")
	flooded := d.intake.of("events-flooded", "liar")
	require.NotEmpty(t, flooded)
	require.LessOrEqual(t, len(flooded), 40)
	over := d.intake.of("node-over-rate", "liar")
	require.Len(t, over, 1, "that something was left out is told")
	require.Contains(t, over[0].Reasons[0], "were left out")

	// When there is room again, it is heard again.
	d.now = d.now.Add(2 * time.Minute)
	d.says(t, "liar", agent.StatusReport{Drops: agent.DropStats{CountingSince: began, EpisodeStart: began, LastDropAt: d.now, KernelEvents: 20_000, TopSources: []agent.DropSource{{Container: sensors.Container{ID: "true"}, Dropped: 5000}}}})
	d.Look(t.Context())
	require.Equal(t, "true", d.intake.all[len(d.intake.all)-1].Event.Container.ID+d.intake.all[len(d.intake.all)-2].Event.Container.ID)
}

func TestWhatHadNoRoomIsNotTakenForTold(t *testing.T) {
	d := sit(health.Options{})
	d.intake.away = true
	const n = 2100 // more than wait
	for i := range n {
		d.NodeNote(gateway.NodeNote{Node: fmt.Sprintf("n-%d", i), What: gateway.NodeLeft})
	}
	d.now = d.now.Add(2 * time.Minute)
	d.Look(t.Context())
	d.intake.away = false
	d.Look(t.Context())
	d.Look(t.Context())
	d.Look(t.Context())
	names := map[string]bool{}
	for _, each := range d.intake.all {
		names[each.Node] = true
	}
	require.Equal(t, n, len(names)) //nolint:testifylint // Len would print them all
}

func TestWhatASensorNoLongerSeesIsToldUntilItSeesItAgain(t *testing.T) {
	for name, c := range map[string]struct {
		blind probe.Status
		says  string
		times int
	}{
		"a hook that is gone":                 {probe.Status{LoadedAt: time.Now(), Hooks: []probe.HookStatus{{Hook: "exec", Reason: "it was taken away"}}}, "The hook exec", 4},
		"the kernel is not watched":           {probe.Status{}, "no longer does", 4},
		"a hook that somebody does not want":  {probe.Status{LoadedAt: time.Now(), Hooks: []probe.HookStatus{{Hook: "exec", Reason: probe.ReasonDisabled}}}, "disabled by configuration", 1},
		"a hook that this kernel never had":   {probe.Status{LoadedAt: time.Now(), Hooks: []probe.HookStatus{{Hook: "exec", Enabled: true}, {Hook: "dns", Reason: "none"}}}, "", 0},
		"a hook that never was, and the rest": {probe.Status{LoadedAt: time.Now(), Hooks: []probe.HookStatus{{Hook: "dns", Reason: "none"}}}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := sit(health.Options{})
			says := func(s probe.Status) {
				d.says(t, "n", agent.StatusReport{Health: agent.Health{ProbeStatus: s}})
				d.Look(t.Context())
			}
			sees := probe.Status{LoadedAt: time.Now(), Hooks: []probe.HookStatus{{Hook: "exec", Enabled: true}}}
			says(sees)
			for range 120 { // twenty minutes, in which it is told every five
				says(c.blind)
				d.now = d.now.Add(10 * time.Second)
			}
			told := d.intake.of("eyes-shut", "n")
			require.Equal(t, c.times, len(told)) //nolint:testifylint // Len would print them all
			if c.times > 0 {
				require.Contains(t, told[0].Reasons[0], c.says)
			}
			says(sees)
			d.now = d.now.Add(10 * time.Minute)
			says(sees)
			require.Equal(t, c.times, len(d.intake.of("eyes-shut", "n")), "it sees again") //nolint:testifylint // see above
		})
	}
}
