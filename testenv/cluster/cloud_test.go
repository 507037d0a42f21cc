package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/testenv/aws"
	"stanch/testenv/harness"
	"stanch/testenv/kube"
	"stanch/worker/config"
)

const (
	oidcProviderARN        = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/LAB"
	podIdentityTrustPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"pods.eks.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession"]}]}`
	irsaTrustPolicy        = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"` + oidcProviderARN + `"},"Action":"sts:AssumeRoleWithWebIdentity",
  "Condition":{"StringEquals":{"oidc.eks.eu-central-1.amazonaws.com/id/LAB:sub":"system:serviceaccount:stanch-drill:default"}}}]}`
)

// awsAccount is an AWS account whose state is read from moto itself.
type awsAccount struct {
	*aws.FakeAWS
	t *testing.T
}

func (a awsAccount) createRole(name, trust string) string {
	a.t.Helper()
	out, err := a.IAMClient().CreateRole(a.t.Context(), &iam.CreateRoleInput{
		RoleName:                 &name,
		AssumeRolePolicyDocument: &trust,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return *out.Role.Arn
}

// roleState is the role's trust policy and its inline policies, in one text.
func (a awsAccount) roleState(ctx context.Context, name string) (string, error) {
	role, err := a.IAMClient().GetRole(ctx, &iam.GetRoleInput{RoleName: &name})
	if err != nil {
		return "", err
	}
	list, err := a.IAMClient().ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &name})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString(awssdk.ToString(role.Role.AssumeRolePolicyDocument))
	for _, policy := range list.PolicyNames {
		one, err := a.IAMClient().GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: &name, PolicyName: &policy})
		if err != nil {
			continue // it went between the two
		}
		out.WriteString("\n" + policy + " " + awssdk.ToString(one.PolicyDocument))
	}
	return url.QueryUnescape(out.String())
}

// collectRoleStates gathers the states that a role goes through until ctx ends.
func (a awsAccount) collectRoleStates(ctx context.Context, name string) []string {
	var out []string
	for ctx.Err() == nil {
		if now, err := a.roleState(ctx, name); err == nil && !slices.Contains(out, now) {
			out = append(out, now)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return out
}

func TestDrillDeniesPodRole(t *testing.T) {
	lab := kube.Shared(t)
	harness.SkipUnlessSupported(t)
	if _, err := lab.ImportAttack(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := awsAccount{aws.StartFake(t), t}
	// What a terminated workflow left is looked for when Stanch starts: one whose end has come, and one whose has not.
	a.createRole("orphaned", podIdentityTrustPolicy)
	for name, year := range map[string]string{"stanch-revoke-LSE-OLD": "2026", "stanch-revoke-LSE-NEW": "2100"} {
		doc := `{"Version":"2012-10-17","Statement":[{"Sid":"StanchUntil` + year +
			`0101T000000Z","Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"` +
			year + `-01-01T00:00:00Z","aws:TokenIssueTime":"2026-01-01T00:00:00Z"}}}]}`
		if _, err := a.IAMClient().PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
			RoleName:   awssdk.String("orphaned"),
			PolicyName: &name, PolicyDocument: &doc,
		}); err != nil {
			t.Fatal(err)
		}
	}
	s := harness.Start(t, filepath.Join(programDir, "stanch"), harness.Options{
		Config: fmt.Sprintf(
			"phase: 2\nscopes: [{name: hosts, namespaces: [\"\"], phase: 1}]\naws: {region: %s, endpoint: \"%s\", cluster: lab}\n",
			aws.Region,
			a.URL,
		),
		Env: aws.CredentialEnv(),
		Args: []string{
			"--kubeconfig", lab.Kubeconfig, "--cri", lab.CRISocket, "--node",
			lab.NodeName,
		},
	})
	drill := func(t *testing.T, role string) (drillOutput, []string) {
		t.Helper()
		before, err := a.roleState(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		states := make(chan []string, 1)
		go func() { states <- a.collectRoleStates(ctx, role) }()
		args := []string{"drill", "credentials", "--kubeconfig", lab.Kubeconfig, "--image", kube.AttackImage, "-o", "json"}
		if strings.HasPrefix(role, config.DrillRolePrefix) {
			args = append(args, "--role", role)
		}
		stdout, stderr, code := s.Run(t, args...)
		cancel()
		var got drillOutput
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || !got.OK {
			t.Fatalf("the drill did not hold: %v, code %d\n%s\n%s", err, code, stdout, stderr)
		}
		after, err := a.roleState(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		if after != before {
			t.Errorf("the role is not as it was:\n%s\nand was\n%s", after, before)
		}
		for _, c := range got.Checks {
			t.Logf("%s: %s", c.Name, c.Detail)
		}
		return got, <-states
	}
	held := func(got drillOutput, action, outcome string) error {
		for _, l := range got.Leases {
			if l.Action == action && l.Outcome == outcome && l.Undone {
				return nil
			}
		}
		return fmt.Errorf("%s was not %s and undone: %+v", action, outcome, got.Leases)
	}

	kube.Eventually(t, 20*time.Second, "the sweeper to take away what its end has come for, and nothing else",
		func() error {
			now, err := a.roleState(t.Context(), "orphaned")
			if err == nil && (strings.Contains(now, "LSE-OLD") || !strings.Contains(now, "LSE-NEW")) {
				err = fmt.Errorf("it is %s", now)
			}
			return err
		})

	t.Run("by EKS Pod Identity, from this pod alone", func(t *testing.T) {
		role := "pods-of-the-drill"
		a.AddAssociation(aws.PodIdentityAssociation{
			Cluster: "lab", Namespace: config.DrillNamespace,
			ServiceAccount: "default", RoleARN: a.createRole(role, podIdentityTrustPolicy),
		})
		got, states := drill(t, role)
		if err := held(got, "aws.role.deny-pod", "changed"); err != nil {
			t.Error(err)
		}
		if !slices.ContainsFunc(states, func(s string) bool {
			return strings.Contains(s, `"Effect":"Deny"`) && strings.Contains(s, "aws:PrincipalTag/kubernetes-pod-uid")
		}) {
			t.Errorf("moto never had the deny: %q", states)
		}
		kube.Eventually(t, 60*time.Second, "the drill's namespace to be gone", func() error {
			_, err := lab.Client().CoreV1().Namespaces().Get(t.Context(), config.DrillNamespace, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return context.DeadlineExceeded
		})
	})

	t.Run("by IRSA, the whole role behind approval", func(t *testing.T) {
		role := config.DrillRolePrefix + "irsa"
		arn := a.createRole(role, irsaTrustPolicy)
		_, err := lab.Client().CoreV1().Namespaces().Create(t.Context(),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: config.DrillNamespace}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = lab.Client().CoreV1().Namespaces().Delete(context.WithoutCancel(t.Context()), config.DrillNamespace,
				metav1.DeleteOptions{})
		}()
		accounts := lab.Client().CoreV1().ServiceAccounts(config.DrillNamespace)
		kube.Eventually(t, 20*time.Second, "the service account", func() error {
			sa, err := accounts.Get(t.Context(), "default", metav1.GetOptions{})
			if err != nil {
				return err
			}
			sa.Annotations = map[string]string{"eks.amazonaws.com/role-arn": arn}
			_, err = accounts.Update(t.Context(), sa, metav1.UpdateOptions{})
			return err
		})
		got, states := drill(t, role)
		for action, outcome := range map[string]string{
			"aws.irsa.untrust":         "unverified",
			"aws.role.revoke-sessions": "changed",
		} {
			if err := held(got, action, outcome); err != nil {
				t.Error(err)
			}
		}
		if !slices.ContainsFunc(states, func(s string) bool {
			return strings.Contains(s, "aws:TokenIssueTime") && strings.Contains(s, `"Effect":"Deny","Principal"`)
		}) {
			t.Errorf("moto never had both denies: %q", states)
		}
	})
}
