package kube

import (
	"context"
	"fmt"
	"time"

	"stanch/activities"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// ExpiryMarker is what a contained object says of its own containment. It is what an undo without a grant is judged by: a
// request may come from anybody who can reach Temporal, the stamp only from who may write to the cluster.
type ExpiryMarker struct {
	Present   bool      // for this request's lease
	ExpiresAt time.Time // zero if it cannot be read
	// PodGone: only a policy is left, which holds nothing.
	PodGone bool
}

// CheckExpired tells whether the stamp forbids an end now.
func (s ExpiryMarker) CheckExpired(now time.Time) error {
	if s.Present && now.Before(s.ExpiresAt) {
		return fmt.Errorf("its stamped end has not come (%s), and no grant was given", s.ExpiresAt.Format(time.RFC3339))
	}
	return nil
}

func readExpiryMarker(o metav1.Object, facet Facet, lease string) ExpiryMarker {
	if o.GetAnnotations()[facet.LeaseAnnotation()] != lease {
		return ExpiryMarker{}
	}
	until, err := time.Parse(time.RFC3339, o.GetAnnotations()[facet.ExpiresAnnotation()])
	if err != nil {
		return ExpiryMarker{Present: true}
	}
	return ExpiryMarker{Present: true, ExpiresAt: until}
}

// ReadExpiryMarker reads the stamp of an isolation, from the pod or else from its policy: whichever ends later counts.
func (r IsolateRequest) ReadExpiryMarker(ctx context.Context, client kubernetes.Interface) (ExpiryMarker, error) {
	var out ExpiryMarker
	if r.Pod.Name != "" {
		pod, gone, err := getPod(ctx, client, r.Pod)
		if err != nil {
			return ExpiryMarker{}, fmt.Errorf("read the stamp of pod %s: %w", r.Pod, err)
		}
		if gone == nil {
			out = readExpiryMarker(pod, FacetNetwork, r.Lease.ID)
		}
		out.PodGone = gone != nil
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return ExpiryMarker{}, fmt.Errorf("read the stamp of %s: %w", r.policyObjectName(), err)
	}
	if policy != nil {
		if s := readExpiryMarker(policy, FacetNetwork, r.Lease.ID); s.Present && (!out.Present || s.ExpiresAt.After(out.ExpiresAt)) {
			out.Present, out.ExpiresAt = s.Present, s.ExpiresAt
		}
	}
	return out, nil
}

// ReadExpiryMarker reads the stamp of a scaling, and the number of replicas that was saved with it.
func (r ScaleRequest) ReadExpiryMarker(ctx context.Context, client kubernetes.Interface) (ExpiryMarker, *ScalePrior, error) {
	w, gone, err := r.Target.getWorkload(ctx, client)
	if err != nil {
		return ExpiryMarker{}, nil, fmt.Errorf("read the stamp of %s: %w", r.Target, err)
	}
	if gone != nil {
		return ExpiryMarker{}, nil, nil
	}
	s := readExpiryMarker(w.meta, FacetReplicas, r.Lease.ID)
	if !s.Present {
		return s, nil, nil
	}
	prior, err := readSavedPrior(w.meta)
	if err != nil {
		return s, nil, err
	}
	return s, &prior, nil
}

// CheckEarlyIsolationEnd refuses to stamp an isolation with an earlier end than is stamped, unless a release grant says so.
func CheckEarlyIsolationEnd(ctx context.Context, client kubernetes.Interface, request IsolateRequest, r activities.Request) error {
	return checkEarlyEnd(ctx, r, func() (ExpiryMarker, error) { return request.ReadExpiryMarker(ctx, client) })
}
