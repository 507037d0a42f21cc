package activities_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
)

// A compromised workflow cannot show one plan and have another one approved.
func TestApprovalRequestHashBindsPlans(t *testing.T) {
	target := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "dev", UID: "1"}
	plan := activities.Plan{
		Action: "pod.isolate", TargetID: target.ID(), Changes: []string{"isolate a pod"},
		Duration: time.Hour,
	}
	honest := func() activities.ApprovalRequest {
		p := activities.ApprovalRequest{
			Plans:   []activities.PlanResult{{Plan: plan, PlanHash: plan.Hash()}},
			Targets: []playbooks.Target{target}, Approvers: playbooks.Approvers{Groups: []string{"oncall"}, Quorum: 2},
		}
		p.PlansHash = activities.ApprovalRequestHash(p.Plans, p.Approvers)
		return p
	}
	require.NoError(t, honest().Validate())
	for name, lie := range map[string]func(p *activities.ApprovalRequest){
		"another plan under the hash": func(p *activities.ApprovalRequest) { p.Plans[0].Plan.Changes = []string{"scale to zero"} },
		"another plan with its own hash": func(p *activities.ApprovalRequest) {
			p.Plans[0].Plan.Duration = 0
			p.Plans[0].PlanHash = p.Plans[0].Plan.Hash()
		},
		"fewer plans than are bound":        func(p *activities.ApprovalRequest) { p.Plans, p.Targets = nil, nil },
		"a smaller quorum than is bound":    func(p *activities.ApprovalRequest) { p.Approvers.Quorum = 1 },
		"another target's name on the plan": func(p *activities.ApprovalRequest) { p.Targets[0].UID = "2" },
		"a plan without its target":         func(p *activities.ApprovalRequest) { p.Targets = nil },
	} {
		p := honest()
		lie(&p)
		require.Error(t, p.Validate(), name)
	}
}
