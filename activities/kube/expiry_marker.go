package kube

import (
	"context"
	"fmt"
	"time"

	"stanch/activities"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// ExpiryMarker is the lease and the end that are stamped on a contained object. An undo without a grant depends on it:
// requests can come from anybody who can reach Temporal, the marker only from someone who may write to the cluster.
type ExpiryMarker struct {
	Present   bool      // of this request's lease
	ExpiresAt time.Time // zero if it cannot be parsed
	// PodGone means that only a policy is left, which isolates nothing.
	PodGone bool
}

// CheckExpired returns an error if the marker does not permit an end at now.
func (s ExpiryMarker) CheckExpired(now time.Time) error {
	if s.Present && now.Before(s.ExpiresAt) {
		return fmt.Errorf("its recorded end (%s) has not passed, and no grant was given", s.ExpiresAt.Format(time.RFC3339))
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

// ReadExpiryMarker reads the marker of an isolation from the pod and its policy. The later end counts.
func (r IsolateRequest) ReadExpiryMarker(ctx context.Context, client kubernetes.Interface) (ExpiryMarker, error) {
	var out ExpiryMarker
	if r.Pod.Name != "" {
		pod, gone, err := getPod(ctx, client, r.Pod)
		if err != nil {
			return ExpiryMarker{}, fmt.Errorf("read the expiry marker of pod %s: %w", r.Pod, err)
		}
		if gone == nil {
			out = readExpiryMarker(pod, FacetNetwork, r.Lease.ID)
		}
		out.PodGone = gone != nil
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return ExpiryMarker{}, fmt.Errorf("read the expiry marker of %s: %w", r.policyObjectName(), err)
	}
	if policy != nil {
		if s := readExpiryMarker(policy, FacetNetwork, r.Lease.ID); s.Present &&
			(!out.Present || s.ExpiresAt.After(out.ExpiresAt)) {
			out.Present, out.ExpiresAt = s.Present, s.ExpiresAt
		}
	}
	return out, nil
}

// ReadExpiryMarker reads the marker of a scaling, and the number of replicas that was saved with it.
func (r ScaleRequest) ReadExpiryMarker(ctx context.Context, client kubernetes.Interface) (ExpiryMarker, *ScalePrior,
	error,
) {
	w, gone, err := r.Target.getWorkload(ctx, client)
	if err != nil {
		return ExpiryMarker{}, nil, fmt.Errorf("read the expiry marker of %s: %w", r.Target, err)
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

// CheckEarlyIsolationEnd refuses an end before the stamped one, unless a release grant permits it.
func CheckEarlyIsolationEnd(ctx context.Context, client kubernetes.Interface, request IsolateRequest,
	r activities.Request,
) error {
	return checkEarlyEnd(ctx, r, func() (ExpiryMarker, error) { return request.ReadExpiryMarker(ctx, client) })
}
