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
	lacking "stanch/testenv/require"
)

// moto is shared: each test keeps to names of its own. It is nil where the machine has none.
var moto *testaws.Moto

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	for _, v := range testaws.Env() {
		name, value, _ := strings.Cut(v, "=")
		_ = os.Setenv(name, value)
	}
	var err error
	if moto, err = testaws.Open(context.Background()); err != nil && !errors.Is(err, testaws.ErrNoMoto) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if moto != nil {
		defer func() { _ = moto.Close() }()
	}
	return m.Run()
}

// world is an account behind a stand-in of the test's own, and the actions on it.
type world struct {
	*testaws.StandIn
	t       *testing.T
	actions map[string]activities.Action
	iam     *iam.Client // moto itself
}

func newWorld(t *testing.T, client kubernetes.Interface, protected ...string) *world {
	t.Helper()
	if moto == nil {
		lacking.Lacking(t, "%v", testaws.ErrNoMoto)
	}
	s := moto.StandIn(t)
	account, err := aws.Open(t.Context(), aws.Options{Region: testaws.Region, Endpoint: s.URL, Cluster: "shop", Protected: protected})
	require.NoError(t, err)
	w := &world{StandIn: s, t: t, iam: moto.IAM(), actions: map[string]activities.Action{}}
	for _, a := range aws.Actions(account, client) {
		w.actions[a.Spec().Name] = a
	}
	return w
}

func (w *world) contain(name string) activities.Containment {
	w.t.Helper()
	a, ok := w.actions[name].(activities.Containment)
	require.True(w.t, ok, name)
	return a
}

// name is one that no other test has.
func (w *world) name(of string) string {
	return fmt.Sprintf("%s-%08x", of, crc32.ChecksumIEEE([]byte(w.t.Name())))
}

const provider = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF"

// irsa is a trust policy as people write it, with spaces that a restore must keep.
const irsa = `{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Principal": {"Federated": "` + provider + `"},
      "Action": "sts:AssumeRoleWithWebIdentity",
      "Condition": {"StringEquals": {
        "oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF:sub": ["system:serviceaccount:shop:web", "system:serviceaccount:shop:cart"],
        "oidc.eks.eu-central-1.amazonaws.com/id/ABCDEF:aud": "sts.amazonaws.com"
      }}
    }
  ]
}`

const podsTrust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"pods.eks.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession"]}]}`

// allows is an inline policy of the role's own.
const allows = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject","sts:AssumeRole","ec2:DescribeInstances"],"Resource":"*"}]}`

func (w *world) role(of, trust string, longest time.Duration) playbooks.Target {
	w.t.Helper()
	name := w.name(of)
	out, err := w.iam.CreateRole(w.t.Context(), &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: &trust, MaxSessionDuration: awssdk.Int32(int32(longest / time.Second))})
	require.NoError(w.t, err)
	w.allow(name)
	return playbooks.Target{Kind: playbooks.TargetRole, Name: name, UID: *out.Role.RoleId, ARN: *out.Role.Arn}
}

func (w *world) allow(role string) {
	w.t.Helper()
	_, err := w.iam.PutRolePolicy(w.t.Context(), &iam.PutRolePolicyInput{RoleName: &role, PolicyName: awssdk.String("its-own"), PolicyDocument: awssdk.String(allows)})
	require.NoError(w.t, err)
}

func (w *world) deleteRole(name string) {
	w.t.Helper()
	for policy := range w.inline(name) {
		_, err := w.iam.DeleteRolePolicy(w.t.Context(), &iam.DeleteRolePolicyInput{RoleName: &name, PolicyName: &policy})
		require.NoError(w.t, err)
	}
	_, err := w.iam.DeleteRole(w.t.Context(), &iam.DeleteRoleInput{RoleName: &name})
	require.NoError(w.t, err)
}

// user makes a user with a key; targets of both.
func (w *world) user(of string) (user, key playbooks.Target) {
	w.t.Helper()
	name := w.name(of)
	out, err := w.iam.CreateUser(w.t.Context(), &iam.CreateUserInput{UserName: &name})
	require.NoError(w.t, err)
	_, err = w.iam.PutUserPolicy(w.t.Context(), &iam.PutUserPolicyInput{UserName: &name, PolicyName: awssdk.String("its-own"), PolicyDocument: awssdk.String(allows)})
	require.NoError(w.t, err)
	made, err := w.iam.CreateAccessKey(w.t.Context(), &iam.CreateAccessKeyInput{UserName: &name})
	require.NoError(w.t, err)
	return playbooks.Target{Kind: playbooks.TargetUser, Name: name, UID: *out.User.UserId, ARN: *out.User.Arn},
		playbooks.Target{Kind: playbooks.TargetKey, Name: name, UID: *made.AccessKey.AccessKeyId}
}

// inline reads a role's inline policies from moto.
func (w *world) inline(role string) map[string]string {
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

// mine is the one inline policy that Stanch put.
func (w *world) mine(role string) (name, text string) {
	w.t.Helper()
	for n, doc := range w.inline(role) {
		if strings.HasPrefix(n, "stanch-") {
			require.Empty(w.t, name, "two policies of Stanch")
			name, text = n, doc
		}
	}
	return name, text
}

func (w *world) trust(role string) string {
	w.t.Helper()
	out, err := w.iam.GetRole(w.t.Context(), &iam.GetRoleInput{RoleName: &role})
	require.NoError(w.t, err)
	text, err := url.QueryUnescape(*out.Role.AssumeRolePolicyDocument)
	require.NoError(w.t, err)
	return text
}

func (w *world) setTrust(role, text string) {
	w.t.Helper()
	_, err := w.iam.UpdateAssumeRolePolicy(w.t.Context(), &iam.UpdateAssumeRolePolicyInput{RoleName: &role, PolicyDocument: &text})
	require.NoError(w.t, err)
}

// all is everything about a principal that an action could change, as moto has it.
func (w *world) all(t playbooks.Target) string {
	w.t.Helper()
	state := map[string]any{}
	if t.Kind == playbooks.TargetRole {
		state["inline"], state["trust"] = w.inline(t.Name), w.trust(t.Name)
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

// writes counts the calls that change something.
func (w *world) writes() int {
	n := 0
	for _, action := range []string{"PutRolePolicy", "PutUserPolicy", "DeleteRolePolicy", "DeleteUserPolicy", "UpdateAssumeRolePolicy", "UpdateAccessKey", "TagUser", "UntagUser"} {
		n += len(w.Calls(action))
	}
	return n
}

// asked is a request as a lease makes it.
func asked(name string, target playbooks.Target, hold time.Duration, params string) activities.Request {
	r := activities.Request{Action: name, Target: target, For: hold, Until: time.Now().Add(hold), Lease: "LSE-0123456789ABCDEF0123", Incident: activities.Brief{ID: "INC-01TEST"}}
	if params != "" {
		r.Params = json.RawMessage(params)
	}
	return r
}

// planned is how people see it: without a lease.
func (w *world) planned(r activities.Request) activities.Plan {
	w.t.Helper()
	r.Lease = ""
	plan, err := w.contain(r.Action).Plan(w.t.Context(), r)
	require.NoError(w.t, err)
	return plan
}

// applied plans and applies.
func (w *world) applied(r activities.Request) (activities.Plan, activities.Effect) {
	w.t.Helper()
	plan := w.planned(r)
	effect, err := w.contain(r.Action).Apply(w.t.Context(), r, plan.Prior, attestation.Envelope{})
	require.NoError(w.t, err)
	return plan, effect
}

func (w *world) verified(r activities.Request, plan activities.Plan) (bool, string) {
	w.t.Helper()
	holds, detail, err := w.contain(r.Action).Verify(w.t.Context(), r, plan.Prior)
	require.NoError(w.t, err)
	return holds, detail
}

// granted is a release grant; the engine verified it before an action sees it.
var granted = &attestation.Envelope{}

func (w *world) undone(r activities.Request, plan activities.Plan, grant *attestation.Envelope) *activities.Drift {
	w.t.Helper()
	drift, err := w.contain(r.Action).Undo(w.t.Context(), r, plan.Prior, grant)
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
