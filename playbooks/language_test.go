package playbooks_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
)

// newTestCatalog returns a small catalog with every class, so that the language is tested independently of the real
// actions.
func newTestCatalog() playbooks.Catalog {
	type tail struct {
		Tail     int  `json:"tail,omitempty" jsonschema:"minimum=1,maximum=10000"`
		Previous bool `json:"previous,omitempty"`
	}
	type scale struct {
		Replicas int `json:"replicas" jsonschema:"minimum=0,maximum=100"`
	}
	type text struct {
		Text string `json:"text,omitempty"`
	}
	type ctx struct {
		SameDigestPods int `json:"same_digest_pod_count"`
	}
	pod := []playbooks.TargetKind{playbooks.TargetPod}
	c := playbooks.Catalog{}
	for _, s := range []playbooks.ActionSpec{
		{Name: "workload", Verb: playbooks.VerbEnrich, Class: playbooks.ClassObserve, Targets: pod, Outputs: ctx{}},
		{Name: "process.snapshot", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve, Targets: pod},
		{Name: "pod.logs", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve, Targets: pod, Params: tail{}},
		{Name: "pod.manifest", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve, Targets: pod},
		{Name: "pod.isolate", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Targets: pod, Reversible: true},
		{Name: "pod.freeze", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Targets: pod, Reversible: true},
		{Name: "pod.restart", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Targets: pod},
		{
			Name: "key.revoke", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Targets: pod, Reversible: true,
			MinDuration: time.Hour,
		},
		{
			Name: "workload.scale", Verb: playbooks.VerbContain, Class: playbooks.ClassDisrupt, Targets: pod, Reversible: true,
			Params: scale{},
		},
		{Name: "log", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve, Targets: pod, Params: text{}},
	} {
		c[s.Name] = s
	}
	return c
}

// Each folder of testdata/cases contains a playbook and the exact diagnostics that it causes.
func TestDiagnosticsHavePositionAndHint(t *testing.T) {
	cases, err := filepath.Glob("testdata/cases/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, cases)
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			_, problems := playbooks.LoadPlaybook(filepath.Base(file), source, newTestCatalog())
			var got strings.Builder
			for _, p := range problems {
				got.WriteString(p.Render(source) + "\n")
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if os.Getenv("UPDATE") != "" {
				require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

// Each folder of testdata/constructs is one construct: pass.yaml has no diagnostics, fail.yaml has those of fail.txt.
// The other files of a folder are what these two may call.
func TestEachConstructPassesAndFails(t *testing.T) {
	folders, err := filepath.Glob("testdata/constructs/*")
	require.NoError(t, err)
	require.NotEmpty(t, folders)
	require.NotEmpty(t, playbooks.StepKinds())
	seen := map[string]bool{}
	for _, dir := range folders {
		seen[filepath.Base(dir)] = true
		t.Run(filepath.Base(dir), func(t *testing.T) {
			require.Empty(t, checkFixtureCase(t, dir, "pass.yaml"))
			got := checkFixtureCase(t, dir, "fail.yaml")
			golden := filepath.Join(dir, "fail.txt")
			if os.Getenv("UPDATE") != "" {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
	for _, kind := range playbooks.StepKinds() {
		require.True(t, seen[kind.Name] || kind.Name == "notify" || kind.Name == "ticket", "no case for `%s`", kind.Name)
	}
}

// checkFixtureCase checks one of the two cases of a folder, with the files that it may call.
func checkFixtureCase(t *testing.T, dir, name string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	require.NoError(t, err)
	var sources []playbooks.SourceFile
	texts := map[string][]byte{}
	for _, file := range files {
		base := filepath.Base(file)
		if base != name && (base == "pass.yaml" || base == "fail.yaml") {
			continue
		}
		texts[base], err = os.ReadFile(file)
		require.NoError(t, err)
		sources = append(sources, playbooks.SourceFile{File: base, Content: texts[base]})
	}
	_, problems := playbooks.LoadPlaybooks(sources, newTestCatalog())
	var got strings.Builder
	for _, p := range problems {
		got.WriteString(p.Render(texts[p.File]) + "\n")
	}
	return got.String()
}

// An invalid replacement does not remove the shipped playbook.
func TestInvalidReplacementKeepsTheReplacedPlaybook(t *testing.T) {
	good := "playbook: p\ndescription: x\nmatch: { objective: crypto-mining }\nsteps:\n  - notify: log\n"
	for _, broken := range []string{strings.Replace(good, "log", "lag", 1), strings.Replace(good, "steps", "stebs", 1)} {
		programs, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{
			{File: "shipped.yaml", Content: []byte(good)},
			{File: "mine.yaml", Content: []byte(broken)},
		}, newTestCatalog())
		require.True(t, problems.HasErrors())
		require.Len(t, programs, 1)
		require.Equal(t, "shipped.yaml", programs[0].File)
		require.ErrorContains(t, problems.Err(), "`p` from shipped.yaml stays in use")
	}
}

// A run was checked when it was selected: rules of later versions do not end it.
func TestActiveRunIsNotCheckedWithNewerRules(t *testing.T) {
	for _, steps := range []string{
		"  - enrich: workload\n    id: ctx\n    if: incident.total_detections > 1\n  - notify: log\n    if: ctx.same_digest_pod_count > 1\n",
		"  - notify: log\n    if: \"false\"\n", "  - enrich: workload\n    id: live\n",
		"  - notify: log\n    with: { text: \"https://user:pass@host\" }\n",
	} {
		source := playbooks.SourceFile{
			File:    "p.yaml",
			Content: []byte("playbook: p\nmatch: { objective: crypto-mining }\nsteps:\n" + steps),
		}
		_, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{source}, newTestCatalog())
		require.True(t, problems.HasErrors(), steps)
		program, problems := playbooks.LoadForRun(source, nil, newTestCatalog())
		require.NotNil(t, program, "%s: %v", steps, problems)
	}
}

func TestEnumFieldsCompareWithStrings(t *testing.T) {
	for when, want := range map[string]bool{
		`incident.objective == "crypto-mining" && incident.severity != "low"`:          true,
		`incident.objective in ["escape", "crypto-mining"]`:                            true,
		`any(incident.detections, .objective == "execution" && .severity == "medium")`: true,
		`any(incident.targets, .kind == "container")`:                                  false,
		`incident.objective startsWith "crypto" and len(incident.objective) == 13`:     true,
	} {
		source := "playbook: p\nmatch: { when: '" + when + "' }\nsteps:\n  - evidence: pod.logs\n"
		program, problems := playbooks.LoadPlaybook("p.yaml", []byte(source), newTestCatalog())
		require.NoError(t, problems.Err(), when)
		got, why := program.Matches(playbooks.Incident{
			Objective: "crypto-mining", Severity: "high", Targets: []playbooks.Target{{Kind: playbooks.TargetPod}},
			Detections: []playbooks.DetectionSummary{{Objective: "execution", Severity: "medium"}},
		})
		require.Equal(t, want, got, "%s: %s", when, why)
	}
}

func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"library/*.yaml", "testdata/cases/*.yaml", "testdata/constructs/*/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(f, err)
			f.Add(source)
		}
	}
	called, err := os.ReadFile("testdata/constructs/call/isolate-pods.yaml")
	require.NoError(f, err)
	callee, problems := playbooks.LoadPlaybook("isolate-pods.yaml", called, newTestCatalog())
	require.NoError(f, problems.Err())
	f.Fuzz(func(t *testing.T, source []byte) {
		began := time.Now()
		program, problems := playbooks.LoadPlaybook("fuzz.yaml", source, newTestCatalog(), callee)
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("it took %s", took)
		}
		if program == nil && !problems.HasErrors() {
			t.Fatal("neither a program nor an error")
		}
		for _, p := range problems {
			_ = p.Render(source)
		}
		if program != nil {
			program.Matches(playbooks.Incident{})
			_ = playbooks.Explain(program)
			_, _ = playbooks.LoadPlaybooks([]playbooks.SourceFile{
				{File: "a.yaml", Content: source},
				{File: "b.yaml", Content: source},
			}, newTestCatalog())
			_, err := json.Marshal(program.Name)
			require.NoError(t, err)
		}
	})
}
