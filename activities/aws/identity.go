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
	Name      string   `json:"name" expr:"name"`
	Dangerous []string `json:"dangerous" expr:"dangerous"` // a sentence each; empty is good
}

// Identity is what `enrich: aws.identity` finds out; its fields are what a playbook reads of the step.
type Identity struct {
	How            string             `json:"how"`  // "irsa", "pod-identity" or "none"
	Role           playbooks.Target   `json:"role"` // its uid is empty where there is none
	ARN            string             `json:"arn"`
	Account        string             `json:"account"`
	ServiceAccount string             `json:"service_account"` // namespace/name
	Association    string             `json:"association"`     // of EKS Pod Identity
	Attached       []Policy           `json:"attached"`
	Inline         []Policy           `json:"inline"`
	Dangerous      []string           `json:"dangerous"`   // of all policies
	MaxSession     int                `json:"max_session"` // seconds
	LastUsed       time.Time          `json:"last_used"`
	LastRegion     string             `json:"last_region"`
	SharedWith     []string           `json:"shared_with"` // other service accounts with the role, bounded
	Trust          []string           `json:"trust"`
	Keys           []playbooks.Target `json:"keys"` // access keys in the pod's environment
	Users          []playbooks.Target `json:"users"`
	Missing        []string           `json:"missing"` // what could not be found out, and why
}

// The ways in which a pod gets credentials.
const (
	howIRSA = "irsa"
	howPod  = "pod-identity"
	howNone = "none"
)

// The bounds of what is looked at.
const (
	maxPolicies     = 12
	maxShared       = 20
	maxAssociations = 20
)

// identity is `enrich: aws.identity`.
type identity struct {
	account *Account
	client  kubernetes.Interface
}

var _ activities.Observer = (*identity)(nil)

func (*identity) Spec() playbooks.ActionSpec {
	cloud := append([]playbooks.IAMPermission{
		roleRight("iam:GetRole", "iam:ListRolePolicies", "iam:GetRolePolicy", "iam:ListAttachedRolePolicies"),
		{Actions: []string{"iam:GetPolicy", "iam:GetPolicyVersion"}, Resources: []string{"*"}},
		{Actions: []string{"iam:GetAccessKeyLastUsed"}, Resources: []string{"*"}},
		userRight("iam:GetUser"),
	}, associationRights()...)
	rights := append(podRights(), playbooks.KubernetesPermission{Groups: []string{""}, Resources: []string{"serviceaccounts"}, Verbs: []string{"get", "list"}})
	return playbooks.ActionSpec{
		Name: "aws.identity", Verb: playbooks.VerbEnrich, Class: playbooks.ClassObserve, AttemptTimeout: 30 * time.Second,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, Outputs: Identity{},
		Doc:        "Find out who the pod is in AWS, what its role may do, and who else uses it.",
		PlanPermissions: rights, ApplyPermissions: rights, PlanIAMPermissions: cloud, ApplyIAMPermissions: cloud,
	}
}

// seeker gathers an identity; what it may not see it notes as missing.
type seeker struct {
	*identity
	out Identity
}

func (s *seeker) missing(what string, err error) {
	s.out.Missing = append(s.out.Missing, what+": "+clip(err.Error(), 300))
}

// Observe finds the identity. It fails only where trying again may help.
func (a *identity) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if err := a.account.ready(); err != nil {
		return activities.Observation{}, err
	}
	s := &seeker{identity: a, out: Identity{How: howNone}}
	if r.Target.Kind != playbooks.TargetPod {
		s.out.Missing = []string{"a container outside of Kubernetes has no identity in AWS of its own; its machine's is not looked at"}
		return activities.Observation{Outputs: s.out}, nil
	}
	pod, err := readPod(ctx, a.client, r.Target)
	if err != nil {
		return activities.Observation{}, whenPlanning(err)
	}
	s.out.ServiceAccount = pod.namespace + "/" + pod.account
	if err := s.role(ctx, pod); err != nil {
		return activities.Observation{}, err
	}
	for _, key := range pod.keys {
		s.key(ctx, pod, key)
	}
	return activities.Observation{Outputs: s.out}, nil
}

// role finds the role by both ways. An SDK uses the annotation's first, so it counts where there are both.
func (s *seeker) role(ctx context.Context, pod podInfo) error {
	var arn string
	sa, err := s.client.CoreV1().ServiceAccounts(pod.namespace).Get(ctx, pod.account, metav1.GetOptions{})
	switch {
	case apierrors.IsForbidden(err):
		s.missing("service account", err)
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("read service account %s/%s: %w", pod.namespace, pod.account, err)
	case err == nil:
		arn = sa.Annotations[roleAnnotation]
	}
	found, err := s.account.association(ctx, pod.namespace, pod.account)
	if err := s.forgive("EKS Pod Identity", err); err != nil {
		return err
	}
	switch {
	case arn != "":
		s.out.How = howIRSA
		if found != nil {
			s.out.Missing = append(s.out.Missing, "the service account has EKS Pod Identity for "+clip(found.role, 200)+" besides; the annotation's role comes first and is the one shown")
		}
	case found != nil:
		s.out.How, s.out.Association, arn = howPod, found.id, found.role
		if found.onward != "" {
			arn = found.onward // what the workload acts as in the end
		}
	default:
		return nil
	}
	s.out.ARN, s.out.Account = clip(arn, 300), clip(accountOf(arn), 20)
	p, err := s.account.roleByARN(ctx, arn)
	if err != nil {
		return s.forgive("role", err)
	}
	s.out.Role = p.target(pod.namespace, pod.account)
	s.out.MaxSession = int(p.longest / time.Second)
	if used := p.role.Role.RoleLastUsed; used != nil {
		s.out.LastUsed, s.out.LastRegion = awssdk.ToTime(used.LastUsedDate), clip(awssdk.ToString(used.Region), 30)
	}
	if t, err := readTrust(p.trust); err != nil {
		s.missing("trust policy", err)
	} else {
		s.out.Trust = t.summarise()
	}
	for _, part := range []struct {
		what string
		look func(context.Context, principal) error
	}{{"attached policies", s.attached}, {"inline policies", s.inline}} {
		if err := s.forgive(part.what, part.look(ctx, p)); err != nil {
			return err
		}
	}
	return s.shared(ctx, pod, arn)
}

// forgive notes a refusal as missing; other errors may pass when tried again.
func (s *seeker) forgive(what string, err error) error {
	if _, ok := activities.AsRefusal(err); ok {
		s.missing(what, err)
		return nil
	}
	return err
}

func (s *seeker) attached(ctx context.Context, p principal) error {
	out, err := s.account.iam.ListAttachedRolePolicies(ctx, &iam.ListAttachedRolePoliciesInput{RoleName: &p.Name})
	if err != nil {
		return fail(err, "iam:ListAttachedRolePolicies", fmt.Sprintf("list the policies attached to %s", p))
	}
	for i, attached := range out.AttachedPolicies {
		if i == maxPolicies {
			s.missing("attached policies", fmt.Errorf("%d are attached, %d were looked at", len(out.AttachedPolicies), maxPolicies))
			break
		}
		text, err := s.account.managed(ctx, awssdk.ToString(attached.PolicyArn))
		if err := s.forgive("policy "+awssdk.ToString(attached.PolicyName), err); err != nil {
			return err
		}
		if text != "" {
			s.out.Attached = append(s.out.Attached, s.policy(awssdk.ToString(attached.PolicyName), text))
		}
	}
	return nil
}

// managed reads the document that is in force of a managed policy.
func (a *Account) managed(ctx context.Context, arn string) (string, error) {
	policy, err := a.iam.GetPolicy(ctx, &iam.GetPolicyInput{PolicyArn: &arn})
	if err != nil {
		return "", fail(err, "iam:GetPolicy", "read policy "+arn)
	}
	version, err := a.iam.GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{PolicyArn: &arn, VersionId: policy.Policy.DefaultVersionId})
	if err != nil {
		return "", fail(err, "iam:GetPolicyVersion", "read policy "+arn)
	}
	return plainText(awssdk.ToString(version.PolicyVersion.Document)), nil
}

func (s *seeker) inline(ctx context.Context, p principal) error {
	names, err := s.account.inlineNames(ctx, p)
	if err != nil {
		return err
	}
	for i, name := range names {
		if i == maxPolicies {
			s.missing("inline policies", fmt.Errorf("%d are there, %d were looked at", len(names), maxPolicies))
			break
		}
		text, err := s.account.inline(ctx, p, name)
		if err != nil {
			return err
		}
		s.out.Inline = append(s.out.Inline, s.policy(name, text))
	}
	return nil
}

func (s *seeker) policy(name, text string) Policy {
	p := Policy{Name: clip(name, 128), Dangerous: dangerous(text)}
	for _, words := range p.Dangerous {
		s.out.Dangerous = append(s.out.Dangerous, fmt.Sprintf("%s by policy %s", words, p.Name))
	}
	return p
}

// shared finds who else has the role, of the cluster's own.
func (s *seeker) shared(ctx context.Context, pod podInfo, arn string) error {
	add := func(namespace, name, how string) {
		if (namespace != pod.namespace || name != pod.account) && len(s.out.SharedWith) < maxShared {
			s.out.SharedWith = append(s.out.SharedWith, fmt.Sprintf("%s/%s (%s)", namespace, name, how))
		}
	}
	list, err := s.client.CoreV1().ServiceAccounts("").List(ctx, metav1.ListOptions{ResourceVersion: "0", Limit: 5000})
	if err != nil {
		s.missing("who else is annotated with the role", err)
	} else {
		for i := range list.Items {
			if list.Items[i].Annotations[roleAnnotation] == arn {
				add(list.Items[i].Namespace, list.Items[i].Name, howIRSA)
			}
		}
	}
	if s.account.Cluster == "" {
		return nil // said already
	}
	others, err := s.account.associations(ctx, arn)
	if len(others) > 0 {
		for _, o := range others {
			add(o[0], o[1], howPod)
		}
	}
	var more errMore
	if errors.As(err, &more) {
		s.missing("who else has the role by EKS Pod Identity", err)
		return nil
	}
	return s.forgive("who else has the role by EKS Pod Identity", err)
}

// key finds whose an access key is.
func (s *seeker) key(ctx context.Context, pod podInfo, id string) {
	out, err := s.account.iam.GetAccessKeyLastUsed(ctx, &iam.GetAccessKeyLastUsedInput{AccessKeyId: &id})
	if err != nil {
		s.missing("key "+id, fail(err, "iam:GetAccessKeyLastUsed", "ask whose it is"))
		return
	}
	user, err := s.account.readUser(ctx, awssdk.ToString(out.UserName))
	if err != nil {
		s.missing("key "+id, err)
		return
	}
	s.out.Keys = append(s.out.Keys, playbooks.Target{Kind: playbooks.TargetKey, Namespace: pod.namespace, Name: user.Name, UID: id, Account: accountOf(user.ARN)})
	s.out.Users = append(s.out.Users, user.target(pod.namespace, pod.account))
}
