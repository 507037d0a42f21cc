package guards

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/workflows/budget"
)

// newBudgetInput returns the input of a containment of the pod with this UID, of the workload web with 4 pods.
func newBudgetInput(uid string, at time.Time) Input {
	f := Input{Config: config.Default(), ResolvedTarget: &activities.TargetFacts{
		Replicas: 4, Owners: []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "Deployment", Name: "web"}},
	}}
	f.Config.Budget.MaxPerHour, f.Config.Budget.MaxFraction = 3, 0.5
	f.Now = at
	f.Request = activities.Request{
		LeaseID: "LSE-" + uid, ExpiresAt: at.Add(2 * time.Hour),
		Target: playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", UID: uid},
	}
	return f
}

func TestUsageIsReportedOnceAndCounted(t *testing.T) {
	at := time.Now()
	var reported []budget.Usage
	w := NewBudgetWindow(func(u budget.Usage) { reported = append(reported, u) })
	require.Empty(t, w.CheckLeft(newBudgetInput("1", at)))
	require.Empty(t, w.Spend(newBudgetInput("1", at)))
	require.Empty(t, w.Spend(newBudgetInput("1", at)))
	require.Equal(t, []budget.Usage{{
		AppliedAt: at, LeaseID: "LSE-1", TargetID: "pod:1", Workload: "shop/Deployment/web", ExpiresAt: at.Add(2 * time.Hour),
	}}, reported)
	require.Empty(t, w.Spend(newBudgetInput("2", at)))
	require.Contains(t, w.CheckLeft(newBudgetInput("3", at)), "2 of 4 pods of shop/Deployment/web are already contained; "+
		"the budget allows 50%")
	require.NotEmpty(t, w.Spend(newBudgetInput("3", at)), "the budget is checked when it is used, too")
	require.Empty(t, w.CheckLeft(newBudgetInput("1", at)), "a counted lease stays allowed")

	granted := newBudgetInput("3", at)
	granted.Grant = &attestation.Grant{}
	require.Empty(t, w.Spend(granted), "what people permit is counted, and never refused")
	require.Len(t, reported, 3)
	require.Contains(t, w.CheckLeft(newBudgetInput("4", at)), "3 containments per hour")
}

func TestUsedCountsAreOfTheLastHourAndOfOtherActivePods(t *testing.T) {
	at := time.Now()
	w := NewBudgetWindow(nil)
	used := func(uid, workload string, age, left time.Duration) budget.Usage {
		return budget.Usage{
			AppliedAt: at.Add(-age), LeaseID: "LSE-" + uid, TargetID: "pod:" + uid, Workload: workload,
			ExpiresAt: at.Add(left),
		}
	}
	const web = "shop/Deployment/web"
	w.usages = []budget.Usage{
		used("1", web, time.Hour-1, 0), used("2", web, time.Hour, 1), used("3", "shop/Deployment/db", 3*time.Hour, time.Hour),
		used("4", web, 90*time.Minute, time.Hour), used("9", web, 0, time.Hour),
	}
	hour, held := w.UsedCounts(newBudgetInput("9", at))
	require.Equal(t, 2, hour)
	require.Equal(t, 2, held, "its own containment, ended ones, and those of other workloads do not count")

	again := used("4", web, 0, time.Hour)
	again.LeaseID = "LSE-other-facet"
	w.usages = append(w.usages, again)
	_, held = w.UsedCounts(newBudgetInput("9", at))
	require.Equal(t, 2, held, "a pod with two leases counts once")
}

func TestUsagesOfOtherWorkersCount(t *testing.T) {
	at := time.Now()
	w := NewBudgetWindow(nil)
	var all []budget.Usage
	for i := range 3 {
		all = append(all, budget.Usage{AppliedAt: at, LeaseID: fmt.Sprint(i), ExpiresAt: at.Add(time.Hour)})
	}
	w.Merge(all)
	require.Contains(t, w.CheckLeft(newBudgetInput("1", at)), "3 containments per hour")
	drill := newBudgetInput("1", at)
	drill.DrillTarget = &attestation.DrillTarget{ID: "pod:1"}
	require.Empty(t, w.CheckLeft(drill), "drills use no budget")
	require.Empty(t, w.Spend(drill))
	require.Len(t, w.usages, 3)
	require.Empty(t, w.CheckLeft(newBudgetInput("1", at.Add(2*time.Hour))))
	require.Empty(t, w.usages, "what no longer counts is forgotten")
}

func TestUnnamedLeaseIsNeverCountedAlready(t *testing.T) {
	at := time.Now()
	w := NewBudgetWindow(nil)
	for range 3 {
		w.usages = append(w.usages, budget.Usage{AppliedAt: at, ExpiresAt: at.Add(time.Hour)})
	}
	plan := newBudgetInput("1", at)
	plan.Request.LeaseID = ""
	require.NotEmpty(t, w.CheckLeft(plan))
}

func TestBudgetLimits(t *testing.T) {
	for name, c := range map[string]struct {
		change     func(*Input)
		hour, held int
		reason     string
	}{
		"nothing used":             {func(*Input) {}, 0, 0, ""},
		"the last of the hour":     {func(*Input) {}, 2, 0, ""},
		"the hour is used up":      {func(*Input) {}, 3, 0, "the budget of 3 containments per hour is used up"},
		"the last of the fraction": {func(*Input) {}, 0, 1, ""},
		"above the fraction":       {func(*Input) {}, 0, 2, "2 of 4 pods"},
		"a fraction in percent":    {func(f *Input) { f.Config.Budget.MaxFraction = 0.9 }, 0, 3, "the budget allows 90%"},
		"one of two pods": {func(f *Input) {
			f.ResolvedTarget.Replicas, f.Config.Budget.MaxFraction = 2, 0.1
		}, 0, 0, ""},
		"both of two pods": {func(f *Input) {
			f.ResolvedTarget.Replicas, f.Config.Budget.MaxFraction = 2, 0.1
		}, 0, 1, "1 of 2 pods of shop/Deployment/web are already contained; the budget allows 10%"},
		"a workload with one pod": {func(f *Input) { f.ResolvedTarget.Replicas = 1 }, 0, 5, ""},
		"an unknown number":       {func(f *Input) { f.ResolvedTarget.Replicas = 0 }, 0, 0, ""},
		"an unknown number of two": {
			func(f *Input) { f.ResolvedTarget.Replicas = 0 }, 0, 1,
			"1 pods of shop/Deployment/web are already contained and its number of replicas is unknown",
		},
		"a pod that is not resolved": {func(f *Input) { f.ResolvedTarget = nil }, 0, 1, "its number of replicas is unknown"},
		"a number without meaning": {func(f *Input) {
			f.ResolvedTarget.Replicas, f.ResolvedTarget.IgnoreReplicas = 0, true
		}, 0, 5, ""},
		"a workload": {func(f *Input) { f.Request.Target.Kind = playbooks.TargetWorkload }, 0, 5, ""},
		"a workload of unknown size": {func(f *Input) {
			f.Request.Target.Kind, f.ResolvedTarget.Replicas = playbooks.TargetWorkload, 0
		}, 0, 5, ""},
		"the incident's number": {func(f *Input) {
			f.ResolvedTarget.Replicas, f.Request.IncidentRef.Replicas = 0, 4
		}, 0, 2, "2 of 4 pods"},
		"the API server's number of an unresolved pod": {func(f *Input) {
			f.ResolvedTarget.UnresolvedReason = "timed out"
		}, 0, 1, "its number of replicas is unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newBudgetInput("1", time.Now())
			c.change(&f)
			got := BudgetExceededReason(f, c.hour, c.held)
			if c.reason == "" {
				require.Empty(t, got)
				return
			}
			require.Contains(t, got, c.reason)
		})
	}
}

func TestBudgetIsOfTopmostOwner(t *testing.T) {
	f := newBudgetInput("1", time.Now())
	f.Request.IncidentRef.Workload = playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Pod", Name: "x"}
	require.Equal(t, "shop/Deployment/web", f.budgetWorkload())
	f.ResolvedTarget.Owners = nil
	require.Equal(t, "shop/Pod/x", f.budgetWorkload())
	f.ResolvedTarget = nil
	require.Equal(t, "shop/Pod/x", f.budgetWorkload())
}
