package decisions_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/guards"
)

// Every known person may pause; only the operator and approvers may resume.
func TestOnlyOperatorAndApproversCanResume(t *testing.T) {
	cfg, problems := config.Parse("stanch.yaml", []byte(`
people:
  - { name: ann, groups: [oncall] }
  - { name: ben, groups: [interns] }
scopes:
  - { name: first, namespaces: ["web-[ab]"], approvers: { users: [ann] } }
`))
	require.NoError(t, problems.Err())
	a, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	killSwitch := &guards.FileKillSwitch{FilePath: filepath.Join(t.TempDir(), "switch"), Authority: a}
	d := &decisions.Service{
		Authority: a, Roster: config.NewRoster(cfg, ""), KillSwitch: killSwitch,
		Log: slog.New(slog.DiscardHandler),
	}
	who := func(name string) decisions.Principal {
		for _, p := range cfg.People {
			if p.Name == name {
				return decisions.Principal{Person: p, AuthenticatedBy: "a test", RateLimitKey: name}
			}
		}
		return decisions.Principal{Person: config.Person{Name: name}, RateLimitKey: name}
	}
	stopped := func() bool {
		is, _, err := killSwitch.IsPaused(t.Context())
		require.NoError(t, err)
		return is
	}
	require.NoError(t, d.Pause(t.Context(), who("ben"), "a migration"))
	require.NoError(t, d.Pause(t.Context(), who("ann"), "another"))
	state, err := killSwitch.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, "a migration", state.Reason, "the first pause keeps its person and reason")
	drill := who("drill")
	drill.IsOperator, drill.DrillName, drill.Groups = true, "cryptominer", []string{config.DrillScope}
	for _, s := range []decisions.Principal{who("ben"), who("nobody"), drill} {
		require.ErrorContains(t, d.Resume(t.Context(), s), "is not allowed to resume", s.Name)
		require.True(t, stopped(), s.Name)
	}
	require.NoError(t, d.Resume(t.Context(), who("ann")))
	require.False(t, stopped())
	operator := decisions.Principal{Person: config.Person{Name: "uid 0"}, RateLimitKey: "uid:0", IsOperator: true}
	require.NoError(t, d.Pause(t.Context(), operator, ""))
	require.NoError(t, d.Resume(t.Context(), operator))
	require.False(t, stopped())
}
