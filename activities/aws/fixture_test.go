package aws_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	testaws "stanch/testenv/aws"
	lacking "stanch/testenv/prereq"
)

// sharedMoto is shared by all tests, which use unique names. It is nil if moto is not installed.
var sharedMoto *testaws.Moto

func TestMain(m *testing.M) { os.Exit(runWithMoto(m)) }

func runWithMoto(m *testing.M) int {
	for _, v := range testaws.CredentialEnv() {
		name, value, _ := strings.Cut(v, "=")
		_ = os.Setenv(name, value)
	}
	var err error
	if sharedMoto, err = testaws.Open(context.Background()); err != nil && !errors.Is(err, testaws.ErrNoMoto) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if sharedMoto != nil {
		defer func() { _ = sharedMoto.Close() }()
	}
	return m.Run()
}

// fixture is an account behind a fake endpoint of one test, and the actions on it.
type fixture struct {
	*testaws.FakeAWS
	t       *testing.T
	actions map[string]activities.Action
	iam     *iam.Client // moto itself
}

func newFixture(t *testing.T, client kubernetes.Interface, protected ...string) *fixture {
	t.Helper()
	if sharedMoto == nil {
		lacking.SkipOrFail(t, "%v", testaws.ErrNoMoto)
	}
	s := sharedMoto.NewFake(t)
	account, err := aws.Open(t.Context(), aws.Options{
		Region: testaws.Region, Endpoint: s.URL, Cluster: "shop",
		ProtectedRoles: protected,
	})
	require.NoError(t, err)
	w := &fixture{FakeAWS: s, t: t, iam: sharedMoto.IAMClient(), actions: map[string]activities.Action{}}
	for _, a := range aws.Actions(account, client) {
		w.actions[a.Spec().Name] = a
	}
	return w
}

func (w *fixture) findContainment(name string) activities.Containment {
	w.t.Helper()
	a, ok := w.actions[name].(activities.Containment)
	require.True(w.t, ok, name)
	return a
}

// uniqueName returns a name that no other test uses.
func (w *fixture) uniqueName(of string) string {
	return fmt.Sprintf("%s-%08x", of, crc32.ChecksumIEEE([]byte(w.t.Name())))
}

const oidcProviderARN = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF"

// irsaTrustPolicy is a trust policy as people write it, with spaces that a restore must keep.
const irsaTrustPolicy = `{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Principal": {"Federated": "` + oidcProviderARN + `"},
      "Action": "sts:AssumeRoleWithWebIdentity",
      "Condition": {"StringEquals": {
        "oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF:sub": ["system:serviceaccount:shop:web", "system:serviceaccount:shop:cart"],
        "oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF:aud": "sts.amazonaws.com"
      }}
    }
  ]
}`

const podIdentityTrustPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"pods.eks.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession"]}]}`

// unrelatedInlinePolicy is an inline policy of the role's owner.
const unrelatedInlinePolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject","sts:AssumeRole","ec2:DescribeInstances"],"Resource":"*"}]}`

func (w *fixture) createRole(of, trust string, longest time.Duration) playbooks.Target {
	w.t.Helper()
	name := w.uniqueName(of)
	out, err := w.iam.CreateRole(w.t.Context(), &iam.CreateRoleInput{
		RoleName: &name, AssumeRolePolicyDocument: &trust,
		MaxSessionDuration: awssdk.Int32(int32(longest / time.Second)),
	})
	require.NoError(w.t, err)
	w.addInlinePolicy(name)
	return playbooks.Target{Kind: playbooks.TargetRole, Name: name, UID: *out.Role.RoleId, ARN: *out.Role.Arn}
}

func (w *fixture) addInlinePolicy(role string) {
	w.t.Helper()
	_, err := w.iam.PutRolePolicy(w.t.Context(), &iam.PutRolePolicyInput{
		RoleName:   &role,
		PolicyName: awssdk.String("its-own"), PolicyDocument: awssdk.String(unrelatedInlinePolicy),
	})
	require.NoError(w.t, err)
}

func (w *fixture) deleteRole(name string) {
	w.t.Helper()
	for policy := range w.inlinePolicies(name) {
		_, err := w.iam.DeleteRolePolicy(w.t.Context(), &iam.DeleteRolePolicyInput{RoleName: &name, PolicyName: &policy})
		require.NoError(w.t, err)
	}
	_, err := w.iam.DeleteRole(w.t.Context(), &iam.DeleteRoleInput{RoleName: &name})
	require.NoError(w.t, err)
}

// createUser creates a user with a key, and returns both as targets.
func (w *fixture) createUser(of string) (user, key playbooks.Target) {
	w.t.Helper()
	name := w.uniqueName(of)
	out, err := w.iam.CreateUser(w.t.Context(), &iam.CreateUserInput{UserName: &name})
	require.NoError(w.t, err)
	_, err = w.iam.PutUserPolicy(w.t.Context(), &iam.PutUserPolicyInput{
		UserName:   &name,
		PolicyName: awssdk.String("its-own"), PolicyDocument: awssdk.String(unrelatedInlinePolicy),
	})
	require.NoError(w.t, err)
	made, err := w.iam.CreateAccessKey(w.t.Context(), &iam.CreateAccessKeyInput{UserName: &name})
	require.NoError(w.t, err)
	return playbooks.Target{Kind: playbooks.TargetUser, Name: name, UID: *out.User.UserId, ARN: *out.User.Arn},
		playbooks.Target{Kind: playbooks.TargetKey, Name: name, UID: *made.AccessKey.AccessKeyId}
}

// inlinePolicies returns a role's inline policies.
func (w *fixture) inlinePolicies(role string) map[string]string {
	w.t.Helper()
	list, err := w.iam.ListRolePolicies(w.t.Context(), &iam.ListRolePoliciesInput{RoleName: &role})
	require.NoError(w.t, err)
	out := map[string]string{}
	for _, name := range list.PolicyNames {
		one, err := w.iam.GetRolePolicy(w.t.Context(), &iam.GetRolePolicyInput{RoleName: &role, PolicyName: &name})
		require.NoError(w.t, err)
		out[name], err = url.QueryUnescape(*one.PolicyDocument)
		require.NoError(w.t, err)
	}
	return out
}

// stanchInlinePolicy returns the only inline policy that Stanch put.
func (w *fixture) stanchInlinePolicy(role string) (name, text string) {
	w.t.Helper()
	for n, doc := range w.inlinePolicies(role) {
		if strings.HasPrefix(n, "stanch-") {
			require.Empty(w.t, name, "two policies of Stanch")
			name, text = n, doc
		}
	}
	return name, text
}

func (w *fixture) trustPolicy(role string) string {
	w.t.Helper()
	out, err := w.iam.GetRole(w.t.Context(), &iam.GetRoleInput{RoleName: &role})
	require.NoError(w.t, err)
	text, err := url.QueryUnescape(*out.Role.AssumeRolePolicyDocument)
	require.NoError(w.t, err)
	return text
}

func (w *fixture) setTrustPolicy(role, text string) {
	w.t.Helper()
	_, err := w.iam.UpdateAssumeRolePolicy(w.t.Context(), &iam.UpdateAssumeRolePolicyInput{
		RoleName:       &role,
		PolicyDocument: &text,
	})
	require.NoError(w.t, err)
}

// principalState returns everything about a principal that an action could change.
func (w *fixture) principalState(t playbooks.Target) string {
	w.t.Helper()
	state := map[string]any{}
	if t.Kind == playbooks.TargetRole {
		state["inline"], state["trust"] = w.inlinePolicies(t.Name), w.trustPolicy(t.Name)
	} else {
		policies, err := w.iam.ListUserPolicies(w.t.Context(), &iam.ListUserPoliciesInput{UserName: &t.Name})
		require.NoError(w.t, err)
		keys, err := w.iam.ListAccessKeys(w.t.Context(), &iam.ListAccessKeysInput{UserName: &t.Name})
		require.NoError(w.t, err)
		tags, err := w.iam.ListUserTags(w.t.Context(), &iam.ListUserTagsInput{UserName: &t.Name})
		require.NoError(w.t, err)
		for _, k := range keys.AccessKeyMetadata {
			state[*k.AccessKeyId] = k.Status
		}
		state["policies"], state["tags"] = policies.PolicyNames, tags.Tags
	}
	raw, err := json.Marshal(state)
	require.NoError(w.t, err)
	return string(raw)
}

// countWriteCalls returns the number of calls that changed something.
func (w *fixture) countWriteCalls() int {
	n := 0
	for _, action := range []string{
		"PutRolePolicy", "PutUserPolicy", "DeleteRolePolicy", "DeleteUserPolicy",
		"UpdateAssumeRolePolicy", "UpdateAccessKey", "TagUser", "UntagUser",
	} {
		n += len(w.CallTimes(action))
	}
	return n
}

// newLeaseRequest returns a request in the form of a lease.
func newLeaseRequest(name string, target playbooks.Target, hold time.Duration, params string) activities.Request {
	r := activities.Request{
		Action: name, Target: target, Duration: hold, ExpiresAt: time.Now().Add(hold),
		LeaseID: "LSE-0123456789ABCDEF0123", IncidentRef: activities.IncidentRef{ID: "INC-01TEST"},
	}
	if params != "" {
		r.Params = json.RawMessage(params)
	}
	return r
}

// planWithoutLease returns the plan that people see, without a lease.
func (w *fixture) planWithoutLease(r activities.Request) activities.Plan {
	w.t.Helper()
	r.LeaseID = ""
	plan, err := w.findContainment(r.Action).Plan(w.t.Context(), r)
	require.NoError(w.t, err)
	return plan
}

// planAndApply plans and applies.
func (w *fixture) planAndApply(r activities.Request) (activities.Plan, activities.Effect) {
	w.t.Helper()
	plan := w.planWithoutLease(r)
	effect, err := w.findContainment(r.Action).Apply(w.t.Context(), r, plan.PriorState, attestation.Envelope{})
	require.NoError(w.t, err)
	return plan, effect
}

func (w *fixture) verify(r activities.Request, plan activities.Plan) (bool, string) {
	w.t.Helper()
	holds, detail, err := w.findContainment(r.Action).Verify(w.t.Context(), r, plan.PriorState)
	require.NoError(w.t, err)
	return holds, detail
}

// releaseGrant is a release grant that the activity has already verified.
var releaseGrant = &attestation.Envelope{}

func (w *fixture) undo(r activities.Request, plan activities.Plan, grant *attestation.Envelope) *activities.Drift {
	w.t.Helper()
	drift, err := w.findContainment(r.Action).Undo(w.t.Context(), r, plan.PriorState, grant)
	require.NoError(w.t, err)
	return drift
}

func wantRefusal(t *testing.T, err error, words ...string) {
	t.Helper()
	refusal, ok := activities.AsRefusal(err)
	require.True(t, ok, "a refusal is wanted, and this came: %v", err)
	for _, word := range words {
		require.Contains(t, refusal.Reason, word)
	}
}
