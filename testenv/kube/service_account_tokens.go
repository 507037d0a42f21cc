package kube

import (
	"context"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func issueToken(ctx context.Context, client kubernetes.Interface, namespace, name string) (string, error) {
	hour := int64(3600)
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("issue a token for %s/%s: %w", namespace, name, err)
	}
	return answer.Status.Token, nil
}

// checkPermission returns an error unless the client has the first verb on the first resource of a rule.
func checkPermission(ctx context.Context, client kubernetes.Interface, rule rbacv1.PolicyRule) error {
	review := &authorizationv1.SelfSubjectAccessReview{}
	switch {
	case len(rule.NonResourceURLs) > 0:
		review.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{
			Path: rule.NonResourceURLs[0],
			Verb: rule.Verbs[0],
		}
	default:
		resource, sub := splitResource(rule.Resources[0])
		review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
			Group: rule.APIGroups[0], Resource: resource, Subresource: sub, Verb: rule.Verbs[0],
		}
		if len(rule.ResourceNames) > 0 {
			review.Spec.ResourceAttributes.Name = rule.ResourceNames[0]
		}
	}
	answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if !answer.Status.Allowed {
		return fmt.Errorf("not allowed yet: %s", answer.Status.Reason)
	}
	return nil
}

func splitResource(resource string) (name, sub string) {
	name, sub, _ = strings.Cut(resource, "/")
	return name, sub
}
