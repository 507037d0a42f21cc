package kube

import (
	"context"
	"fmt"
	"time"

	"stanch/activities"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Stamp is what a contained object says of its own containment. It is what an undo without a grant is judged by: a
// request may come from anybody who can reach Temporal, the stamp only from who may write to the cluster.
type Stamp struct {
	Held  bool      // for this request's lease
	Until time.Time // zero if it cannot be read
	// PodGone: only a policy is left, which holds nothing.
	PodGone bool
}

// ErrNotYet tells whether the stamp forbids an end now.
func (s Stamp) ErrNotYet(now time.Time) error {
	if s.Held && now.Before(s.Until) {
		return fmt.Errorf("its stamped end has not come (%s), and no grant was given", s.Until.Format(time.RFC3339))
	}
	return nil
}

func stampOf(o metav1.Object, facet Facet, lease string) Stamp {
	if o.GetAnnotations()[facet.LeaseKey()] != lease {
		return Stamp{}
	}
	until, err := time.Parse(time.RFC3339, o.GetAnnotations()[facet.ExpiresKey()])
	if err != nil {
		return Stamp{Held: true}
	}
	return Stamp{Held: true, Until: until}
}

// Stamp reads the stamp of an isolation, from the pod or else from its policy: whichever ends later counts.
func (r IsolateRequest) Stamp(ctx context.Context, client kubernetes.Interface) (Stamp, error) {
	var out Stamp
	if r.Pod.Name != "" {
		pod, gone, err := getPod(ctx, client, r.Pod)
		if err != nil {
			return Stamp{}, fmt.Errorf("read the stamp of pod %s: %w", r.Pod, err)
		}
		if gone == nil {
			out = stampOf(pod, FacetNetwork, r.Lease.ID)
		}
		out.PodGone = gone != nil
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return Stamp{}, fmt.Errorf("read the stamp of %s: %w", r.policyObject(), err)
	}
	if policy != nil {
		if s := stampOf(policy, FacetNetwork, r.Lease.ID); s.Held && (!out.Held || s.Until.After(out.Until)) {
			out.Held, out.Until = s.Held, s.Until
		}
	}
	return out, nil
}

// Stamp reads the stamp of a scaling, and the number of replicas that was saved with it.
func (r ScaleRequest) Stamp(ctx context.Context, client kubernetes.Interface) (Stamp, *ScalePrior, error) {
	w, gone, err := r.Target.open(ctx, client)
	if err != nil {
		return Stamp{}, nil, fmt.Errorf("read the stamp of %s: %w", r.Target, err)
	}
	if gone != nil {
		return Stamp{}, nil, nil
	}
	s := stampOf(w.meta, FacetReplicas, r.Lease.ID)
	if !s.Held {
		return s, nil, nil
	}
	prior, err := readPrior(w.meta)
	if err != nil {
		return s, nil, err
	}
	return s, &prior, nil
}

// MayShorten refuses to stamp an isolation with an earlier end than is stamped, unless a release grant says so.
func MayShorten(ctx context.Context, client kubernetes.Interface, request IsolateRequest, r activities.Request) error {
	return mayShorten(ctx, r, func() (Stamp, error) { return request.Stamp(ctx, client) })
}
