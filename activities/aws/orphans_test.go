package aws_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/playbooks"
	testaws "stanch/testenv/aws"
)

// A terminated workflow leaves its containments; the orphan sweep finds them by their markers.
func TestOrphanedContainmentsAreFoundByExpiryMarker(t *testing.T) {
	w := newFixture(t, nil)
	user, key := w.createUser("u")
	trusted, revoked := w.createRole("trusted", irsaTrustPolicy, time.Hour),
		w.createRole("revoked", podIdentityTrustPolicy, time.Hour)
	past := []activities.Request{
		newLeaseRequest("aws.user.deny", user, time.Hour, ""), newLeaseRequest("aws.key.disable", key, time.Hour, ""),
		newLeaseRequest("aws.irsa.untrust", trusted, time.Hour, `{"service_accounts":["shop/web"]}`),
	}
	before := map[string]string{}
	for _, target := range []playbooks.Target{user, trusted} {
		before[target.ID()] = w.principalState(target)
	}
	for _, r := range past {
		r.ExpiresAt = time.Now().Add(-time.Hour)
		w.planAndApply(r)
	}
	w.planAndApply(newLeaseRequest("aws.role.revoke-sessions", revoked, 2*time.Hour, "")) // still in force
	held := w.principalState(revoked)

	account, err := aws.Open(t.Context(), aws.Options{Region: testaws.Region, Endpoint: w.URL})
	require.NoError(t, err)
	none, err := account.FindOrphans(t.Context(), time.Now().Add(-2*time.Hour))
	require.NoError(t, err)
	orphans, err := account.FindOrphans(t.Context(), time.Now().Add(-30*time.Minute))
	require.NoError(t, err)
	found := map[string]playbooks.Facet{}
	for _, o := range orphans {
		switch o.Target.UID {
		case user.UID, key.UID, trusted.UID, revoked.UID:
			found[o.Target.ID()] = o.Facet
			drift, err := o.Undo(t.Context())
			require.NoError(t, err)
			require.Nil(t, drift)
		}
	}
	require.Equal(t, map[string]playbooks.Facet{
		user.ID(): playbooks.FacetIdentity, key.ID(): playbooks.FacetIdentity,
		trusted.ID(): playbooks.FacetTrust,
	}, found)
	for _, o := range none {
		require.NotContains(t, []string{user.UID, key.UID, trusted.UID}, o.Target.UID, "too early for it")
	}
	require.Equal(t, before[user.ID()], w.principalState(user))
	require.JSONEq(t, irsaTrustPolicy, w.trustPolicy(trusted.Name))
	require.Equal(t, held, w.principalState(revoked))
}
