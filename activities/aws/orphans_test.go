package aws_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
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

	// A new process has read nothing yet.
	account, err := aws.Open(t.Context(), aws.Options{Region: testaws.Region, Endpoint: w.URL})
	require.NoError(t, err)
	none := findOrphans(t, account, time.Now().Add(-2*time.Hour))
	orphans := findOrphans(t, account, time.Now().Add(-30*time.Minute))
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

// findOrphans returns what all actions on an account find, as one sweep asks them.
func findOrphans(t *testing.T, account *aws.Account, before time.Time) []activities.Orphan {
	t.Helper()
	var out []activities.Orphan
	finders := 0
	for _, a := range aws.Actions(account, nil) {
		if f, ok := a.(activities.OrphanFinder); ok {
			finders++
			found, err := f.FindOrphans(t.Context(), before)
			require.NoError(t, err)
			out = append(out, found...)
		}
	}
	require.Equal(t, 5, finders)
	return out
}

// Reading an account takes many calls, which AWS limits.
func TestSweepReadsAccountOnce(t *testing.T) {
	w := newFixture(t, nil)
	readings := 0
	count := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if strings.Contains(string(body), "Action=GetAccountAuthorizationDetails") &&
			!strings.Contains(string(body), "Marker=") {
			readings++
		}
		upstream, err := url.Parse(w.URL)
		if err != nil {
			t.Error(err)
		}
		httputil.NewSingleHostReverseProxy(upstream).ServeHTTP(rw, r)
	}))
	t.Cleanup(count.Close)
	account, err := aws.Open(t.Context(), aws.Options{Region: testaws.Region, Endpoint: count.URL})
	require.NoError(t, err)
	findOrphans(t, account, time.Now())
	require.Equal(t, 1, readings)
}

func TestActionsWithoutAccountFindNoOrphans(t *testing.T) {
	require.Empty(t, findOrphans(t, nil, time.Now()))
}
