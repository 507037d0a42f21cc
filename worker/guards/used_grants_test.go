package guards_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"stanch/activities"
	"stanch/worker/guards"
)

// usedGrantStores returns the stores of used grants. Each call opens the store again, as a restarted worker does.
func usedGrantStores(t *testing.T) map[string]func() guards.UsedGrants {
	path := filepath.Join(t.TempDir(), "grants.json")
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: "stanch-system",
		Name:      guards.UsedGrantsConfigMap,
	}})
	return map[string]func() guards.UsedGrants{
		"file": func() guards.UsedGrants { return &guards.FileUsedGrants{FilePath: path} },
		"ConfigMap": func() guards.UsedGrants {
			return &guards.SharedUsedGrants{KubeClient: client, Namespace: "stanch-system"}
		},
	}
}

func TestGrantIsUsedOnce(t *testing.T) {
	for name, open := range usedGrantStores(t) {
		t.Run(name, func(t *testing.T) {
			use := func(nonce, lease string, at time.Time) error {
				return open().RecordUse(t.Context(), nonce, guards.GrantUse{LeaseID: lease, LeaseExpiresAt: now.Add(time.Hour)}, at)
			}
			require.NoError(t, use("n1", "LSE-1", now))
			require.NoError(t, use("n1", "LSE-1", now.Add(time.Minute)), "a retry of the same lease")
			require.ErrorIs(t, use("n1", "LSE-2", now.Add(time.Minute)), guards.ErrGrantUsed)
			require.ErrorIs(t, use("n1", "LSE-1", now.Add(61*time.Minute)), guards.ErrGrantUsed, "the lease has ended")
			require.NoError(t, use("n2", "LSE-2", now), "another grant")
			require.NoError(t, use("n3", "LSE-3", now.Add(4*time.Hour)), "expired uses are removed")
			require.NoError(t, use("n1", "LSE-9", now.Add(4*time.Hour)), "a removed use is older than any valid grant")
		})
	}
}

func TestGrantPermitsOneContainment(t *testing.T) {
	d := newGuardFixture(t)
	path := filepath.Join(t.TempDir(), "grants.json")
	d.chain.UsedGrants = &guards.FileUsedGrants{FilePath: path}
	d.input.Authorization.Attestations = nil
	d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
	d.input.Enforce = false
	require.Equal(t, activities.VerdictRun, d.decide().Verdict, "a plan uses no grant")
	d.input.Enforce = true
	first := d.decide()
	require.Equal(t, activities.VerdictRun, first.Verdict)
	require.Equal(t, now.Add(-time.Minute), first.AuthorizedAt.UTC(), "a release after the grant is not overridden")
	d.input.Request.LeaseID = "LSE-2"
	got := d.decide()
	require.Equal(t, activities.VerdictRefuse, got.Verdict)
	require.Equal(t, "grant", got.Guard)
	require.Contains(t, got.Reason, "already used for lease LSE-1")

	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err := d.chain.Decide(t.Context(), d.input)
	require.ErrorContains(t, err, "is corrupted", "an unrecorded use is refused")
}
