package aws

import (
	"context"
	"errors"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// Policy is one policy of a role.
type Policy struct {
	Name string `json:"name" expr:"name"`
	// one sentence each; empty if there are none
	RiskyPermissions []string `json:"risky_permissions" expr:"risky_permissions"`
}

// Identity is the output of `enrich: aws.identity`. Playbooks read its fields as the step's outputs.
type Identity struct {
	CredentialSource  string             `json:"credential_source"` // "irsa", "pod-identity" or "none"
	Role              playbooks.Target   `json:"role"`              // its UID is empty if there is no role
	ARN               string             `json:"arn"`
	Account           string             `json:"account"`
	ServiceAccount    string             `json:"service_account"` // NAMESPACE/NAME
	Association       string             `json:"association"`     // association id of EKS Pod Identity
	AttachedPolicies  []Policy           `json:"attached_policies"`
	InlinePolicies    []Policy           `json:"inline_policies"`
	RiskyPermissions  []string           `json:"risky_permissions"`   // of all policies
	MaxSessionSeconds int                `json:"max_session_seconds"` // seconds
	LastUsed          time.Time          `json:"last_used"`
	LastUsedRegion    string             `json:"last_used_region"`
	SharedWith        []string           `json:"shared_with"` // other service accounts with the role; a limited number
	TrustSummary      []string           `json:"trust_summary"`
	AccessKeys        []playbooks.Target `json:"access_keys"` // access keys in the pod's environment
	AccessKeyUsers    []playbooks.Target `json:"users"`
	Missing           []string           `json:"missing"` // what could not be determined, and why
}

// The sources of a pod's credentials.
const (
	credentialSourceIRSA        = "irsa"
	credentialSourcePodIdentity = "pod-identity"
	credentialSourceNone        = "none"
)

// Limits of what is read.
const (
	maxPolicies       = 12
	maxSharedAccounts = 20
	maxAssociations   = 20
)

// identityAction is `enrich: aws.identity`.
type identityAction struct {
	account *Account
	client  kubernetes.Interface
}

var _ activities.Observer = (*identityAction)(nil)

func (*identityAction) Spec() playbooks.ActionSpec {
	cloud := append([]playbooks.IAMPermission{
		rolePermission("iam:GetRole", "iam:ListRolePolicies", "iam:GetRolePolicy", "iam:ListAttachedRolePolicies"),
		{Actions: []string{"iam:GetPolicy", "iam:GetPolicyVersion"}, Resources: []string{"*"}},
		{Actions: []string{"iam:GetAccessKeyLastUsed"}, Resources: []string{"*"}},
		userPermission("iam:GetUser"),
	}, associationReadPermissions()...)
	rights := append(podReadPermissions(), playbooks.KubernetesPermission{
		Groups:    []string{""},
		Resources: []string{"serviceaccounts"}, Verbs: []string{"get", "list"},
	})
	return playbooks.ActionSpec{
		Name: "aws.identity", Verb: playbooks.VerbEnrich, Class: playbooks.ClassObserve, AttemptTimeout: 30 * time.Second,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, Outputs: Identity{},
		Doc:             "Look up the pod's AWS identity, the permissions of its role, and who else uses the role.",
		PlanPermissions: rights, ApplyPermissions: rights, PlanIAMPermissions: cloud, ApplyIAMPermissions: cloud,
	}
}

// identityInspector collects an identity. It lists parts without permission as missing.
type identityInspector struct {
	*identityAction
	result Identity
}

func (s *identityInspector) addMissing(what string, err error) {
	s.result.Missing = append(s.result.Missing, what+": "+plainText(err.Error(), 300))
}

// Observe returns the identity of a pod. It fails only for errors that a retry may resolve.
func (a *identityAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if err := a.account.checkConfigured(); err != nil {
		return activities.Observation{}, err
	}
	s := &identityInspector{identityAction: a, result: Identity{CredentialSource: credentialSourceNone}}
	if r.Target.Kind != playbooks.TargetPod {
		s.result.Missing = []string{
			"a container outside of Kubernetes has no AWS identity of its own; the identity of its machine is not examined",
		}
		return activities.Observation{Outputs: s.result}, nil
	}
	pod, err := readPod(ctx, a.client, r.Target)
	if err != nil {
		return activities.Observation{}, err
	}
	s.result.ServiceAccount = pod.namespace + "/" + pod.serviceAccount
	if err := s.findRole(ctx, pod); err != nil {
		return activities.Observation{}, err
	}
	for _, key := range pod.accessKeyIDs {
		s.findKeyUser(ctx, pod, key)
	}
	return activities.Observation{Outputs: s.result}, nil
}

// findRole looks for the role in both places. SDKs prefer the annotation's, so it has precedence.
func (s *identityInspector) findRole(ctx context.Context, pod podInfo) error {
	var arn string
	sa, err := s.client.CoreV1().ServiceAccounts(pod.namespace).Get(ctx, pod.serviceAccount, metav1.GetOptions{})
	switch {
	case apierrors.IsForbidden(err):
		s.addMissing("service account", err)
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("read service account %s/%s: %w", pod.namespace, pod.serviceAccount, err)
	case err == nil:
		arn = sa.Annotations[roleAnnotation]
	}
	found, err := s.account.findAssociation(ctx, pod.namespace, pod.serviceAccount)
	if err := s.tolerateDenied("EKS Pod Identity", err); err != nil {
		return err
	}
	switch {
	case arn != "":
		s.result.CredentialSource = credentialSourceIRSA
		if found != nil {
			s.result.Missing = append(s.result.Missing, "the service account also has an EKS Pod Identity association with "+
				plainText(found.role, 200)+"; the annotated role takes precedence and is shown")
		}
	case found != nil:
		s.result.CredentialSource, s.result.Association, arn = credentialSourcePodIdentity, found.id, found.role
		if found.chainedRole != "" {
			arn = found.chainedRole // the role that the workload finally uses
		}
	default:
		return nil
	}
	s.result.ARN, s.result.Account = plainText(arn, 300), plainText(accountFromARN(arn), 20)
	p, err := s.account.roleByARN(ctx, arn)
	if err != nil {
		return s.tolerateDenied("role", err)
	}
	s.result.Role = p.target(pod.namespace, pod.serviceAccount)
	s.result.MaxSessionSeconds = int(p.maxSession / time.Second)
	if used := p.role.Role.RoleLastUsed; used != nil {
		s.result.LastUsed, s.result.LastUsedRegion = awssdk.ToTime(used.LastUsedDate), plainText(awssdk.ToString(used.Region),
			30)
	}
	if t, err := parseTrustPolicy(p.trustPolicyText); err != nil {
		s.addMissing("trust policy", err)
	} else {
		s.result.TrustSummary = t.summarize()
	}
	for _, part := range []struct {
		what string
		look func(context.Context, principal) error
	}{{"attached policies", s.readAttachedPolicies}, {"inline policies", s.readInlinePolicies}} {
		if err := s.tolerateDenied(part.what, part.look(ctx, p)); err != nil {
			return err
		}
	}
	return s.findSharedAccounts(ctx, pod, arn)
}

// tolerateDenied records a refusal as missing and returns all other errors, which may be temporary.
func (s *identityInspector) tolerateDenied(what string, err error) error {
	if _, ok := activities.AsRefusal(err); ok {
		s.addMissing(what, err)
		return nil
	}
	return err
}

func (s *identityInspector) readAttachedPolicies(ctx context.Context, p principal) error {
	out, err := s.account.iam.ListAttachedRolePolicies(ctx, &iam.ListAttachedRolePoliciesInput{RoleName: &p.Name})
	if err != nil {
		return wrapError(err, "iam:ListAttachedRolePolicies", fmt.Sprintf("list the policies attached to %s", p))
	}
	for i, attached := range out.AttachedPolicies {
		if i == maxPolicies {
			s.addMissing("attached policies", fmt.Errorf("%d are attached; only %d were examined", len(out.AttachedPolicies),
				maxPolicies))
			break
		}
		text, err := s.account.readManagedPolicy(ctx, awssdk.ToString(attached.PolicyArn))
		if err := s.tolerateDenied("policy "+awssdk.ToString(attached.PolicyName), err); err != nil {
			return err
		}
		if text != "" {
			s.result.AttachedPolicies = append(s.result.AttachedPolicies, s.assessPolicy(awssdk.ToString(attached.PolicyName),
				text))
		}
	}
	return nil
}

// readManagedPolicy reads the default version of a managed policy.
func (a *Account) readManagedPolicy(ctx context.Context, arn string) (string, error) {
	policy, err := a.iam.GetPolicy(ctx, &iam.GetPolicyInput{PolicyArn: &arn})
	if err != nil {
		return "", wrapError(err, "iam:GetPolicy", "read policy "+arn)
	}
	version, err := a.iam.GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{
		PolicyArn: &arn,
		VersionId: policy.Policy.DefaultVersionId,
	})
	if err != nil {
		return "", wrapError(err, "iam:GetPolicyVersion", "read policy "+arn)
	}
	return decodeURLEncoded(awssdk.ToString(version.PolicyVersion.Document)), nil
}

func (s *identityInspector) readInlinePolicies(ctx context.Context, p principal) error {
	names, err := s.account.listInlinePolicies(ctx, p)
	if err != nil {
		return err
	}
	for i, name := range names {
		if i == maxPolicies {
			s.addMissing("inline policies", fmt.Errorf("%d exist; only %d were examined", len(names), maxPolicies))
			break
		}
		text, err := s.account.readInlinePolicy(ctx, p, name)
		if err != nil {
			return err
		}
		s.result.InlinePolicies = append(s.result.InlinePolicies, s.assessPolicy(name, text))
	}
	return nil
}

func (s *identityInspector) assessPolicy(name, text string) Policy {
	p := Policy{Name: plainText(name, 128), RiskyPermissions: describeRiskyPermissions(text)}
	for _, words := range p.RiskyPermissions {
		s.result.RiskyPermissions = append(s.result.RiskyPermissions, fmt.Sprintf("%s through policy %s", words, p.Name))
	}
	return p
}

// findSharedAccounts finds the other service accounts of the cluster with the role.
func (s *identityInspector) findSharedAccounts(ctx context.Context, pod podInfo, arn string) error {
	add := func(namespace, name, how string) {
		if (namespace != pod.namespace || name != pod.serviceAccount) && len(s.result.SharedWith) < maxSharedAccounts {
			s.result.SharedWith = append(s.result.SharedWith, fmt.Sprintf("%s/%s (%s)", namespace, name, how))
		}
	}
	list, err := s.client.CoreV1().ServiceAccounts("").List(ctx, metav1.ListOptions{ResourceVersion: "0", Limit: 5000})
	if err != nil {
		s.addMissing("other service accounts annotated with the role", err)
	} else {
		for i := range list.Items {
			if list.Items[i].Annotations[roleAnnotation] == arn {
				add(list.Items[i].Namespace, list.Items[i].Name, credentialSourceIRSA)
			}
		}
	}
	if s.account.Cluster == "" {
		return nil // already recorded as missing
	}
	others, err := s.account.associationsForRole(ctx, arn)
	if len(others) > 0 {
		for _, o := range others {
			add(o[0], o[1], credentialSourcePodIdentity)
		}
	}
	var more tooManyAssociationsError
	if errors.As(err, &more) {
		s.addMissing("other service accounts that get the role through EKS Pod Identity", err)
		return nil
	}
	return s.tolerateDenied("other service accounts that get the role through EKS Pod Identity", err)
}

// findKeyUser finds the user of an access key.
func (s *identityInspector) findKeyUser(ctx context.Context, pod podInfo, id string) {
	out, err := s.account.iam.GetAccessKeyLastUsed(ctx, &iam.GetAccessKeyLastUsedInput{AccessKeyId: &id})
	if err != nil {
		s.addMissing("key "+id, wrapError(err, "iam:GetAccessKeyLastUsed", "get its owner"))
		return
	}
	user, err := s.account.readUser(ctx, awssdk.ToString(out.UserName))
	if err != nil {
		s.addMissing("key "+id, err)
		return
	}
	s.result.AccessKeys = append(s.result.AccessKeys, playbooks.Target{
		Kind: playbooks.TargetKey, Namespace: pod.namespace,
		Name: user.Name, UID: id, Account: accountFromARN(user.ARN),
	})
	s.result.AccessKeyUsers = append(s.result.AccessKeyUsers, user.target(pod.namespace, pod.serviceAccount))
}
