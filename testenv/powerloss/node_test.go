package powerloss_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/baseline"
	"stanch/sensors/gatewayrpc"
	"stanch/testenv/powerloss"
	"stanch/worker/authority"
)

func openSpool(t *testing.T, dir string) *gatewayrpc.Spool {
	t.Helper()
	s, err := gatewayrpc.OpenSpool(filepath.Join(dir, "state"), gatewayrpc.SpoolLimits{})
	require.NoError(t, err)
	return s
}

func addToSpool(t *testing.T, s *gatewayrpc.Spool, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, s.Add(sensors.Detection{ID: id}))
	}
}

func prepareSpool(ids ...string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		s := openSpool(t, dir)
		addToSpool(t, s, ids...)
		require.NoError(t, s.Close())
	}
}

// readSpool returns the spooled detections, except those that the gateway acknowledged: they may be sent again.
func readSpool(acknowledged ...string) func(*testing.T, string) (string, error) {
	return func(t *testing.T, dir string) (string, error) {
		s, err := gatewayrpc.OpenSpool(filepath.Join(dir, "state"), gatewayrpc.SpoolLimits{})
		if err != nil {
			return "", err
		}
		var ids []string
		for _, line := range s.Peek(100) {
			var d sensors.Detection
			if err := json.Unmarshal(line, &d); err != nil {
				return "", err
			}
			if !slices.Contains(acknowledged, d.ID) {
				ids = append(ids, d.ID)
			}
		}
		return strings.Join(ids, " "), s.Close()
	}
}

func TestSpooledDetectionSurvivesPowerLoss(t *testing.T) {
	for name, op := range map[string]powerloss.Operation{
		"first": {Run: func(t *testing.T, dir string) {
			s := openSpool(t, dir)
			addToSpool(t, s, "a")
			require.NoError(t, s.Sync())
		}, Read: readSpool()},
		"second": {Prepare: prepareSpool("a"), Run: func(t *testing.T, dir string) {
			s := openSpool(t, dir)
			addToSpool(t, s, "b")
			require.NoError(t, s.Sync())
		}, Read: readSpool()},
		"after an acknowledgment": {Prepare: prepareSpool("a", "b"), Run: func(t *testing.T, dir string) {
			s := openSpool(t, dir)
			require.NoError(t, s.Acknowledge(1))
			addToSpool(t, s, "c")
			require.NoError(t, s.Sync())
		}, Read: readSpool("a")},
		"after all were acknowledged": {Prepare: prepareSpool("a", "b"), Run: func(t *testing.T, dir string) {
			s := openSpool(t, dir)
			require.NoError(t, s.Acknowledge(2))
			addToSpool(t, s, "c")
			require.NoError(t, s.Sync())
		}, Read: readSpool("a", "b")},
		"at the end of the process": {Prepare: prepareSpool("a"), Run: prepareSpool("b"), Read: readSpool()},
	} {
		t.Run(name, func(t *testing.T) { powerloss.Check(t, op) })
	}
}

func TestNodeCertificateSurvivesPowerLoss(t *testing.T) {
	write := func(t *testing.T, dir, name string) {
		pki, err := authority.OpenOrCreatePKI(t.TempDir())
		require.NoError(t, err)
		certificate, key, err := pki.IssueCertificate(authority.RoleNode, name)
		require.NoError(t, err)
		require.NoError(t, gatewayrpc.WriteKeyPair(filepath.Join(dir, "state", "node.pem"), certificate, key))
	}
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) { write(t, dir, "old") },
		Run:     func(t *testing.T, dir string) { write(t, dir, "renewed") },
		Read: func(_ *testing.T, dir string) (string, error) {
			pair, err := gatewayrpc.ReadKeyPair(filepath.Join(dir, "state", "node.pem"))
			if err != nil {
				return "", err
			}
			return pair.Leaf.Subject.CommonName, nil
		},
	})
}

func TestPinnedKeysSurvivePowerLoss(t *testing.T) {
	pin := func(t *testing.T, dir string) {
		_, err := gatewayrpc.OpenPinnedKeys(filepath.Join(dir, "pinned"), "installation", openAuthority(t, dir).KeySet())
		require.NoError(t, err)
	}
	read := func(_ *testing.T, dir string) (string, error) {
		p, err := gatewayrpc.OpenPinnedKeys(filepath.Join(dir, "pinned"), "installation", attestation.KeySet{})
		if errors.Is(err, gatewayrpc.ErrNoPinnedKeys) {
			return "missing", nil
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprint(slices.Sorted(maps.Keys(p.Keyring()))), nil
	}
	t.Run("enrollment", func(t *testing.T) {
		powerloss.Check(t, powerloss.Operation{Prepare: prepareAuthority, Run: pin, Read: read})
	})
	t.Run("rotation", func(t *testing.T) {
		powerloss.Check(t, powerloss.Operation{
			Prepare: func(t *testing.T, dir string) {
				pin(t, dir)
				_, _, err := authority.RotateSigningKey(filepath.Join(dir, "keys"), false)
				require.NoError(t, err)
			},
			Run: func(t *testing.T, dir string) {
				var sets [][]byte
				for _, s := range openAuthority(t, dir).KeySetChain() {
					raw, err := json.Marshal(s)
					require.NoError(t, err)
					sets = append(sets, raw)
				}
				p, err := gatewayrpc.OpenPinnedKeys(filepath.Join(dir, "pinned"), "installation", attestation.KeySet{})
				require.NoError(t, err)
				require.NoError(t, p.ApplyRotations(sets))
			},
			Read: read,
		})
	})
}

func TestBaselinesSurvivePowerLoss(t *testing.T) {
	learn := func(t *testing.T, dir, digest string) {
		file := filepath.Join(dir, "state", "baselines.json")
		b, err := baseline.Open(file, baseline.Options{})
		require.NoError(t, err)
		b.Compare(&sensors.Event{
			Kind: sensors.KindExec, Time: time.Now(),
			Container: sensors.Container{ID: "c", ImageDigest: "sha256:" + digest},
			Process:   sensors.Process{Exe: "/bin/sh"},
		})
		require.NoError(t, b.Save(file))
	}
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) { learn(t, dir, "a") },
		Run:     func(t *testing.T, dir string) { learn(t, dir, "b") },
		Read: func(_ *testing.T, dir string) (string, error) {
			b, err := baseline.Open(filepath.Join(dir, "state", "baselines.json"), baseline.Options{})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d images", len(b.Images())), nil
		},
	})
}
