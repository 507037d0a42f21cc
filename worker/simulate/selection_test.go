package simulate_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/playbooks/recording"
	"stanch/worker/actions"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
)

// withUserPlaybooks returns options with a user's playbooks in addition to the shipped ones.
func withUserPlaybooks(t testing.TB, own ...string) simulate.Options {
	t.Helper()
	sources := library.PlaybookSources()
	for i, s := range own {
		sources = append(sources, playbooks.SourceFile{File: fmt.Sprintf("own-%d.yaml", i), Content: []byte(s)})
	}
	programs, problems := playbooks.LoadPlaybooks(sources, actions.Catalog())
	require.NoError(t, problems.WithoutWarnings().Err())
	return simulate.Options{
		Catalog: actions.Catalog(), Phase: 3,
		NewMatchFunc: func(a activities.Authority) simulate.MatchFunc {
			return playbookstore.NewFixed(a, programs...).MatchPlaybooks
		},
	}
}

const twoApproverPlaybook = `playbook: four-eyes
match: { objective: crypto-mining }
steps:
  - evidence: process.snapshot
  - approval: cut its line
    from: { groups: [responders], quorum: 2 }
    timeout: 15m
    on_timeout: deny
    steps:
      - contain: pod.isolate
        for: 1h
`

// A regression: the library isolated the pod while the user's playbook asked two approvers.
func TestShippedPlaybookYieldsToUserPlaybook(t *testing.T) {
	o := withUserPlaybooks(t, twoApproverPlaybook)
	o.ApprovalAnswers.NoAnswers = true
	r := runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, []string{"four-eyes"}, r.Playbooks)
	require.Empty(t, r.Effects, "nobody agreed")
	require.Equal(t, "denied", outcomeOfAction(r, "approval"))
	require.Len(t, r.FinalIncident.NotSelected, 1)
	require.Equal(t, "cryptominer", r.FinalIncident.NotSelected[0].Playbook)
	require.Equal(t, "it matches, but four-eyes also includes a containment and takes precedence (priority 100 over 0)",
		r.FinalIncident.NotSelected[0].Reason)
}

// refuseEffect makes an action refuse its effect, long after enrichment has ended.
func refuseEffect(action string) simulate.FakeFunc {
	return func(c simulate.FakeCall) (recording.ActionResult, bool) {
		if c.Operation == recording.OperationApply && c.Request.Action == action {
			return recording.ActionResult{RefusalReason: "it will not", DurationMS: 2000}, true
		}
		return recording.ActionResult{}, false
	}
}

func TestFallbackPlaybookRunsWhenFirstContainsNothing(t *testing.T) {
	const freezes = "playbook: cold\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.freeze\n    for: 1m\n"
	o := withUserPlaybooks(t, freezes)
	o.FakeResults = refuseEffect("pod.freeze")
	r := runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, []string{"cold", "cryptominer"}, r.Playbooks)
	require.NotEmpty(t, r.Effects)
	require.Equal(t, "pod.isolate", r.Effects[0].Action)
	require.GreaterOrEqual(t, r.Effects[0].AppliedAtMS, int64(2000))

	// Its own steps after a refusal count: then no other playbook contains.
	o = withUserPlaybooks(t, freezes+"    on_failure:\n      - contain: pod.isolate\n        for: 2m\n")
	o.FakeResults = refuseEffect("pod.freeze")
	r = runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, []string{"cold"}, r.Playbooks)
}

// What a phase, the kill switch or people deny to one playbook is denied to all.
func TestFallbackPlaybookCannotBypassDenial(t *testing.T) {
	o := withUserPlaybooks(t, twoApproverPlaybook)
	o.ApprovalAnswers.ExplicitAnswers = []simulate.ApprovalAnswer{{
		Person: "alice", YesOrNo: "no",
		Groups: []string{"responders"},
	}}
	r := runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, []string{"four-eyes"}, r.Playbooks)
	require.Empty(t, r.Effects)

	o = withUserPlaybooks(t, twoApproverPlaybook)
	o.Phase = 1
	r = runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, []string{"four-eyes"}, r.Playbooks)
	require.Equal(t, "proposed", outcomeOfAction(r, "approval"))

	paused := loadRecording(t, "cryptominer")
	for i := range paused.ActionResults {
		if d := paused.ActionResults[i].GuardDecision; d != nil {
			d.GuardInputs = &recording.GuardInputs{
				ConfidenceThreshold: 0.8, MaxPerHour: 20, MaxFraction: 0.5,
				MaxDurationMS: time.Hour.Milliseconds() * 24, PausedBy: "alice (uid 1000)",
			}
		}
	}
	o = withUserPlaybooks(
		t,
		"playbook: plain\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 1m\n",
	)
	r = runSimulation(t, paused, o)
	require.Equal(t, []string{"plain"}, r.Playbooks)
	require.Equal(t, "refused", outcomeOfAction(r, "pod.isolate"))
	require.Empty(t, r.Effects)
}

// delayEnrichment delays enrichment, and makes it return what a condition reads.
func delayEnrichment(took time.Duration) simulate.FakeFunc {
	return func(c simulate.FakeCall) (recording.ActionResult, bool) {
		if c.Operation == recording.OperationObserve && c.Request.Action == "workload" && c.AtMS < 100 {
			return recording.ActionResult{
				DurationMS: took.Milliseconds(),
				Outputs:    []byte(`{"replicas": 3, "same_digest_pod_count": 7}`),
			}, true
		}
		return recording.ActionResult{}, false
	}
}

func TestShippedPlaybookWaitsBrieflyForEnrichment(t *testing.T) {
	const wide = "playbook: wide\nmatch: { objective: crypto-mining, when: incident.blast_radius.same_digest_pod_count > 3 }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 1m\n"
	for _, c := range []struct {
		name  string
		took  time.Duration
		want  []string
		after int64
	}{
		{"match within the limit", 300 * time.Millisecond, []string{"wide"}, 300},
		{"shipped playbook after the limit", 3 * time.Second, []string{"cryptominer"}, 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := withUserPlaybooks(t, wide)
			o.FakeResults = delayEnrichment(c.took)
			r := runSimulation(t, loadRecording(t, "cryptominer"), o)
			require.Equal(t, c.want, r.Playbooks, "%+v", r.Events)
			require.NotNil(t, r.FirstContainmentMS)
			require.InDelta(t, c.after, *r.FirstContainmentMS, 60)
			require.NotEmpty(t, r.FinalIncident.NotSelected)
		})
	}
}
