package powerloss_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/sensors/attestation"
	"stanch/testenv/powerloss"
	"stanch/worker/archive"
	"stanch/worker/audit"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/worker/datadir"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/nodeserver"
)

const testIncidentID = "INC-01JABCDEFGHJKMNPQRSTVWXYZ0"

func openAuthority(t *testing.T, dir string) *authority.Authority {
	t.Helper()
	a, err := authority.OpenOrCreate(filepath.Join(dir, "keys"))
	require.NoError(t, err)
	return a
}

func prepareAuthority(t *testing.T, dir string) { openAuthority(t, dir) }

func TestNewSigningKeySurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Run: prepareAuthority,
		Read: func(_ *testing.T, dir string) (string, error) {
			a, err := authority.OpenExisting(filepath.Join(dir, "keys"))
			if errors.Is(err, fs.ErrNotExist) {
				return "missing", nil
			}
			if err != nil {
				return "", err
			}
			_, err = os.Stat(filepath.Join(dir, "keys", "authority.chain"))
			return "key " + a.KeyID(), err
		},
	})
}

// Rotation writes three files. In between, the old key is active and still verifies.
func TestRotatedSigningKeySurvivesPowerLoss(t *testing.T) {
	for name, distrust := range map[string]bool{"trusted": false, "distrusted": true} {
		t.Run(name, func(t *testing.T) {
			var signed attestation.Envelope
			powerloss.Check(t, powerloss.Operation{
				Prepare: func(t *testing.T, dir string) {
					openAuthority(t, dir)
					_, _, err := authority.RotateSigningKey(filepath.Join(dir, "keys"), false)
					require.NoError(t, err)
					signed, err = openAuthority(t, dir).Sign("test", "statement")
					require.NoError(t, err)
				},
				Run: func(t *testing.T, dir string) {
					_, _, err := authority.RotateSigningKey(filepath.Join(dir, "keys"), distrust)
					require.NoError(t, err)
				},
				Read: func(_ *testing.T, dir string) (string, error) {
					a, err := authority.OpenExisting(filepath.Join(dir, "keys"))
					if err != nil {
						return "", err
					}
					var body string
					valid := a.Keyring().Verify(signed, "test", &body) == nil
					return fmt.Sprintf("key %s after %d rotations, old statement valid: %t", a.KeyID(), len(a.KeySetChain()),
						valid), nil
				},
			})
		})
	}
}

func openCodec(t *testing.T, dir string) {
	t.Helper()
	_, err := codec.Open(filepath.Join(dir, "keys"))
	require.NoError(t, err)
}

func TestNewPayloadKeySurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{Run: openCodec, Read: powerloss.ReadFile("keys/codec.key")})
}

func TestRotatedPayloadKeySurvivesPowerLoss(t *testing.T) {
	var encrypted []*commonpb.Payload
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) {
			c, err := codec.Open(filepath.Join(dir, "keys"))
			require.NoError(t, err)
			encrypted, err = c.Encode([]*commonpb.Payload{{Data: []byte("payload")}})
			require.NoError(t, err)
		},
		Run: func(t *testing.T, dir string) {
			_, _, err := codec.RotateKey(filepath.Join(dir, "keys"))
			require.NoError(t, err)
		},
		Read: func(t *testing.T, dir string) (string, error) {
			c, err := codec.Open(filepath.Join(dir, "keys"))
			if err != nil {
				return "", err
			}
			if _, err := c.Decode(encrypted); err != nil {
				return "", err
			}
			return powerloss.ReadFile("keys/codec.key")(t, dir)
		},
	})
}

func TestCertificateAuthoritySurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Run: func(t *testing.T, dir string) {
			_, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
			require.NoError(t, err)
		},
		Read: func(t *testing.T, dir string) (string, error) {
			before, err := powerloss.ReadFile("pki/ca.crt")(t, dir)
			if err != nil {
				return "", err
			}
			_, err = authority.OpenOrCreatePKI(filepath.Join(dir, "pki")) // a key without a certificate gets a new one
			return before, err
		},
	})
}

func TestIssuedCertificateSurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) {
			_, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
			require.NoError(t, err)
		},
		Run: func(t *testing.T, dir string) {
			pki, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
			require.NoError(t, err)
			_, _, err = pki.WriteCertificateFiles(filepath.Join(dir, "out"), "node", authority.RoleNode, "node-1")
			require.NoError(t, err)
		},
		Read: func(t *testing.T, dir string) (string, error) {
			out := filepath.Join(dir, "out")
			if _, err := os.Stat(filepath.Join(out, "ca.crt")); err != nil {
				return "incomplete", nil
			}
			_, err := tls.LoadX509KeyPair(filepath.Join(out, "node.crt"), filepath.Join(out, "node.key"))
			return "complete", err
		},
	})
}

func TestDataFormatSurvivesPowerLoss(t *testing.T) {
	lock := func(t *testing.T, dir string) {
		unlock, err := datadir.Lock(filepath.Join(dir, "data"))
		require.NoError(t, err)
		unlock()
	}
	powerloss.Check(t, powerloss.Operation{Run: lock, Read: powerloss.ReadFile("data/format")})
}

func TestPauseSurvivesPowerLoss(t *testing.T) {
	open := func(t *testing.T, dir string) *guards.FileKillSwitch {
		return &guards.FileKillSwitch{FilePath: filepath.Join(dir, "stopped"), Authority: openAuthority(t, dir)}
	}
	read := func(t *testing.T, dir string) (string, error) {
		paused, by, err := open(t, dir).IsPaused(t.Context())
		return fmt.Sprintf("%t %s", paused, by), err
	}
	pause := func(t *testing.T, dir string) { require.NoError(t, open(t, dir).Pause(t.Context(), "ana", "test")) }
	t.Run("pause", func(t *testing.T) {
		powerloss.Check(t, powerloss.Operation{Prepare: prepareAuthority, Run: pause, Read: read})
	})
	t.Run("resume", func(t *testing.T) {
		powerloss.Check(t, powerloss.Operation{Prepare: pause, Run: func(t *testing.T, dir string) {
			require.NoError(t, open(t, dir).Resume(t.Context(), "ana"))
		}, Read: read})
	})
}

func TestUsedGrantSurvivesPowerLoss(t *testing.T) {
	now := time.Now()
	use := func(t *testing.T, dir, nonce, lease string) error {
		g := &guards.FileUsedGrants{FilePath: filepath.Join(dir, "grants.json")}
		return g.RecordUse(t.Context(), nonce, guards.GrantUse{LeaseID: lease, LeaseExpiresAt: now.Add(time.Hour)}, now)
	}
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) { require.NoError(t, use(t, dir, "first", "lease-1")) },
		Run:     func(t *testing.T, dir string) { require.NoError(t, use(t, dir, "second", "lease-2")) },
		Read: func(t *testing.T, dir string) (string, error) {
			if err := use(t, dir, "first", "another"); !errors.Is(err, guards.ErrGrantUsed) {
				return "", fmt.Errorf("the first grant can be used again: %w", err)
			}
			err := use(t, dir, "second", "another")
			if errors.Is(err, guards.ErrGrantUsed) {
				return "used", nil
			}
			return "unused", err
		},
	})
}

func TestArchiveSurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Prepare: prepareAuthority,
		Run: func(t *testing.T, dir string) {
			runs := []audit.WorkflowRun{{
				WorkflowID: testIncidentID, RunID: "run", WorkflowType: "Incident",
				Events: []*historypb.HistoryEvent{{EventId: 1}},
			}}
			store := archive.Store{Dir: filepath.Join(dir, "archive")}
			require.NoError(t, store.Write(testIncidentID, runs, openAuthority(t, dir), time.Now()))
		},
		Read: func(t *testing.T, dir string) (string, error) {
			store := archive.Store{Dir: filepath.Join(dir, "archive")}
			got, err := store.Read(testIncidentID, openAuthority(t, dir).Keyring())
			if errors.Is(err, archive.ErrNotFound) {
				return "missing", nil
			}
			if len(got.Differences) > 0 {
				return "", fmt.Errorf("the archive has differences: %v", got.Differences)
			}
			return fmt.Sprintf("%d histories", len(got.Runs)), err
		},
	})
}

func openEvidence(t *testing.T, dir string) *activities.EvidenceStore {
	t.Helper()
	return &activities.EvidenceStore{Dir: filepath.Join(dir, "evidence"), Authority: openAuthority(t, dir)}
}

func storeArtifact(t *testing.T, dir, name string) {
	t.Helper()
	_, err := openEvidence(t, dir).StoreArtifact(testIncidentID, "pod.logs", "shop/web",
		activities.Artifact{Name: name, Data: []byte("content of " + name)}, time.Now())
	require.NoError(t, err)
}

// readEvidence does what a restarted process does: it appends to the manifest, which must then verify.
func readEvidence(t *testing.T, dir string) (string, error) {
	t.Helper()
	s := openEvidence(t, dir)
	if _, err := s.Append(testIncidentID, activities.EntryKindAccess, activities.AuditRecord{Note: "read"}); err != nil {
		return "", err
	}
	lines, findings, err := s.Verify(testIncidentID, s.Authority.Keyring(), "")
	if len(findings) > 0 {
		return "", fmt.Errorf("the evidence is damaged: %v", findings)
	}
	var names []string
	for _, l := range lines {
		if l.Entry.Evidence != nil {
			names = append(names, l.Entry.Evidence.Name)
		}
	}
	return strings.Join(names, " "), err
}

func TestEvidenceSurvivesPowerLoss(t *testing.T) {
	first := func(t *testing.T, dir string) { storeArtifact(t, dir, "first") }
	second := func(t *testing.T, dir string) { storeArtifact(t, dir, "second") }
	t.Run("first of an installation", func(t *testing.T) {
		powerloss.Check(t, powerloss.Operation{Prepare: prepareAuthority, Run: first, Read: readEvidence})
	})
	t.Run("second of an incident", func(t *testing.T) {
		powerloss.Check(t, powerloss.Operation{Prepare: first, Run: second, Read: readEvidence})
	})
}

// A retry finds what a killed process wrote and did not sync. It must not acknowledge that before it is durable.
func TestEvidenceOfKilledProcessSurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) {
			storeArtifact(t, dir, "first")
			complete := t.TempDir()
			require.NoError(t, os.CopyFS(complete, os.DirFS(dir)))
			storeArtifact(t, complete, "second")
			require.NoError(t, os.CopyFS(filepath.Join(dir, "complete"), os.DirFS(complete)))
			require.NoError(t, filepath.WalkDir(filepath.Join(complete, "evidence"),
				func(path string, e fs.DirEntry, err error) error {
					if err != nil || !e.IsDir() {
						return err
					}
					rel, err := filepath.Rel(complete, path)
					require.NoError(t, err)
					return os.MkdirAll(filepath.Join(dir, rel), 0o700)
				}))
		},
		Run: func(t *testing.T, dir string) {
			from := os.DirFS(filepath.Join(dir, "complete"))
			require.NoError(t, fs.WalkDir(from, "evidence", func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				raw, err := fs.ReadFile(from, path)
				require.NoError(t, err)
				if old, err := os.ReadFile(filepath.Join(dir, path)); err == nil {
					f, err := os.OpenFile(filepath.Join(dir, path), os.O_WRONLY|os.O_APPEND, 0)
					require.NoError(t, err)
					_, err = f.Write(raw[len(old):])
					require.NoError(t, err)
					return f.Close()
				}
				return os.WriteFile(filepath.Join(dir, path), raw, 0o600)
			}))
			storeArtifact(t, dir, "second")
		},
		Read:           readEvidenceOrIncomplete,
		IsIntermediate: func(state string) bool { return state == "incomplete" },
	})
}

// readEvidenceOrIncomplete is readEvidence, where the killed process may have left a line without its artifact: it did
// not acknowledge the line.
func readEvidenceOrIncomplete(t *testing.T, dir string) (string, error) {
	t.Helper()
	state, err := readEvidence(t, dir)
	if err != nil {
		return "incomplete", nil
	}
	return state, nil
}

func TestConnectedNodesSurvivePowerLoss(t *testing.T) {
	connect := func(t *testing.T, dir, node string) {
		m := health.NewMonitor(health.Options{
			StateFile: filepath.Join(dir, "nodes.json"), Log: slog.New(slog.DiscardHandler),
		})
		m.OnNodeEvent(nodeserver.Event{Node: node, Kind: nodeserver.Connected})
	}
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) { connect(t, dir, "node-1") },
		Run:     func(t *testing.T, dir string) { connect(t, dir, "node-2") },
		Read: func(t *testing.T, dir string) (string, error) {
			raw, err := os.ReadFile(filepath.Join(dir, "nodes.json"))
			if err != nil {
				return "", err
			}
			var nodes map[string]any
			err = json.Unmarshal(raw, &nodes)
			return fmt.Sprint(nodes["node-1"] != nil, nodes["node-2"] != nil), err
		},
	})
}
