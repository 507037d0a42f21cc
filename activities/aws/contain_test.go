package aws_test

import (
	"regexp"
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

func TestEachIsPlannedAppliedVerifiedAndUndoneToTheLetter(t *testing.T) {
	for _, c := range []struct {
		action, params string
		target         func(*world) playbooks.Target
		outcome        playbooks.Outcome
		reason         string
	}{
		{"aws.role.revoke-sessions", "", func(w *world) playbooks.Target { return w.role("r", podsTrust, time.Hour) }, playbooks.OutcomeChanged, "simulation says"},
		{"aws.irsa.untrust", `{"service_accounts":["shop/web"]}`, func(w *world) playbooks.Target { return w.role("r", irsa, time.Hour) }, playbooks.OutcomeUnverified, "no simulation of trust policies"},
		{"aws.user.deny", "", func(w *world) playbooks.Target { u, _ := w.user("u"); return u }, playbooks.OutcomeChanged, "simulation says"},
		{"aws.key.disable", "", func(w *world) playbooks.Target { _, k := w.user("u"); return k }, playbooks.OutcomeChanged, "inactive"},
	} {
		t.Run(c.action, func(t *testing.T) {
			w := newWorld(t, nil)
			r := asked(c.action, c.target(w), 2*time.Hour, c.params)
			before := w.all(r.Target)

			plan := w.planned(r)
			require.Len(t, plan.Changes, 1)
			require.NotEmpty(t, plan.Warnings)
			require.False(t, plan.Held)
			require.Zero(t, w.writes(), "a plan only reads")
			again, err := w.contain(r.Action).Plan(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, plan.Changes, again.Changes, "what people saw is what is approved: the lease is not in it")
			require.Equal(t, before, w.all(r.Target))

			effect, err := w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
			require.NoError(t, err)
			require.Equal(t, c.outcome, effect.Outcome, effect.Reason)
			require.Contains(t, effect.Reason, c.reason)
			held := w.all(r.Target)
			require.NotEqual(t, before, held)
			once := w.writes()
			_, err = w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
			require.NoError(t, err)
			require.Equal(t, once, w.writes(), "a retry writes nothing more")
			require.Equal(t, held, w.all(r.Target))
			require.True(t, w.planned(r).Held)

			holds, detail := w.verified(r, plan)
			require.True(t, holds, detail)

			_, err = w.contain(r.Action).Undo(t.Context(), r, plan.Prior, nil)
			wantRefusal(t, err, "stamped end has not come")
			other := r
			other.Lease = "LSE-FFFFFFFFFFFFFFFFFFFF"
			require.Nil(t, w.undone(other, plan, granted))
			require.Equal(t, held, w.all(r.Target), "another lease's release takes nothing of this one away")

			require.Nil(t, w.undone(r, plan, granted))
			require.Equal(t, before, w.all(r.Target))
			require.Nil(t, w.undone(r, plan, granted), "once more does nothing")
			require.Equal(t, before, w.all(r.Target))
			holds, _ = w.verified(r, plan)
			require.False(t, holds, "what was undone does not hold")
		})
	}
}

func TestAnEndThatHasComeNeedsNoGrant(t *testing.T) {
	w := newWorld(t, nil)
	user, key := w.user("u")
	role := w.role("r", irsa, time.Hour)
	for _, r := range []activities.Request{
		asked("aws.user.deny", user, time.Hour, ""), asked("aws.key.disable", key, time.Hour, ""), asked("aws.irsa.untrust", role, time.Hour, `{"service_accounts":["shop/web"]}`),
	} {
		before := w.all(r.Target)
		r.Until = time.Now().Add(-time.Minute)
		plan, _ := w.applied(r)
		require.NotEqual(t, before, w.all(r.Target))
		require.Nil(t, w.undone(r, plan, nil))
		require.Equal(t, before, w.all(r.Target))
	}
}

func TestRevokedSessionsStayRevokedUntilTheLastOfThemHasEnded(t *testing.T) {
	w := newWorld(t, nil)
	role := w.role("r", podsTrust, 4*time.Hour)
	_, err := w.contain("aws.role.revoke-sessions").Plan(t.Context(), asked("aws.role.revoke-sessions", role, 3*time.Hour, ""))
	wantRefusal(t, err, "at least 4h", "stolen ones are good again")

	r := asked("aws.role.revoke-sessions", role, 4*time.Hour, "")
	r.Until = time.Now().Add(-time.Second) // as if it had been approved long before it ran
	plan, _ := w.applied(r)
	_, err = w.contain(r.Action).Undo(t.Context(), r, plan.Prior, nil)
	wantRefusal(t, err, "stamped end has not come")
}

// A later verification must not move the line: the workload's new sessions are good.
func TestRevokingAgainDoesNotTouchNewSessions(t *testing.T) {
	w := newWorld(t, nil)
	r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), 2*time.Hour, "")
	plan, _ := w.applied(r)
	name, first := w.mine(r.Target.Name)
	at := regexp.MustCompile(`"aws:TokenIssueTime":"[^"]*"`)
	hourAgo := at.ReplaceAllString(first, `"aws:TokenIssueTime":"`+time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)+`"`)
	_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name, PolicyDocument: &hourAgo})
	require.NoError(t, err)
	r.Until = r.Until.Add(3 * time.Hour)
	_, err = w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
	require.NoError(t, err)
	_, second := w.mine(r.Target.Name)
	require.NotEqual(t, hourAgo, second, "the stamp moved")
	require.Equal(t, at.FindString(hourAgo), at.FindString(second), "the time of the revocation did not")
	r.Until = r.Until.Add(-2 * time.Hour)
	_, err = w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
	wantRefusal(t, err, "needs a grant")
}

func TestWhatSomebodyElseChangedIsNotOverwritten(t *testing.T) {
	t.Run("the trust policy", func(t *testing.T) {
		w := newWorld(t, nil)
		r := asked("aws.irsa.untrust", w.role("r", irsa, time.Hour), time.Hour, `{"service_accounts":["shop/web"]}`)
		plan, _ := w.applied(r)
		theirs := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"},` + w.trust(r.Target.Name)[len(`{"Statement":[`):]
		theirs = theirs[:len(theirs)-len(`,"Version":"2012-10-17"}`)] + "}"
		w.setTrust(r.Target.Name, theirs)
		holds, detail := w.verified(r, plan)
		require.True(t, holds, "the deny is still there: %s", detail)
		drift := w.undone(r, plan, granted)
		require.NotNil(t, drift)
		require.Contains(t, drift.Detail, "ec2.amazonaws.com")
		require.Equal(t, theirs, w.trust(r.Target.Name), "nothing was written")
	})
	t.Run("the trust policy, put back to what it was", func(t *testing.T) {
		w := newWorld(t, nil)
		r := asked("aws.irsa.untrust", w.role("r", irsa, time.Hour), time.Hour, `{"service_accounts":["shop/web"]}`)
		plan, _ := w.applied(r)
		w.setTrust(r.Target.Name, podsTrust)
		holds, detail := w.verified(r, plan)
		require.False(t, holds)
		require.Contains(t, detail, "taken away")
		require.Nil(t, w.undone(r, plan, granted))
		require.Equal(t, podsTrust, w.trust(r.Target.Name))
	})
	t.Run("the inline policy", func(t *testing.T) {
		w := newWorld(t, nil)
		r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), time.Hour, "")
		plan, _ := w.applied(r)
		name, _ := w.mine(r.Target.Name)
		_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name, PolicyDocument: awssdk.String(allows)})
		require.NoError(t, err)
		holds, detail := w.verified(r, plan)
		require.False(t, holds)
		require.Contains(t, detail, "changed by somebody")
		require.NotNil(t, w.undone(r, plan, granted))
		_, text := w.mine(r.Target.Name)
		require.Equal(t, allows, text)
	})
	t.Run("a key that was made active", func(t *testing.T) {
		w := newWorld(t, nil)
		_, key := w.user("u")
		before := w.all(key)
		r := asked("aws.key.disable", key, time.Hour, "")
		plan, _ := w.applied(r)
		_, err := w.iam.UpdateAccessKey(t.Context(), &iam.UpdateAccessKeyInput{UserName: &key.Name, AccessKeyId: &key.UID, Status: types.StatusTypeActive})
		require.NoError(t, err)
		holds, detail := w.verified(r, plan)
		require.False(t, holds, detail)
		require.Nil(t, w.undone(r, plan, granted))
		require.Equal(t, before, w.all(key))
	})
	t.Run("a key that was inactive before", func(t *testing.T) {
		w := newWorld(t, nil)
		_, key := w.user("u")
		_, err := w.iam.UpdateAccessKey(t.Context(), &iam.UpdateAccessKeyInput{UserName: &key.Name, AccessKeyId: &key.UID, Status: types.StatusTypeInactive})
		require.NoError(t, err)
		before := w.all(key)
		r := asked("aws.key.disable", key, time.Hour, "")
		plan, effect := w.applied(r)
		require.True(t, plan.Nothing)
		require.Equal(t, playbooks.OutcomeUnchanged, effect.Outcome)
		require.Nil(t, w.undone(r, plan, granted))
		require.Equal(t, before, w.all(key), "it is not made active")
	})
}

func TestARoleMadeAgainUnderTheNameIsAnother(t *testing.T) {
	for _, action := range []string{"aws.role.revoke-sessions", "aws.irsa.untrust"} {
		t.Run(action, func(t *testing.T) {
			w := newWorld(t, nil)
			r := asked(action, w.role("r", irsa, time.Hour), time.Hour, `{"service_accounts":["shop/web"]}`)
			plan, _ := w.applied(r)
			held := w.inline(r.Target.Name)
			trust := w.trust(r.Target.Name)
			w.deleteRole(r.Target.Name)

			_, _, err := w.contain(action).Verify(t.Context(), r, plan.Prior)
			require.ErrorIs(t, err, activities.ErrGone)
			require.Nil(t, w.undone(r, plan, nil), "what is gone needs no undo")

			w.role("r", trust, time.Hour)
			for name, text := range held { // even with policies of the same names
				_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name, PolicyDocument: &text})
				require.NoError(t, err)
			}
			before := w.all(r.Target)
			_, err = w.contain(action).Plan(t.Context(), r)
			wantRefusal(t, err, "is gone", "now has the id")
			_, err = w.contain(action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
			wantRefusal(t, err, "is gone")
			_, _, err = w.contain(action).Verify(t.Context(), r, plan.Prior)
			require.ErrorIs(t, err, activities.ErrGone)
			require.Nil(t, w.undone(r, plan, granted))
			require.Equal(t, before, w.all(r.Target))
		})
	}
}

func TestARoleMadeAgainWhileItIsDeniedGetsItsOwnBack(t *testing.T) {
	w := newWorld(t, nil)
	r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), time.Hour, "")
	plan := w.planned(r)
	w.Before("PutRolePolicy", func() {
		w.deleteRole(r.Target.Name)
		w.role("r", podsTrust, time.Hour)
	})
	_, err := w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
	wantRefusal(t, err, "now has the id")
	name, _ := w.mine(r.Target.Name)
	require.Empty(t, name)
}

func TestThrottlingIsWaitedOutWithinBounds(t *testing.T) {
	w := newWorld(t, nil)
	r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), time.Hour, "")
	for _, action := range []string{"GetRole", "PutRolePolicy", "SimulatePrincipalPolicy"} {
		w.Throttle(action, 2)
	}
	plan, effect := w.applied(r)
	require.Equal(t, playbooks.OutcomeChanged, effect.Outcome, effect.Reason)
	w.Throttle("DeleteRolePolicy", 1000)
	begin := len(w.Calls("DeleteRolePolicy"))
	_, err := w.contain(r.Action).Undo(t.Context(), r, plan.Prior, granted)
	require.ErrorContains(t, err, "ThrottlingException")
	_, refused := activities.AsRefusal(err)
	require.False(t, refused, "it may work later")
	require.Equal(t, 5, len(w.Calls("DeleteRolePolicy"))-begin)
	w.Throttle("DeleteRolePolicy", 0)
	require.Nil(t, w.undone(r, plan, granted))
}

func TestADeniedCallNamesThePermission(t *testing.T) {
	for _, c := range []struct{ call, permission, action string }{
		{"GetRole", "iam:GetRole", "aws.role.revoke-sessions"},
		{"ListRolePolicies", "iam:ListRolePolicies", "aws.role.revoke-sessions"},
		{"PutRolePolicy", "iam:PutRolePolicy", "aws.role.revoke-sessions"},
		{"UpdateAssumeRolePolicy", "iam:UpdateAssumeRolePolicy", "aws.irsa.untrust"},
	} {
		t.Run(c.call, func(t *testing.T) {
			w := newWorld(t, nil)
			r := asked(c.action, w.role("r", irsa, time.Hour), time.Hour, `{"service_accounts":["shop/web"]}`)
			before := w.all(r.Target)
			w.Deny(c.call)
			plan, err := w.contain(r.Action).Plan(t.Context(), r)
			if err == nil {
				_, err = w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
			}
			wantRefusal(t, err, c.permission, "manifests --iam")
			require.Equal(t, before, w.all(r.Target))
		})
	}
}

func TestWithoutASimulationItIsUnverified(t *testing.T) {
	for code, words := range map[string]string{"AccessDenied": "iam:SimulatePrincipalPolicy", "InvalidAction": "did not answer"} {
		t.Run(code, func(t *testing.T) {
			w := newWorld(t, nil)
			w.Fail("SimulatePrincipalPolicy", code)
			r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), time.Hour, "")
			plan, effect := w.applied(r)
			require.Equal(t, playbooks.OutcomeUnverified, effect.Outcome)
			require.Contains(t, effect.Reason, words)
			holds, detail := w.verified(r, plan)
			require.True(t, holds, "the policy is there")
			require.Contains(t, detail, words)
		})
	}
}

// The policy is read as it should be, and yet does not deny: the simulation says so, and no more is believed.
func TestADenyThatDoesNotDenyIsSeen(t *testing.T) {
	w := newWorld(t, nil)
	r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), time.Hour, "")
	plan, _ := w.applied(r)
	w.Before("SimulatePrincipalPolicy", func() {
		name, _ := w.mine(r.Target.Name)
		_, err := w.iam.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name})
		require.NoError(t, err)
	})
	holds, detail := w.verified(r, plan)
	require.False(t, holds)
	require.Contains(t, detail, "is allowed for s3:GetObject")
}

func TestAPolicyThatIsTakenAwayIsMissed(t *testing.T) {
	w := newWorld(t, nil)
	r := asked("aws.role.revoke-sessions", w.role("r", podsTrust, time.Hour), time.Hour, "")
	plan, _ := w.applied(r)
	name, _ := w.mine(r.Target.Name)
	_, err := w.iam.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: &r.Target.Name, PolicyName: &name})
	require.NoError(t, err)
	holds, detail := w.verified(r, plan)
	require.False(t, holds)
	require.Contains(t, detail, "was deleted")
}

func TestWhatIsProtectedAndWhatStanchIsAreNotTouched(t *testing.T) {
	w := newWorld(t, nil, "billing-*", "arn:aws:iam::123456789012:role/arn-*")
	for _, of := range []string{"billing-1", "arn-1"} {
		r := asked("aws.role.revoke-sessions", w.role(of, podsTrust, time.Hour), time.Hour, "")
		_, err := w.contain(r.Action).Plan(t.Context(), r)
		wantRefusal(t, err, "is protected")
		_, err = w.contain(r.Action).Apply(t.Context(), r, nil, attestation.Envelope{})
		wantRefusal(t, err, "is protected")
	}

	user, key := w.user("self")
	out, err := w.iam.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: &user.Name})
	require.NoError(t, err)
	t.Setenv("AWS_ACCESS_KEY_ID", *out.AccessKey.AccessKeyId)
	t.Setenv("AWS_SECRET_ACCESS_KEY", *out.AccessKey.SecretAccessKey)
	as := newWorld(t, nil) // works as that user
	for _, r := range []activities.Request{asked("aws.user.deny", user, time.Hour, ""), asked("aws.key.disable", key, time.Hour, "")} {
		_, err := as.contain(r.Action).Plan(t.Context(), r)
		wantRefusal(t, err, "Stanch itself")
	}
}

func TestUntrustKeepsOutExactlyWhoIsNamed(t *testing.T) {
	w := newWorld(t, nil)
	role := w.role("r", irsa, time.Hour)
	_, err := w.contain("aws.irsa.untrust").Plan(t.Context(), asked("aws.irsa.untrust", role, time.Hour, `{"service_accounts":["bank/vault"]}`))
	wantRefusal(t, err, "does not trust system:serviceaccount:bank:vault")
	_, err = w.contain("aws.irsa.untrust").Plan(t.Context(), asked("aws.irsa.untrust", role, time.Hour, `{"service_accounts":[]}`))
	wantRefusal(t, err, "no service account is named")
	_, err = w.contain("aws.irsa.untrust").Plan(t.Context(), asked("aws.irsa.untrust", w.role("pods", podsTrust, time.Hour), time.Hour, `{"service_accounts":["shop/web"]}`))
	wantRefusal(t, err, "not used by IRSA")

	// A second holder adds its own; the first to the letter comes back at the end.
	combine := w.contain("aws.irsa.untrust").Spec().CombineParams
	both, err := combine([]byte(`{"service_accounts":["shop/web"]}`), []byte(`{"service_accounts":["shop/cart"]}`))
	require.NoError(t, err)
	r := asked("aws.irsa.untrust", role, time.Hour, `{"service_accounts":["shop/web"]}`)
	plan, _ := w.applied(r)
	require.NotContains(t, w.trust(role.Name)[len(w.trust(role.Name))/2:], "cart:deny")
	r.Params = both
	_, err = w.contain(r.Action).Apply(t.Context(), r, plan.Prior, attestation.Envelope{})
	require.NoError(t, err)
	holds, detail := w.verified(r, plan)
	require.True(t, holds, detail)
	require.Nil(t, w.undone(r, plan, granted))
	require.Equal(t, irsa, w.trust(role.Name))
}
