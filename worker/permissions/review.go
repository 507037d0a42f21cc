package permissions

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// maxConcurrentReviews bounds the load on the API server; a comparison needs fewer than a hundred reviews.
const maxConcurrentReviews = 8

// Finding is a permission that an installation lacks or does not need.
type Finding struct {
	Permission string `json:"permission"` // "patch deployments.apps/scale"
	// Actions are the actions that need the permission, or components such as "gateway".
	Actions []string `json:"actions"`
}

// Report compares the permissions of the running worker with those that its playbooks need.
type Report struct {
	// Cluster is false if no cluster is connected; the rest is then empty.
	Cluster bool `json:"cluster"`
	// Namespace is Stanch's own namespace; "" if the worker does not run in the cluster and uses a person's kubeconfig.
	Namespace string    `json:"namespace,omitempty"`
	Phase     int       `json:"phase"`
	Actions   []string  `json:"actions"` // that the playbooks in use can run
	Required  int       `json:"required"`
	Missing   []Finding `json:"missing,omitempty"`
	Unneeded  []Finding `json:"unneeded,omitempty"`
}

// Compare asks the API server for each permission whether the client's identity has it. Every identity may ask about
// itself. A nil client returns a report without a cluster.
func Compare(ctx context.Context, client kubernetes.Interface, s Scope) (*Report, error) {
	if client == nil {
		return &Report{}, nil
	}
	out := &Report{
		Cluster: true, Namespace: s.Namespace, Phase: s.Phase, Actions: s.InUse,
	}
	required := s.Required()
	out.Required = len(required)
	missing, _, err := review(ctx, client, required)
	if err != nil {
		return nil, err
	}
	_, present, err := review(ctx, client, s.Unneeded())
	if err != nil {
		return nil, err
	}
	out.Missing, out.Unneeded = missing, present
	return out, nil
}

// review returns the permissions of a set that the client's identity lacks, and those that it has.
func review(ctx context.Context, client kubernetes.Interface, set Set) (lacks, has []Finding, err error) {
	all := slices.SortedFunc(maps.Keys(set), comparePermissions)
	allowed := make([]bool, len(all))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxConcurrentReviews)
	for i, p := range all {
		group.Go(func() error {
			resource, subresource, _ := strings.Cut(p.Resource, "/")
			answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
				&authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
					ResourceAttributes: &authorizationv1.ResourceAttributes{
						Verb: p.Verb, Group: p.Group, Resource: resource, Subresource: subresource,
						Namespace: p.Namespace, Name: p.Name,
					},
				}}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("ask the API server for the permission to %s: %w", p, err)
			}
			allowed[i] = answer.Status.Allowed
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err //nolint:wrapcheck // the error says which permission
	}
	for i, p := range all {
		finding := Finding{Permission: p.String(), Actions: set[p]}
		if allowed[i] {
			has = append(has, finding)
		} else {
			lacks = append(lacks, finding)
		}
	}
	return lacks, has, nil
}
