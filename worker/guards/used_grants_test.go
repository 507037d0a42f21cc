package guards_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

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

func TestUsesAreKeptForTwoHoursOrWhileTheirLeaseIsActive(t *testing.T) {
	for name, open := range usedGrantStores(t) {
		t.Run(name, func(t *testing.T) {
			use := func(nonce, lease string, at, end time.Time) error {
				return open().RecordUse(t.Context(), nonce, guards.GrantUse{LeaseID: lease, LeaseExpiresAt: end}, at)
			}
			require.NoError(t, use("short", "LSE-1", now, now.Add(time.Minute)))
			require.NoError(t, use("long", "LSE-2", now, now.Add(5*time.Hour)))
			require.NoError(t, use("short", "LSE-1", now.Add(time.Minute), time.Time{}), "a retry at the end of the lease")
			require.ErrorIs(t, use("short", "LSE-3", now.Add(2*time.Hour-1), now), guards.ErrGrantUsed)
			require.ErrorIs(t, use("long", "LSE-3", now.Add(5*time.Hour-1), now), guards.ErrGrantUsed)
			require.NoError(t, use("short", "LSE-3", now.Add(2*time.Hour), now.Add(3*time.Hour)))
			require.NoError(t, use("long", "LSE-4", now.Add(5*time.Hour), now.Add(6*time.Hour)))
		})
	}
}

func TestUsesThatCannotBeStoredAreErrors(t *testing.T) {
	use := guards.GrantUse{LeaseID: "LSE-1", LeaseExpiresAt: now.Add(time.Hour)}
	dir := t.TempDir()
	require.ErrorContains(t, (&guards.FileUsedGrants{FilePath: dir}).RecordUse(t.Context(), "n", use, now),
		"read the used grants")
	require.ErrorContains(t, (&guards.FileUsedGrants{FilePath: filepath.Join(dir, "missing", "x")}).RecordUse(t.Context(),
		"n", use, now), "write the used grants")
	path := filepath.Join(dir, "grants.json")
	require.NoError(t, (&guards.FileUsedGrants{FilePath: path}).RecordUse(t.Context(), "n", use, now))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	missing := &guards.SharedUsedGrants{KubeClient: fake.NewClientset(), Namespace: "stanch-system"}
	require.ErrorContains(t, missing.RecordUse(t.Context(), "n", use, now),
		"record the used grant in the ConfigMap stanch-system/stanch-used-grants")
}

func newGrantsClient(data map[string]string) *fake.Clientset {
	return fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "stanch-system", Name: guards.UsedGrantsConfigMap}, Data: data,
	})
}

func TestSharedUsesRefuseWhatTheyCannotReadOrWrite(t *testing.T) {
	use := guards.GrantUse{LeaseID: "LSE-1", LeaseExpiresAt: now.Add(time.Hour)}
	client := newGrantsClient(map[string]string{"n": "no JSON"})
	g := &guards.SharedUsedGrants{KubeClient: client, Namespace: "stanch-system"}
	err := g.RecordUse(t.Context(), "n", use, now)
	require.ErrorIs(t, err, guards.ErrGrantUsed, "a changed entry counts as used")
	require.NotContains(t, err.Error(), "ConfigMap", "the error names the use only")
	client.PrependReactor("patch", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("forbidden")
	})
	require.ErrorContains(t, g.RecordUse(t.Context(), "n2", use, now),
		"stanch-used-grants (`stanch manifests` creates it): forbidden")
}

func TestSharedUsesThatCannotBeReadAreNotWritten(t *testing.T) {
	client := newGrantsClient(nil)
	client.PrependReactor("get", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, &corev1.ConfigMap{}, errors.New("unreachable")
	})
	g := &guards.SharedUsedGrants{KubeClient: client, Namespace: "stanch-system"}
	require.ErrorContains(t, g.RecordUse(t.Context(), "n", guards.GrantUse{LeaseID: "LSE-1"}, now), "unreachable")
	for _, a := range client.Actions() {
		require.NotEqual(t, "patch", a.GetVerb(), "other uses would be lost")
	}
}

func TestExpiredUsesLeaveTheConfigMap(t *testing.T) {
	client := newGrantsClient(nil)
	g := &guards.SharedUsedGrants{KubeClient: client, Namespace: "stanch-system"}
	use := guards.GrantUse{LeaseID: "LSE-1", LeaseExpiresAt: now.Add(time.Hour)}
	require.NoError(t, g.RecordUse(t.Context(), "old", use, now))
	require.NoError(t, g.RecordUse(t.Context(), "new", use, now.Add(3*time.Hour)))
	m, err := client.CoreV1().ConfigMaps("stanch-system").Get(t.Context(), guards.UsedGrantsConfigMap, metav1.GetOptions{})
	require.NoError(t, err)
	require.Contains(t, m.Data, "new")
	require.NotContains(t, m.Data, "old")
}
