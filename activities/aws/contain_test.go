package aws_test

import (
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

func TestContainmentsAreAppliedVerifiedAndUndoneExactly(t *testing.T) {
	for _, c := range []struct {
		action, params string
		target         func(*fixture) playbooks.Target
		outcome        playbooks.Outcome
		reason         string
	}{
		{"aws.role.revoke-sessions", "", func(w *fixture) playbooks.Target {
			return w.createRole("r", podIdentityTrustPolicy,
				time.Hour)
		}, playbooks.OutcomeChanged, "policy simulation"},
		{"aws.irsa.untrust", `{"service_accounts":["shop/web"]}`, func(w *fixture) playbooks.Target {
			return w.createRole("r",
				irsaTrustPolicy, time.Hour)
		}, playbooks.OutcomeUnverified, "cannot simulate trust policies"},
		{
			"aws.user.deny", "", func(w *fixture) playbooks.Target { u, _ := w.createUser("u"); return u },
			playbooks.OutcomeChanged, "policy simulation",
		},
		{
			"aws.key.disable", "", func(w *fixture) playbooks.Target { _, k := w.createUser("u"); return k },
			playbooks.OutcomeChanged, "inactive",
		},
	} {
		t.Run(c.action, func(t *testing.T) {
			w := newFixture(t, nil)
			r := newLeaseRequest(c.action, c.target(w), 2*time.Hour, c.params)
			before := w.principalState(r.Target)

			plan := w.planWithoutLease(r)
			require.Len(t, plan.Changes, 1)
			require.NotEmpty(t, plan.Warnings)
			require.False(t, plan.AlreadyHeld)
			require.Zero(t, w.countWriteCalls(), "a plan only reads")
			again, err := w.findContainment(r.Action).Plan(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, plan.Changes, again.Changes, "what people saw is what is approved: the lease is not in it")
			require.Equal(t, before, w.principalState(r.Target))

			effect, err := w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
			require.NoError(t, err)
			require.Equal(t, c.outcome, effect.Outcome, effect.Reason)
			require.Contains(t, effect.Reason, c.reason)
			held := w.principalState(r.Target)
			require.NotEqual(t, before, held)
			once := w.countWriteCalls()
			_, err = w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
			require.NoError(t, err)
			require.Equal(t, once, w.countWriteCalls(), "a retry writes nothing more")
			require.Equal(t, held, w.principalState(r.Target))
			require.True(t, w.planWithoutLease(r).AlreadyHeld)

			holds, detail := w.verify(r, plan)
			require.True(t, holds, detail)

			_, err = w.findContainment(r.Action).Undo(t.Context(), r, plan.PriorState, nil)
			wantRefusal(t, err, "has not passed")
			other := r
			other.LeaseID = "LSE-FFFFFFFFFFFFFFFFFFFF"
			require.Nil(t, w.undo(other, plan, releaseGrant))
			require.Equal(t, held, w.principalState(r.Target), "another lease's release takes nothing of this one away")

			require.Nil(t, w.undo(r, plan, releaseGrant))
			require.Equal(t, before, w.principalState(r.Target))
			require.Nil(t, w.undo(r, plan, releaseGrant), "once more does nothing")
			require.Equal(t, before, w.principalState(r.Target))
			holds, _ = w.verify(r, plan)
			require.False(t, holds, "what was undone does not hold")
		})
	}
}

func TestUndoAfterExpiryNeedsNoGrant(t *testing.T) {
	w := newFixture(t, nil)
	user, key := w.createUser("u")
	role := w.createRole("r", irsaTrustPolicy, time.Hour)
	for _, r := range []activities.Request{
		newLeaseRequest("aws.user.deny", user, time.Hour, ""), newLeaseRequest("aws.key.disable", key, time.Hour, ""),
		newLeaseRequest("aws.irsa.untrust", role, time.Hour, `{"service_accounts":["shop/web"]}`),
	} {
		before := w.principalState(r.Target)
		r.ExpiresAt = time.Now().Add(-time.Minute)
		plan, _ := w.planAndApply(r)
		require.NotEqual(t, before, w.principalState(r.Target))
		require.Nil(t, w.undo(r, plan, nil))
		require.Equal(t, before, w.principalState(r.Target))
	}
}

func TestUndoKeepsChangesOfOtherWriters(t *testing.T) {
	t.Run("the trust policy", func(t *testing.T) {
		w := newFixture(t, nil)
		r := newLeaseRequest("aws.irsa.untrust", w.createRole("r", irsaTrustPolicy, time.Hour), time.Hour,
			`{"service_accounts":["shop/web"]}`)
		plan, _ := w.planAndApply(r)
		theirs := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"},` + w.trustPolicy(r.Target.Name)[len(`{"Statement":[`):]
		theirs = theirs[:len(theirs)-len(`,"Version":"2012-10-17"}`)] + "}"
		w.setTrustPolicy(r.Target.Name, theirs)
		holds, detail := w.verify(r, plan)
		require.True(t, holds, "the deny is still there: %s", detail)
		drift := w.undo(r, plan, releaseGrant)
		require.NotNil(t, drift)
		require.Contains(t, drift.Detail, "ec2.amazonaws.com")
		require.Equal(t, theirs, w.trustPolicy(r.Target.Name), "nothing was written")
	})
	t.Run("the trust policy, put back to what it was", func(t *testing.T) {
		w := newFixture(t, nil)
		r := newLeaseRequest("aws.irsa.untrust", w.createRole("r", irsaTrustPolicy, time.Hour), time.Hour,
			`{"service_accounts":["shop/web"]}`)
		plan, _ := w.planAndApply(r)
		w.setTrustPolicy(r.Target.Name, podIdentityTrustPolicy)
		holds, detail := w.verify(r, plan)
		require.False(t, holds)
		require.Contains(t, detail, "was removed")
		require.Nil(t, w.undo(r, plan, releaseGrant))
		require.Equal(t, podIdentityTrustPolicy, w.trustPolicy(r.Target.Name))
	})
	t.Run("the inline policy", func(t *testing.T) {
		w := newFixture(t, nil)
		r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), time.Hour, "")
		plan, _ := w.planAndApply(r)
		name, _ := w.stanchInlinePolicy(r.Target.Name)
		_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
			RoleName: &r.Target.Name, PolicyName: &name,
			PolicyDocument: awssdk.String(unrelatedInlinePolicy),
		})
		require.NoError(t, err)
		holds, detail := w.verify(r, plan)
		require.False(t, holds)
		require.Contains(t, detail, "changed by another writer")
		require.NotNil(t, w.undo(r, plan, releaseGrant))
		_, text := w.stanchInlinePolicy(r.Target.Name)
		require.Equal(t, unrelatedInlinePolicy, text)
	})
	t.Run("a key that was made active", func(t *testing.T) {
		w := newFixture(t, nil)
		_, key := w.createUser("u")
		before := w.principalState(key)
		r := newLeaseRequest("aws.key.disable", key, time.Hour, "")
		plan, _ := w.planAndApply(r)
		_, err := w.iam.UpdateAccessKey(t.Context(), &iam.UpdateAccessKeyInput{
			UserName: &key.Name, AccessKeyId: &key.UID,
			Status: types.StatusTypeActive,
		})
		require.NoError(t, err)
		holds, detail := w.verify(r, plan)
		require.False(t, holds, detail)
		require.Nil(t, w.undo(r, plan, releaseGrant))
		require.Equal(t, before, w.principalState(key))
	})
	t.Run("a key that was inactive before", func(t *testing.T) {
		w := newFixture(t, nil)
		_, key := w.createUser("u")
		_, err := w.iam.UpdateAccessKey(t.Context(), &iam.UpdateAccessKeyInput{
			UserName: &key.Name, AccessKeyId: &key.UID,
			Status: types.StatusTypeInactive,
		})
		require.NoError(t, err)
		before := w.principalState(key)
		r := newLeaseRequest("aws.key.disable", key, time.Hour, "")
		plan, effect := w.planAndApply(r)
		require.True(t, plan.NothingToDo)
		require.Equal(t, playbooks.OutcomeUnchanged, effect.Outcome)
		require.Nil(t, w.undo(r, plan, releaseGrant))
		require.Equal(t, before, w.principalState(key), "it is not made active")
	})
}

func TestRecreatedRoleIsAnotherTarget(t *testing.T) {
	for _, action := range []string{"aws.role.revoke-sessions", "aws.irsa.untrust"} {
		t.Run(action, func(t *testing.T) {
			w := newFixture(t, nil)
			r := newLeaseRequest(action, w.createRole("r", irsaTrustPolicy, time.Hour), time.Hour,
				`{"service_accounts":["shop/web"]}`)
			plan, _ := w.planAndApply(r)
			held := w.inlinePolicies(r.Target.Name)
			trust := w.trustPolicy(r.Target.Name)
			w.deleteRole(r.Target.Name)

			_, _, err := w.findContainment(action).Verify(t.Context(), r, plan.PriorState)
			require.ErrorIs(t, err, activities.ErrTargetGone)
			require.Nil(t, w.undo(r, plan, nil), "what is gone needs no undo")

			w.createRole("r", trust, time.Hour)
			for name, text := range held { // even with policies of the same names
				_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
					RoleName: &r.Target.Name, PolicyName: &name,
					PolicyDocument: &text,
				})
				require.NoError(t, err)
			}
			before := w.principalState(r.Target)
			_, err = w.findContainment(action).Plan(t.Context(), r)
			wantRefusal(t, err, "is gone", "a different object with the same name has the id")
			_, err = w.findContainment(action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
			wantRefusal(t, err, "is gone")
			_, _, err = w.findContainment(action).Verify(t.Context(), r, plan.PriorState)
			require.ErrorIs(t, err, activities.ErrTargetGone)
			require.Nil(t, w.undo(r, plan, releaseGrant))
			require.Equal(t, before, w.principalState(r.Target))
		})
	}
}

func TestUndoDoesNotRestoreStateToRecreatedRole(t *testing.T) {
	w := newFixture(t, nil)
	r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), time.Hour, "")
	plan := w.planWithoutLease(r)
	w.RunBeforeNext("PutRolePolicy", func() {
		w.deleteRole(r.Target.Name)
		w.createRole("r", podIdentityTrustPolicy, time.Hour)
	})
	_, err := w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
	wantRefusal(t, err, "a different object with the same name has the id")
	name, _ := w.stanchInlinePolicy(r.Target.Name)
	require.Empty(t, name)
}

func TestThrottledCallsAreRetriedWithinBounds(t *testing.T) {
	w := newFixture(t, nil)
	r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), time.Hour, "")
	for _, action := range []string{"GetRole", "PutRolePolicy", "SimulatePrincipalPolicy"} {
		w.ThrottleNext(action, 2)
	}
	plan, effect := w.planAndApply(r)
	require.Equal(t, playbooks.OutcomeChanged, effect.Outcome, effect.Reason)
	w.ThrottleNext("DeleteRolePolicy", 1000)
	begin := len(w.CallTimes("DeleteRolePolicy"))
	_, err := w.findContainment(r.Action).Undo(t.Context(), r, plan.PriorState, releaseGrant)
	require.ErrorContains(t, err, "ThrottlingException")
	_, refused := activities.AsRefusal(err)
	require.False(t, refused, "it may work later")
	require.Equal(t, 5, len(w.CallTimes("DeleteRolePolicy"))-begin)
	w.ThrottleNext("DeleteRolePolicy", 0)
	require.Nil(t, w.undo(r, plan, releaseGrant))
}

func TestDeniedCallNamesThePermission(t *testing.T) {
	for _, c := range []struct{ call, permission, action string }{
		{"GetRole", "iam:GetRole", "aws.role.revoke-sessions"},
		{"ListRolePolicies", "iam:ListRolePolicies", "aws.role.revoke-sessions"},
		{"PutRolePolicy", "iam:PutRolePolicy", "aws.role.revoke-sessions"},
		{"UpdateAssumeRolePolicy", "iam:UpdateAssumeRolePolicy", "aws.irsa.untrust"},
	} {
		t.Run(c.call, func(t *testing.T) {
			w := newFixture(t, nil)
			r := newLeaseRequest(c.action, w.createRole("r", irsaTrustPolicy, time.Hour), time.Hour,
				`{"service_accounts":["shop/web"]}`)
			before := w.principalState(r.Target)
			w.DenyAction(c.call)
			plan, err := w.findContainment(r.Action).Plan(t.Context(), r)
			if err == nil {
				_, err = w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
			}
			wantRefusal(t, err, c.permission, "manifests --iam")
			require.Equal(t, before, w.principalState(r.Target))
		})
	}
}

func TestDenyIsUnverifiedWithoutPolicySimulation(t *testing.T) {
	for code, words := range map[string]string{
		"AccessDenied":  "iam:SimulatePrincipalPolicy",
		"InvalidAction": "the policy simulation failed",
	} {
		t.Run(code, func(t *testing.T) {
			w := newFixture(t, nil)
			w.FailAction("SimulatePrincipalPolicy", code)
			r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), time.Hour, "")
			plan, effect := w.planAndApply(r)
			require.Equal(t, playbooks.OutcomeUnverified, effect.Outcome)
			require.Contains(t, effect.Reason, words)
			holds, detail := w.verify(r, plan)
			require.True(t, holds, "the policy is there")
			require.Contains(t, detail, words)
		})
	}
}

// The policy reads as it should but does not deny: the simulation detects it.
func TestVerifyDetectsIneffectiveDeny(t *testing.T) {
	w := newFixture(t, nil)
	r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), time.Hour, "")
	plan, _ := w.planAndApply(r)
	w.RunBeforeNext("SimulatePrincipalPolicy", func() {
		name, _ := w.stanchInlinePolicy(r.Target.Name)
		_, err := w.iam.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name})
		require.NoError(t, err)
	})
	holds, detail := w.verify(r, plan)
	require.False(t, holds)
	require.Contains(t, detail, "is allowed for s3:GetObject")
}

func TestVerifyDetectsRemovedPolicy(t *testing.T) {
	w := newFixture(t, nil)
	r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), time.Hour, "")
	plan, _ := w.planAndApply(r)
	name, _ := w.stanchInlinePolicy(r.Target.Name)
	_, err := w.iam.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name})
	require.NoError(t, err)
	holds, detail := w.verify(r, plan)
	require.False(t, holds)
	require.Contains(t, detail, "was deleted")
}

func TestProtectedIdentitiesAndStanchAreRefused(t *testing.T) {
	w := newFixture(t, nil, "billing-*", "arn:aws:iam::123456789012:role/arn-*")
	for _, of := range []string{"billing-1", "arn-1"} {
		r := newLeaseRequest("aws.role.revoke-sessions", w.createRole(of, podIdentityTrustPolicy, time.Hour), time.Hour, "")
		_, err := w.findContainment(r.Action).Plan(t.Context(), r)
		wantRefusal(t, err, "is protected")
		_, err = w.findContainment(r.Action).Apply(t.Context(), r, nil, attestation.Envelope{})
		wantRefusal(t, err, "is protected")
	}

	user, key := w.createUser("self")
	out, err := w.iam.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: &user.Name})
	require.NoError(t, err)
	t.Setenv("AWS_ACCESS_KEY_ID", *out.AccessKey.AccessKeyId)
	t.Setenv("AWS_SECRET_ACCESS_KEY", *out.AccessKey.SecretAccessKey)
	as := newFixture(t, nil) // Stanch uses that user's credentials
	for _, r := range []activities.Request{
		newLeaseRequest("aws.user.deny", user, time.Hour, ""),
		newLeaseRequest("aws.key.disable", key, time.Hour, ""),
	} {
		_, err := as.findContainment(r.Action).Plan(t.Context(), r)
		wantRefusal(t, err, "Stanch's own identity")
	}
}

func TestUntrustDeniesOnlyNamedServiceAccounts(t *testing.T) {
	w := newFixture(t, nil)
	role := w.createRole("r", irsaTrustPolicy, time.Hour)
	_, err := w.findContainment("aws.irsa.untrust").Plan(t.Context(), newLeaseRequest("aws.irsa.untrust", role, time.Hour,
		`{"service_accounts":["bank/vault"]}`))
	wantRefusal(t, err, "does not trust system:serviceaccount:bank:vault")
	_, err = w.findContainment("aws.irsa.untrust").Plan(t.Context(), newLeaseRequest("aws.irsa.untrust", role, time.Hour,
		`{"service_accounts":[]}`))
	wantRefusal(t, err, "missing service accounts")
	_, err = w.findContainment("aws.irsa.untrust").Plan(t.Context(), newLeaseRequest("aws.irsa.untrust",
		w.createRole("pods", podIdentityTrustPolicy, time.Hour), time.Hour, `{"service_accounts":["shop/web"]}`))
	wantRefusal(t, err, "IRSA does not use it")

	// A second holder adds its own subjects; the original text is restored exactly at the end.
	combine := w.findContainment("aws.irsa.untrust").Spec().CombineParams
	both, err := combine([]byte(`{"service_accounts":["shop/web"]}`), []byte(`{"service_accounts":["shop/cart"]}`))
	require.NoError(t, err)
	r := newLeaseRequest("aws.irsa.untrust", role, time.Hour, `{"service_accounts":["shop/web"]}`)
	plan, _ := w.planAndApply(r)
	require.NotContains(t, w.trustPolicy(role.Name)[len(w.trustPolicy(role.Name))/2:], "cart:deny")
	r.Params = both
	_, err = w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
	require.NoError(t, err)
	holds, detail := w.verify(r, plan)
	require.True(t, holds, detail)
	require.Nil(t, w.undo(r, plan, releaseGrant))
	require.Equal(t, irsaTrustPolicy, w.trustPolicy(role.Name))
}
