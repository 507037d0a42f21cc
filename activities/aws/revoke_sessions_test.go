package aws_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/stretchr/testify/require"

	"stanch/sensors/attestation"
)

func TestRevocationLastsAsLongAsSessions(t *testing.T) {
	w := newFixture(t, nil)
	role := w.createRole("r", podIdentityTrustPolicy, 4*time.Hour)
	_, err := w.findContainment("aws.role.revoke-sessions").Plan(t.Context(), newLeaseRequest("aws.role.revoke-sessions",
		role, 3*time.Hour, ""))
	wantRefusal(t, err, "at least 4h", "stolen ones would work again")

	r := newLeaseRequest("aws.role.revoke-sessions", role, 4*time.Hour, "")
	r.ExpiresAt = time.Now().Add(-time.Second) // as if it had been approved long before it ran
	plan, _ := w.planAndApply(r)
	_, err = w.findContainment(r.Action).Undo(t.Context(), r, plan.PriorState, nil)
	wantRefusal(t, err, "has not passed")
}

// A later verification must not move the time: new sessions of the workload stay valid.
func TestRepeatedRevocationKeepsItsCutoffTime(t *testing.T) {
	w := newFixture(t, nil)
	r := newLeaseRequest("aws.role.revoke-sessions", w.createRole("r", podIdentityTrustPolicy, time.Hour), 2*time.Hour, "")
	plan, _ := w.planAndApply(r)
	name, first := w.stanchInlinePolicy(r.Target.Name)
	at := regexp.MustCompile(`"aws:TokenIssueTime":"[^"]*"`)
	hourAgo := at.ReplaceAllString(first, `"aws:TokenIssueTime":"`+time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)+
		`"`)
	_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
		RoleName: &r.Target.Name, PolicyName: &name,
		PolicyDocument: &hourAgo,
	})
	require.NoError(t, err)
	r.ExpiresAt = r.ExpiresAt.Add(3 * time.Hour)
	_, err = w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
	require.NoError(t, err)
	_, second := w.stanchInlinePolicy(r.Target.Name)
	require.NotEqual(t, hourAgo, second, "the stamp moved")
	require.Equal(t, at.FindString(hourAgo), at.FindString(second), "the time of the revocation did not")
	r.ExpiresAt = r.ExpiresAt.Add(-2 * time.Hour)
	_, err = w.findContainment(r.Action).Apply(t.Context(), r, plan.PriorState, attestation.Envelope{})
	wantRefusal(t, err, "requires a grant")
}
