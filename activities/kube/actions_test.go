package kube_test

import (
	"context"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

func findContainment(t *testing.T, client kubernetes.Interface, name string) activities.Containment {
	t.Helper()
	for _, a := range kube.Actions(client) {
		if c, ok := a.(activities.Containment); ok && a.Spec().Name == name {
			return c
		}
	}
	t.Fatalf("unknown contain action %s", name)
	return nil
}

// restrictedAction returns an action whose client has exactly the permissions that the spec declares for applying and
// for finding orphans.
func (p fixture) restrictedAction(t *testing.T, name string) activities.Containment {
	t.Helper()
	spec := actionSpec(t, name)
	return findContainment(t, p.restrictedClient(t, "applier", spec.ApplyPermissions, spec.OrphanPermissions), name)
}

// planningAction returns an action whose client has exactly the permissions for planning.
func (p fixture) planningAction(t *testing.T, name string) activities.Containment {
	t.Helper()
	return findContainment(t, p.restrictedClient(t, "planner", actionSpec(t, name).PlanPermissions), name)
}

func newActivityRequest(t *testing.T, ref kube.PodRef, until time.Time) activities.Request {
	return activities.Request{
		Target:  playbooks.Target{Kind: playbooks.TargetPod, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID},
		LeaseID: "lab/" + t.Name(), ExpiresAt: until.Truncate(time.Second),
		IncidentRef: activities.IncidentRef{ID: "INC-01TEST"},
	}
}

// planAndApply plans and applies a request, and requires that it was verified.
func planAndApply(t *testing.T, a activities.Containment, r activities.Request) activities.Plan {
	t.Helper()
	plan, err := a.Plan(t.Context(), r)
	requireNoError(t, err)
	effect, err := apply(t.Context(), a, r, plan)
	requireNoError(t, err)
	if effect.Outcome != playbooks.OutcomeChanged {
		t.Fatalf("effect %+v", effect)
	}
	return plan
}

func apply(ctx context.Context, a activities.Containment, r activities.Request,
	plan activities.Plan,
) (activities.Effect, error) {
	return a.Apply(ctx, r, plan.PriorState, attestation.Envelope{})
}

// undoWithGrant ends a lease before its stamped end.
func undoWithGrant(t *testing.T, a activities.Containment, r activities.Request,
	plan activities.Plan,
) (*activities.Drift, error) {
	t.Helper()
	return a.Undo(t.Context(), r, plan.PriorState, &attestation.Envelope{})
}

func wantInForce(t *testing.T, a activities.Containment, r activities.Request, plan activities.Plan) {
	t.Helper()
	if inForce, detail, err := a.Verify(t.Context(), r, plan.PriorState); err != nil || !inForce {
		t.Errorf("does not hold: %s, %v", detail, err)
	}
}

// findOrphan returns the orphan of a lease; nil if there is none. The cluster may have others.
func findOrphan(t *testing.T, a activities.Containment, lease string, before time.Time) *activities.Orphan {
	t.Helper()
	all, err := a.(activities.OrphanFinder).FindOrphans(t.Context(), before)
	requireNoError(t, err)
	for _, o := range all {
		if o.Lease.ID == lease {
			return &o
		}
	}
	return nil
}

func TestActionsWithoutClusterAreRefused(t *testing.T) {
	contain := 0
	for _, a := range kube.Actions(nil) {
		c, ok := a.(activities.Containment)
		if !ok {
			continue
		}
		contain++
		r := newActivityRequest(t, kube.PodRef{Namespace: "shop", Name: "web-1", UID: "u"}, oneHourFromNow())
		r.Target.Kind = a.Spec().Targets[0]
		_, err := c.Plan(t.Context(), r)
		wantRefusal(t, "no cluster is connected", err)
	}
	if contain < 3 {
		t.Errorf("%d contain actions", contain)
	}
}

// testEarlyEndsNeedGrant applies a request, and requires that neither an undo nor a shorter lease is permitted without
// a grant before the end that is stamped on the object.
func testEarlyEndsNeedGrant(t *testing.T, a activities.Containment, r activities.Request) {
	t.Helper()
	plan := planAndApply(t, a, r)
	_, err := a.Undo(t.Context(), r, plan.PriorState, nil)
	wantRefusal(t, "no grant was given", err)
	shorter := r
	shorter.ExpiresAt = r.ExpiresAt.Add(-30 * time.Minute)
	_, err = apply(t.Context(), a, shorter, plan)
	wantRefusal(t, "requires a grant", err)
	wantInForce(t, a, r, plan)
	shorter.ReleaseGrant = &attestation.Envelope{}
	_, err = apply(t.Context(), a, shorter, plan)
	requireNoError(t, err)
	wantInForce(t, a, shorter, plan)
	drift, err := undoWithGrant(t, a, shorter, plan)
	wantUndone(t, drift, err)
	if inForce, _, err := a.Verify(t.Context(), r, plan.PriorState); inForce || err != nil {
		t.Errorf("after the undo it is in force, %v", err)
	}
}
