package powerloss_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

// recomputed marks a function that uses WriteRecomputable.
const recomputed = "recomputed"

// durableWriters lists every function that changes a file through durablefile, what the file is, and the function's
// power-loss test: of this package, or of the named one. "" means none; the line says why.
var durableWriters = map[string]struct{ file, test string }{
	"worker/authority.writeFile": {
		"authority.seed, .retired and .chain",
		"TestRotatedSigningKeySurvivesPowerLoss",
	},
	"worker/authority.createSecret":       {"authority.seed, codec.key", "TestNewSigningKeySurvivesPowerLoss"},
	"worker/authority.LoadOrCreateSecret": {"authority.seed, codec.key", "TestNewPayloadKeySurvivesPowerLoss"},
	"worker/authority.OpenOrCreatePKI":    {"ca.key, ca.crt", "TestCertificateAuthoritySurvivesPowerLoss"},
	"worker/authority.createCA":           {"ca.crt", "TestCertificateAuthoritySurvivesPowerLoss"},
	"worker/authority.createCAKey":        {"ca.key", "TestCertificateAuthoritySurvivesPowerLoss"},
	"worker/authority.PKI.WriteCertificateFiles": {
		"certificates that are issued to files",
		"TestIssuedCertificateSurvivesPowerLoss",
	},
	"worker/codec.RotateKey":                  {"codec.key, codec.retired", "TestRotatedPayloadKeySurvivesPowerLoss"},
	"worker/datadir.Lock":                     {"the data directory", "TestDataFormatSurvivesPowerLoss"},
	"worker/datadir.recordDataFormat":         {"format", "TestDataFormatSurvivesPowerLoss"},
	"worker/archive.writeArchiveFile":         {"archives of incidents", "TestArchiveSurvivesPowerLoss"},
	"worker/guards.FileKillSwitch.writeState": {"stopped, the kill switch", "TestPauseSurvivesPowerLoss"},
	"worker/guards.FileUsedGrants.RecordUse":  {"grants.json", "TestUsedGrantSurvivesPowerLoss"},
	"worker/health.Monitor.saveNodeRecords":   {"nodes.json", "TestConnectedNodesSurvivePowerLoss"},
	"worker/playbooktest.writeFileAtomically": {
		"the user's playbook tests",
		"worker/playbooktest.TestUpdatedPlaybookSurvivesPowerLoss",
	},
	"activities.EvidenceStore.StoreArtifact": {"evidence", "TestEvidenceOfKilledProcessSurvivesPowerLoss"},
	"activities.EvidenceStore.writeBlob":     {"evidence", "TestEvidenceSurvivesPowerLoss"},
	"activities.EvidenceStore.appendEntry":   {"manifests of evidence", "TestEvidenceSurvivesPowerLoss"},
	"sensors/agent.openRevocations": {
		"the node's state directory",
		"sensors/agent.TestRevocationSurvivesPowerLoss",
	},
	"sensors/agent.revocations.record":     {"released.json", "sensors/agent.TestRevocationSurvivesPowerLoss"},
	"sensors/agent.detectedCgroups.record": {"sightings.json, whose content is valid for one boot", recomputed},
	"sensors/baseline.Open":                {"a damaged baselines.json, which is kept for analysis only", ""},
	"sensors/baseline.Baselines.Save":      {"baselines.json", "TestBaselinesSurvivePowerLoss"},
	"sensors/gatewayrpc.WriteKeyPair":      {"node.pem", "TestNodeCertificateSurvivesPowerLoss"},
	"sensors/gatewayrpc.PinnedKeys.save":   {"pinned keys", "TestPinnedKeysSurvivePowerLoss"},
	"sensors/gatewayrpc.OpenSpool":         {"detections.spool", "TestSpooledDetectionSurvivesPowerLoss"},
	"sensors/gatewayrpc.Spool.compact":     {"detections.spool", "TestSpooledDetectionSurvivesPowerLoss"},
	"sensors/integrations/forward.saveState": {
		"the checkpoint of stanch forward",
		"sensors/integrations/forward.TestCheckpointSurvivesPowerLoss",
	},
	"cmd/stanch.writeKeySet": {
		"authority.json of a node",
		"cmd/stanch.TestNodeKeySetSurvivesPowerLoss",
	},
	"cmd/stanch.createAuthority": {
		"a directory, before the keys in it",
		"TestNewSigningKeySurvivesPowerLoss",
	},
	"cmd/stanch.upRun.startTemporal":        {"temporal/address", recomputed},
	"cmd/stanch-sensor.openNodeCertificate": {"the node's state directory", "TestNodeCertificateSurvivesPowerLoss"},
	// SQLite syncs what is in its file, and until the rename nothing was acknowledged: a lost rename creates it again.
	"worker/embeddedtemporal.Start":           {"the directory of temporal.db", ""},
	"worker/embeddedtemporal.prepareDatabase": {"temporal.db", ""},
	"worker/embeddedtemporal.PersistDatabase": {"temporal.db", "TestPersistedRowOfTemporalSurvivesPowerLoss"},
}

// otherWriters lists every other function that creates or renames a file, and why it needs no sync.
var otherWriters = map[string]string{
	"worker/datadir.Lock":              "the lock file is empty",
	"worker/simulationreport.NewJSON":  "a temporary file",
	"worker/export.Open":               "delivery to an export is not guaranteed; the workflow history is the record",
	"sensors/gatewayrpc.Spool.compact": "it opens the file that durablefile wrote",
	"sensors/agent.heartbeat.execute":  "the heartbeat program is written before each use",
	"sensors/snapshot.leaveCgroupV1":   "a file of the kernel",
	"sensors/snapshot.newThawer":       "a file of the kernel",
	"cmd/stanch.writeJUnit":            "a report, written again by the next run",
	"cmd/stanch.newCrashFailpoint":     "a marker of the crash tests",
	"cmd/stanch.readFakeToken":         "a dummy that the drill reads once",
	"cmd/stanch.removeCgroup":          "files of the kernel",
	"cmd/stanch.runTerminalShell":      "devices",
}

// fileFunctions are functions of package os that create or rename files.
var fileFunctions = []string{"Create", "CreateTemp", "Link", "OpenFile", "Rename", "WriteFile"}

func TestEveryFileWriterHasPowerLossTest(t *testing.T) {
	durable, other := map[string][]string{}, map[string][]string{}
	for _, layer := range []string{"sensors", "playbooks", "activities", "workflows", "worker", "cmd"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, layer), func(file string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || filepath.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") {
				return err
			}
			dir := path.Dir(filepath.ToSlash(strings.TrimPrefix(file, root+"/")))
			if dir == "sensors/durablefile" {
				return nil
			}
			return findWriters(file, func(function, pkg, called string) {
				name := dir + "." + function
				switch {
				case pkg == "durablefile":
					durable[name] = append(durable[name], called)
				case pkg == "renameio" || pkg == "os" && slices.Contains(fileFunctions, called):
					other[name] = append(other[name], called)
				}
			})
		}))
	}
	require.Greater(t, len(durable), 20, "the search found too little")
	require.Equal(t, slices.Sorted(maps.Keys(durableWriters)), slices.Sorted(maps.Keys(durable)),
		"add a power-loss test and a line in durableWriters")
	require.Equal(t, slices.Sorted(maps.Keys(otherWriters)), slices.Sorted(maps.Keys(other)),
		"use sensors/durablefile, or say in otherWriters why the file needs no sync")
	for name, w := range durableWriters {
		require.NotEmpty(t, w.file, name)
		dir, test, found := strings.Cut(w.test, ".")
		if !found {
			dir, test = "testenv/powerloss", w.test
		}
		switch {
		case w.test == recomputed:
			require.Equal(t, []string{"WriteRecomputable"}, durable[name])
		case w.test != "":
			require.True(t, hasTest(t, dir, test), "%s: %s has no %s", name, dir, test)
		}
	}
}

// findWriters calls found for each call of a function of a package, with the function that contains it.
func findWriters(file string, found func(function, pkg, called string)) error {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := s.X.(*ast.Ident); ok {
					found(functionName(f), pkg.Name, s.Sel.Name)
				}
			}
			return true
		})
	}
	return nil
}

// functionName returns the name of a function, after its type for a method.
func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	if pointer, ok := of.(*ast.StarExpr); ok {
		of = pointer.X
	}
	return types.ExprString(of) + "." + f.Name.Name
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	require.NoError(t, err)
	return slices.ContainsFunc(files, func(file string) bool {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		return strings.Contains(string(raw), "func "+name+"(t *testing.T)") && strings.Contains(string(raw),
			"powerloss.Check(")
	})
}
