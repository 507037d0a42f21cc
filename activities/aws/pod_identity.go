package aws

import (
	"cmp"
	"context"
	"fmt"
	"regexp"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// roleAnnotation is the annotation in which a service account names its role for IRSA.
const roleAnnotation = "eks.amazonaws.com/role-arn"

// podReadPermissions returns the permissions for reading a pod's identity.
func podReadPermissions() []playbooks.KubernetesPermission {
	return []playbooks.KubernetesPermission{{Groups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}}}
}

func associationReadPermissions() []playbooks.IAMPermission {
	return []playbooks.IAMPermission{{Actions: []string{
		"eks:ListPodIdentityAssociations",
		"eks:DescribePodIdentityAssociation",
	}, Resources: []string{"*"}}}
}

// podInfo is the part of a pod that identifies it in AWS.
type podInfo struct {
	namespace, serviceAccount string
	accessKeyIDs              []string // access keys in plain text in its environment
}

// readPod reads the pod with the target's UID. If the pod is gone, it returns a refusal that wraps
// activities.ErrTargetGone.
func readPod(ctx context.Context, client kubernetes.Interface, t playbooks.Target) (podInfo, error) {
	if t.Kind != playbooks.TargetPod {
		return podInfo{}, activities.Refusef("%s is not a pod", t)
	}
	if client == nil {
		return podInfo{}, activities.Refusef("no cluster is connected")
	}
	pod, err := client.CoreV1().Pods(t.Namespace).Get(ctx, t.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return podInfo{}, activities.RefuseGonef("%s is gone", t)
	case err != nil:
		return podInfo{}, fmt.Errorf("read %s: %w", t, err)
	case string(pod.UID) != t.UID:
		return podInfo{}, activities.RefuseGonef("%s with the UID %s is gone; a different object with the same name has the UID %s", t, t.UID,
			pod.UID)
	}
	return podInfo{
		namespace: pod.Namespace, serviceAccount: cmp.Or(pod.Spec.ServiceAccountName, "default"),
		accessKeyIDs: findAccessKeyIDs(pod),
	}, nil
}

var accessKeyIDPattern = regexp.MustCompile(`^AKIA[0-9A-Z]{12,28}$`)

// maxAccessKeys is the maximum number of keys of one pod.
const maxAccessKeys = 5

// findAccessKeyIDs returns long-lived access keys in a pod's environment. It does not search secrets, which Stanch may
// not read.
func findAccessKeyIDs(pod *corev1.Pod) []string {
	var keys []string
	for _, c := range pod.Spec.Containers {
		for _, e := range c.Env {
			if accessKeyIDPattern.MatchString(e.Value) && len(keys) < maxAccessKeys {
				keys = append(keys, e.Value)
			}
		}
	}
	return keys
}

// podIdentityAssociation is an association of EKS Pod Identity.
type podIdentityAssociation struct {
	id, role         string
	chainedRole      string // another role that it assumes
	sessionsUntagged bool   // its sessions do not name the pod
}

// findAssociation returns the association of a service account; nil if there is none.
func (a *Account) findAssociation(ctx context.Context, namespace, account string) (*podIdentityAssociation, error) {
	if a.Cluster == "" {
		return nil, activities.Refusef(
			"EKS Pod Identity cannot be looked up; add `cluster:` with the EKS cluster's name to `aws:` in stanch.yaml",
		)
	}
	out, err := a.eks.ListPodIdentityAssociations(ctx, &eks.ListPodIdentityAssociationsInput{
		ClusterName: &a.Cluster,
		Namespace:   &namespace, ServiceAccount: &account,
	})
	if err != nil {
		return nil, wrapError(err, "eks:ListPodIdentityAssociations", "list the Pod Identity associations of EKS cluster "+
			a.Cluster)
	}
	for _, s := range out.Associations {
		if awssdk.ToString(s.Namespace) == namespace && awssdk.ToString(s.ServiceAccount) == account {
			return a.describeAssociation(ctx, awssdk.ToString(s.AssociationId))
		}
	}
	return nil, nil
}

func (a *Account) describeAssociation(ctx context.Context, id string) (*podIdentityAssociation, error) {
	out, err := a.eks.DescribePodIdentityAssociation(ctx, &eks.DescribePodIdentityAssociationInput{
		ClusterName:   &a.Cluster,
		AssociationId: &id,
	})
	if err != nil {
		return nil, wrapError(err, "eks:DescribePodIdentityAssociation", "read Pod Identity association "+plainText(id, 60))
	}
	found := out.Association
	return &podIdentityAssociation{
		id: awssdk.ToString(found.AssociationId), role: awssdk.ToString(found.RoleArn),
		chainedRole:      awssdk.ToString(found.TargetRoleArn),
		sessionsUntagged: awssdk.ToBool(found.DisableSessionTags),
	}, nil
}

// tooManyAssociationsError means that there are more associations than the limit.
type tooManyAssociationsError int

func (e tooManyAssociationsError) Error() string {
	return fmt.Sprintf("the cluster has at least %d associations; only %d were examined", int(e), maxAssociations)
}

// associationsForRole returns the service accounts, as namespace and name, with an association to a role.
func (a *Account) associationsForRole(ctx context.Context, role string) ([][2]string, error) {
	out, err := a.eks.ListPodIdentityAssociations(ctx, &eks.ListPodIdentityAssociationsInput{ClusterName: &a.Cluster})
	if err != nil {
		return nil, wrapError(err, "eks:ListPodIdentityAssociations", "list the Pod Identity associations of EKS cluster "+
			a.Cluster)
	}
	var found [][2]string
	for i, s := range out.Associations {
		if i == maxAssociations {
			return found, tooManyAssociationsError(len(out.Associations))
		}
		one, err := a.describeAssociation(ctx, awssdk.ToString(s.AssociationId))
		if err != nil {
			return found, err
		}
		if one.role == role || one.chainedRole == role {
			found = append(found, [2]string{awssdk.ToString(s.Namespace), awssdk.ToString(s.ServiceAccount)})
		}
	}
	return found, nil
}
