package aws_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	testaws "stanch/testenv/aws"
	lab "stanch/testenv/kube"
)

// clusterFixture is a namespace of a real cluster with pods whose service accounts have roles.
type clusterFixture struct {
	*fixture
	cluster   *lab.Cluster
	namespace string
}

// restrictedClient returns a client with exactly the permissions that the specs declare.
func (e *clusterFixture) restrictedClient(t *testing.T) kubernetes.Interface {
	t.Helper()
	var rules []rbacv1.PolicyRule
	for _, a := range aws.Actions(nil, nil) {
		for _, r := range a.Spec().ApplyPermissions {
			rules = append(rules, rbacv1.PolicyRule{APIGroups: r.Groups, Resources: r.Resources, Verbs: r.Verbs})
		}
	}
	client, err := kube.NewClient(e.cluster.ConfigWithRules(t, e.namespace, "stanch", rules...))
	require.NoError(t, err)
	return client
}

func (e *clusterFixture) createPod(t *testing.T, name, account string, env ...corev1.EnvVar) playbooks.Target {
	t.Helper()
	pod := lab.NewPod(name, lab.BusyboxImage, "sleep", "600")
	pod.Spec.ServiceAccountName, pod.Spec.Containers[0].Env = account, env
	made, err := e.cluster.Client().CoreV1().Pods(e.namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	return playbooks.Target{Kind: playbooks.TargetPod, Namespace: e.namespace, Name: name, UID: string(made.UID)}
}

func (e *clusterFixture) createServiceAccount(t *testing.T, name, role string) {
	t.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if role != "" {
		sa.Annotations = map[string]string{"eks.amazonaws.com/role-arn": role}
	}
	_, err := e.cluster.Client().CoreV1().ServiceAccounts(e.namespace).Create(t.Context(), sa, metav1.CreateOptions{})
	require.NoError(t, err)
}

func (e *clusterFixture) createAssociation(account, role string) {
	e.AddAssociation(testaws.PodIdentityAssociation{
		Cluster: "shop", Namespace: e.namespace, ServiceAccount: account,
		RoleARN: role,
	})
}

func (e *clusterFixture) observeIdentity(t *testing.T, pod playbooks.Target) aws.Identity {
	t.Helper()
	seen, err := e.actions["aws.identity"].(activities.Observer).Observe(t.Context(), newLeaseRequest("aws.identity", pod,
		0, ""))
	require.NoError(t, err)
	out, ok := seen.Outputs.(aws.Identity)
	require.True(t, ok)
	return out
}

func TestPodIdentity(t *testing.T) {
	cluster := lab.Shared(t)
	e := &clusterFixture{cluster: cluster, namespace: cluster.NewNamespace(t)}
	e.fixture = newFixture(t, e.restrictedClient(t))
	pods, web := e.createRole("pods", podIdentityTrustPolicy, 6*time.Hour), e.createRole("web", irsaTrustPolicy,
		2*time.Hour)
	_, err := e.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
		RoleName: &web.Name,
		PolicyName: awssdk.String(
			"admin",
		),
		PolicyDocument: awssdk.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`),
	})
	require.NoError(t, err)
	e.createServiceAccount(t, "eks", "")
	e.createServiceAccount(t, "eks2", "")
	e.createServiceAccount(t, "web", web.ARN)
	e.createServiceAccount(t, "web2", web.ARN)
	e.createServiceAccount(t, "plain", "")
	e.createServiceAccount(t, "foreign", "arn:aws:iam::999999999999:role/"+web.Name)
	e.createAssociation("eks", pods.ARN)
	e.createAssociation("eks2", pods.ARN)

	t.Run("EKS Pod Identity", func(t *testing.T) {
		got := e.observeIdentity(t, e.createPod(t, "eks", "eks"))
		require.Equal(t, "pod-identity", got.CredentialSource)
		require.Equal(t, playbooks.Target{
			Kind: playbooks.TargetRole, Namespace: e.namespace, Name: pods.Name, UID: pods.UID,
			ARN: pods.ARN, Account: testaws.AccountID, ServiceAccount: "eks",
		}, got.Role)
		require.Equal(t, 6*3600, got.MaxSessionSeconds)
		require.Equal(t, []string{e.namespace + "/eks2 (pod-identity)"}, got.SharedWith)
		require.Equal(t, []string{"trusts pods.eks.amazonaws.com"}, got.TrustSummary)
		require.Equal(t, "a-0", got.Association)
		require.Empty(t, got.Missing)
	})
	t.Run("IRSA", func(t *testing.T) {
		got := e.observeIdentity(t, e.createPod(t, "web", "web"))
		require.Equal(t, "irsa", got.CredentialSource)
		require.Equal(t, web.UID, got.Role.UID)
		require.Equal(t, e.namespace+"/web", got.ServiceAccount)
		require.Equal(t, []string{e.namespace + "/web2 (irsa)"}, got.SharedWith)
		require.Contains(t, got.RiskyPermissions, "do anything (*) through policy admin")
		require.Contains(t, got.TrustSummary[0], "system:serviceaccount:shop:cart, system:serviceaccount:shop:web")
	})
	t.Run("none, and a key in the environment", func(t *testing.T) {
		user, key := e.createUser("u")
		got := e.observeIdentity(t, e.createPod(t, "plain", "plain", corev1.EnvVar{
			Name:  "AWS_ACCESS_KEY_ID",
			Value: key.UID,
		}))
		require.Equal(t, "none", got.CredentialSource)
		require.Empty(t, got.Role.UID)
		require.Equal(t, key.UID, got.AccessKeys[0].UID)
		require.Equal(t, user.Name, got.AccessKeys[0].Name)
		require.Equal(t, user.UID, got.AccessKeyUsers[0].UID)
	})
	t.Run("another account's role of the same name", func(t *testing.T) {
		got := e.observeIdentity(t, e.createPod(t, "foreign", "foreign"))
		require.Equal(t, "999999999999", got.Account)
		require.Empty(t, got.Role.UID)
		require.Contains(t, got.Missing[0], "belongs to account 999999999999")
	})
	t.Run("an annotation that is no role", func(t *testing.T) {
		for i, text := range []string{
			"x", "arn:aws:iam::123456789012:role/", "arn:aws:iam::123456789012:role/a b",
			"arn:aws:iam::123456789012:user/" + web.Name,
		} {
			account := fmt.Sprintf("odd-%d", i)
			e.createServiceAccount(t, account, text)
			got := e.observeIdentity(t, e.createPod(t, account, account))
			require.Empty(t, got.Role.UID)
			require.Contains(t, got.Missing[0], "invalid role ARN")
		}
	})
	t.Run("what it may not see is named", func(t *testing.T) {
		e.DenyAction("ListAttachedRolePolicies")
		e.DenyAction("ListPodIdentityAssociations")
		defer e.FailAction("ListPodIdentityAssociations", "")
		defer e.FailAction("ListAttachedRolePolicies", "")
		got := e.observeIdentity(t, e.createPod(t, "blind", "web"))
		require.Equal(t, web.UID, got.Role.UID)
		missing := fmt.Sprint(got.Missing)
		require.Contains(t, missing, "iam:ListAttachedRolePolicies")
		require.Contains(t, missing, "eks:ListPodIdentityAssociations")
	})
	t.Run("a pod that is gone", func(t *testing.T) {
		gone := e.createPod(t, "gone", "web")
		gone.UID = "another"
		_, err := e.actions["aws.identity"].(activities.Observer).Observe(t.Context(), newLeaseRequest("aws.identity", gone,
			0, ""))
		wantRefusal(t, err, "is gone")
	})
	t.Run("its outputs are what a playbook reads", func(t *testing.T) {
		catalog := playbooks.Catalog{}
		for _, a := range aws.Actions(nil, nil) {
			catalog[a.Spec().Name] = a.Spec()
		}
		program, problems := playbooks.LoadPlaybook(
			"p.yaml",
			[]byte(
				"playbook: p\nmatch: { when: \"true\" }\nsteps:\n  - enrich: aws.identity\n    id: cloud\n  - evidence: aws.cloudtrail\n    target: cloud.role\n",
			),
			catalog,
		)
		require.NoError(t, problems.Err())
		raw, err := json.Marshal(e.observeIdentity(t, e.createPod(t, "read", "web")))
		require.NoError(t, err)
		env, err := program.NewEvalEnv(playbooks.Incident{}, nil)
		require.NoError(t, err)
		require.NoError(t, program.RecordOutcome(env, &program.Steps[0],
			playbooks.StepEnd{Outcome: playbooks.OutcomeSucceeded, Outputs: raw, Targets: 1}))
		targets, err := program.EvalTargets(&program.Steps[1], env)
		require.NoError(t, err)
		require.Equal(t, web.UID, targets[0].UID)
	})
	t.Run("deny", func(t *testing.T) { testDenyPod(t, e, pods) })
}

func testDenyPod(t *testing.T, e *clusterFixture, role playbooks.Target) {
	e.t = t
	one, two := e.createPod(t, "one", "eks"), e.createPod(t, "two", "eks")
	first, second := newLeaseRequest("aws.role.deny-pod", one, 6*time.Hour, ""), newLeaseRequest("aws.role.deny-pod", two,
		6*time.Hour, "")
	second.LeaseID = "LSE-SECOND"
	before := e.principalState(role)

	plan, effect := e.planAndApply(first)
	require.Equal(t, playbooks.OutcomeChanged, effect.Outcome, effect.Reason)
	require.Empty(t, plan.Warnings)
	require.Contains(t, plan.Changes[0], role.UID)
	_, text := e.stanchInlinePolicy(role.Name)
	require.Contains(t, text, `"aws:PrincipalTag/kubernetes-pod-uid":"`+one.UID+`"`)
	require.True(t, e.planWithoutLease(first).AlreadyHeld)
	require.False(t, e.planWithoutLease(second).AlreadyHeld, "its sibling is free")

	// Two pods of one role have separate leases: each ends by itself.
	other, _ := e.planAndApply(second)
	require.Len(t, e.inlinePolicies(role.Name), 3)
	require.Nil(t, e.undo(first, plan, releaseGrant))
	holds, detail := e.verify(second, other)
	require.True(t, holds, detail)
	holds, _ = e.verify(first, plan)
	require.False(t, holds)

	// Credentials stolen from a pod outlive it, and so does the deny.
	now := int64(0)
	require.NoError(t, e.cluster.Client().CoreV1().Pods(e.namespace).Delete(t.Context(), "two",
		metav1.DeleteOptions{GracePeriodSeconds: &now}))
	lab.Eventually(t, 30*time.Second, "the pod to go", func() error {
		if _, err := e.cluster.Client().CoreV1().Pods(e.namespace).Get(t.Context(), "two", metav1.GetOptions{}); err == nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	holds, detail = e.verify(second, other)
	require.True(t, holds, detail)
	_, err := e.findContainment(second.Action).Apply(t.Context(), second, other.PriorState, attestation.Envelope{})
	require.NoError(t, err)
	require.Nil(t, e.undo(second, other, releaseGrant))
	require.Equal(t, before, e.principalState(role))

	short := newLeaseRequest("aws.role.deny-pod", one, time.Hour, "")
	require.Contains(t, e.planWithoutLease(short).Warnings[0], "valid for up to 6h")
	_, err = e.findContainment("aws.role.deny-pod").Plan(t.Context(), newLeaseRequest("aws.role.deny-pod",
		e.createPod(t, "irsa", "web"), 6*time.Hour, ""))
	wantRefusal(t, err, "no EKS Pod Identity association", "aws.irsa.untrust")

	e.createServiceAccount(t, "untagged", "")
	e.AddAssociation(testaws.PodIdentityAssociation{
		Cluster: "shop", Namespace: e.namespace, ServiceAccount: "untagged",
		RoleARN: role.ARN, Untagged: true,
	})
	_, err = e.findContainment("aws.role.deny-pod").Plan(t.Context(), newLeaseRequest("aws.role.deny-pod",
		e.createPod(t, "untagged", "untagged"), 6*time.Hour, ""))
	wantRefusal(t, err, "no session tags")
	_, err = e.findContainment("aws.role.deny-pod").Plan(t.Context(), newLeaseRequest("aws.role.deny-pod", two,
		6*time.Hour, ""))
	wantRefusal(t, err, "is gone")

	big := longString(9800)
	_, err = e.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
		RoleName: &role.Name,
		PolicyName: awssdk.String(
			"big",
		),
		PolicyDocument: awssdk.String(
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::` + big +
				`"}]}`,
		),
	})
	require.NoError(t, err)
	_, err = e.findContainment("aws.role.deny-pod").Plan(t.Context(), newLeaseRequest("aws.role.deny-pod", one,
		6*time.Hour, ""))
	wantRefusal(t, err, "allows 10240 in total")
}
