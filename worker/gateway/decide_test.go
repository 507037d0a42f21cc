package gateway_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/worker/guards"
)

// Whoever is known may stop; only who runs Stanch and who approves somewhere may go on.
func TestWhoLiftsTheKillSwitch(t *testing.T) {
	cfg, problems := config.Parse("stanch.yaml", []byte(`
people:
  - { name: ann, groups: [oncall] }
  - { name: ben, groups: [interns] }
scopes:
  - { name: first, namespaces: ["web-[ab]"], approvers: { users: [ann] } }
`))
	require.NoError(t, problems.Err())
	a, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	lever := &guards.FileSwitch{Path: filepath.Join(t.TempDir(), "switch"), Authority: a}
	d := &gateway.Decider{Authority: a, Roster: config.NewRoster(cfg, ""), Switch: lever, Log: slog.New(slog.DiscardHandler)}
	who := func(name string) gateway.Speaker {
		for _, p := range cfg.People {
			if p.Name == name {
				return gateway.Speaker{Person: p, Proved: "a test", Key: name}
			}
		}
		return gateway.Speaker{Person: config.Person{Name: name}, Key: name}
	}
	stopped := func() bool {
		is, _, err := lever.Stopped(t.Context())
		require.NoError(t, err)
		return is
	}
	require.NoError(t, d.Stop(t.Context(), who("ben"), "a migration"))
	require.NoError(t, d.Stop(t.Context(), who("ann"), "another"))
	state, err := lever.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, "a migration", state.Reason, "who paused first, and why, stays")
	drill := who("drill")
	drill.Operator, drill.Drill, drill.Groups = true, "cryptominer", []string{config.DrillScope}
	for _, s := range []gateway.Speaker{who("ben"), who("nobody"), drill} {
		require.ErrorContains(t, d.Resume(t.Context(), s), "may not lift", s.Name)
		require.True(t, stopped(), s.Name)
	}
	require.NoError(t, d.Resume(t.Context(), who("ann")))
	require.False(t, stopped())
	operator := gateway.Speaker{Person: config.Person{Name: "uid 0"}, Key: "uid:0", Operator: true}
	require.NoError(t, d.Stop(t.Context(), operator, ""))
	require.NoError(t, d.Resume(t.Context(), operator))
	require.False(t, stopped())
}
