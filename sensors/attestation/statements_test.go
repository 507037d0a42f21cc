package attestation_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/attestation"
)

func TestAttestationIsForOneTargetAndATime(t *testing.T) {
	const maxAge = 15 * time.Minute
	k := newKey(t, 1)
	ring := attestation.NewKeyring(k.PublicKey())
	verify := func(accepted time.Time, target string) (attestation.Attestation, error) {
		return ring.VerifyAttestation(sign(t, k, attestation.PayloadTypeAttestation, attestation.Attestation{
			DetectionID: "d-1", TargetID: "pod:1", AcceptedAt: accepted,
		}), target, now, maxAge)
	}
	for _, accepted := range []time.Time{now, now.Add(-maxAge), now.Add(30 * time.Second)} {
		a, err := verify(accepted, "pod:1")
		require.NoError(t, err, accepted)
		require.Equal(t, "d-1", a.DetectionID)
	}
	for want, accepted := range map[string]time.Time{
		"15m": now.Add(-maxAge - time.Nanosecond), "more than the maximum": now.Add(30*time.Second + time.Nanosecond),
	} {
		a, err := verify(accepted, "pod:1")
		requireUnverified(t, err, want)
		require.Empty(t, a)
	}
	a, err := verify(now, "pod:2")
	requireUnverified(t, err, "is about pod:1, not pod:2")
	require.Empty(t, a)
	a, err = ring.VerifyAttestation(sign(t, k, attestation.PayloadTypeGrant, attestation.Grant{}), "", now, maxAge)
	requireUnverified(t, err, "the payload type")
	require.Empty(t, a)
}

func TestManualRequestCoversItsActionsAndDuration(t *testing.T) {
	a := attestation.Attestation{ManualRequest: &attestation.ManualRequest{
		Actions: []string{"pod.isolate"}, MaxDuration: time.Hour,
	}}
	require.True(t, a.Permits("pod.isolate", time.Hour))
	require.False(t, a.Permits("pod.isolate", time.Hour+1))
	require.False(t, a.Permits("pod.delete", time.Minute))
	require.True(t, attestation.Attestation{}.Permits("pod.delete", 1000*time.Hour), "a detection covers everything")
}

func TestGrantIsForOneOperationAndATime(t *testing.T) {
	k := newKey(t, 1)
	ring := attestation.NewKeyring(k.PublicKey())
	signed := sign(t, k, attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: "n", Operation: attestation.OperationApply, IssuedAt: now, ExpiresAt: now.Add(time.Minute),
	})
	for _, at := range []time.Time{now, now.Add(time.Minute), now.Add(-30 * time.Second)} {
		g, err := ring.VerifyGrant(signed, attestation.OperationApply, at)
		require.NoError(t, err, at)
		require.Equal(t, "n", g.Nonce)
	}
	for _, at := range []time.Time{now.Add(time.Minute + time.Nanosecond), now.Add(-30*time.Second - time.Nanosecond)} {
		g, err := ring.VerifyGrant(signed, attestation.OperationApply, at)
		requireUnverified(t, err, "valid from 2026-11-23T03:00:00Z to 2026-11-23T03:01:00Z")
		require.Empty(t, g)
	}
	g, err := ring.VerifyGrant(signed, attestation.OperationRelease, now)
	requireUnverified(t, err, `permits "apply", not "release"`)
	require.Empty(t, g)
	g, err = attestation.NewKeyring(newKey(t, 2).PublicKey()).VerifyGrant(signed, attestation.OperationApply, now)
	requireUnverified(t, err, "unknown key")
	require.Empty(t, g)
	g, err = ring.VerifyGrant(sign(t, k, attestation.PayloadTypeVote, nil), "", time.Time{})
	requireUnverified(t, err, "the payload type")
	require.Empty(t, g)
}

func TestGrantPermitsItsPlanOnItsTargets(t *testing.T) {
	g := attestation.Grant{PlanHash: "plan", Targets: []string{"pod:1", "pod:2"}}
	require.NoError(t, g.Permits("plan", "pod:2"))
	requireUnverified(t, g.Permits("other", "pod:1"), "the plan changed")
	requireUnverified(t, g.Permits("plan", "pod:3"), "pod:3 is not among")
}

func TestLeaseTokenIsForOneActionOnOneTargetUntilItsEnd(t *testing.T) {
	k := newKey(t, 1)
	ring := attestation.NewKeyring(k.PublicKey())
	signed := sign(t, k, attestation.PayloadTypeLeaseToken, attestation.LeaseToken{
		Nonce: "n", Action: "pod.isolate", TargetID: "pod:1", ExpiresAt: now,
	})
	token, err := ring.VerifyLeaseToken(signed, "pod.isolate", "pod:1", now)
	require.NoError(t, err)
	require.Equal(t, "n", token.Nonce)
	for want, verify := range map[string]func() (attestation.LeaseToken, error){
		"not pod.delete on pod:1": func() (attestation.LeaseToken, error) {
			return ring.VerifyLeaseToken(signed, "pod.delete", "pod:1", now)
		},
		"not pod.isolate on pod:2": func() (attestation.LeaseToken, error) {
			return ring.VerifyLeaseToken(signed, "pod.isolate", "pod:2", now)
		},
		"expired at 2026-11-23T03:00:00Z": func() (attestation.LeaseToken, error) {
			return ring.VerifyLeaseToken(signed, "pod.isolate", "pod:1", now.Add(1))
		},
		"the payload type": func() (attestation.LeaseToken, error) {
			return ring.VerifyLeaseToken(sign(t, k, attestation.PayloadTypeGrant, attestation.Grant{}), "", "", time.Time{})
		},
	} {
		token, err := verify()
		requireUnverified(t, err, want)
		require.Empty(t, token)
	}
}

func TestDrillTokenIsForItsRegisteredTarget(t *testing.T) {
	registered := attestation.DrillTarget{ID: "container:1", CgroupID: 7}
	token := func(target string, drill *attestation.DrillTarget) attestation.LeaseToken {
		return attestation.LeaseToken{DrillOnly: true, TargetID: target, DrillTarget: drill}
	}
	for name, c := range map[string]struct {
		token  attestation.LeaseToken
		reason string
	}{
		"no drill":          {attestation.LeaseToken{TargetID: "container:2"}, ""},
		"registered":        {token("container:1", &registered), ""},
		"unregistered":      {token("container:1", nil), "its target is not registered"},
		"another target":    {token("container:2", &registered), "not registered"},
		"target of no node": {token("pod:1", &attestation.DrillTarget{ID: "pod:1"}), ""},
		"another cgroup": {attestation.LeaseToken{
			DrillOnly: true, TargetID: "container:1", DrillTarget: &attestation.DrillTarget{ID: "container:1", CgroupID: 8},
		}, "registered cgroup 8 for container:1, not cgroup 7"},
		"smallest cgroup": {attestation.LeaseToken{
			DrillOnly: true, TargetID: "container:1", DrillTarget: &attestation.DrillTarget{ID: "container:1", CgroupID: 1},
		}, "registered cgroup 1"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.token.CheckDrillTarget(7)
			if c.reason == "" {
				require.NoError(t, err)
				return
			}
			requireUnverified(t, err, c.reason)
		})
	}
}

func TestDrillFindsOnlyRegisteredTargets(t *testing.T) {
	var none *attestation.DrillRegistration
	_, ok := none.FindTarget("pod:1")
	require.False(t, ok)
	d := &attestation.DrillRegistration{Targets: []attestation.DrillTarget{{ID: "pod:1"}, {ID: "pod:2", CgroupID: 2}}}
	got, ok := d.FindTarget("pod:2")
	require.True(t, ok)
	require.Equal(t, d.Targets[1], got)
	got, ok = d.FindTarget("pod:3")
	require.False(t, ok)
	require.Empty(t, got)
}
