package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// sampleModule is a module whose tests notice some mutants of its code and miss others.
var sampleModule = map[string]string{
	"go.mod": "module sample\n\ngo 1.24\n",
	"code/code.go": `package code

import (
	"errors"
	"time"
)

const limit = 3

func Allowed(n int, admin bool) (string, error) {
	if n > limit && !admin {
		return "", errors.New("too many")
	}
	return "yes", nil
}

func Late(at, end time.Time) bool { return at.After(end) }

func Unused() int { return 1 }
`,
	"code/code_test.go": `package code

import (
	"testing"
	"time"
)

func TestAllowed(t *testing.T) {
	for _, n := range []int{3, 4} {
		if _, err := Allowed(n, false); (err != nil) != (n > 3) {
			t.Fatal(n, err)
		}
	}
	if _, err := Allowed(9, true); err != nil {
		t.Fatal(err)
	}
	if now := time.Now(); !Late(now.Add(1), now) {
		t.Fatal("late")
	}
}
`,
}

func sampleTarget() target {
	return target{
		Name: "sample", Files: []source{{Dir: "code", Files: []string{"code.go"}}}, Suites: []suite{{Package: "./code"}},
	}
}

// enterSampleModule makes a module the current directory.
func enterSampleModule(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range sampleModule {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "")
}

func TestMutantsThatTestsNoticeAreKilled(t *testing.T) {
	enterSampleModule(t)
	mutants, err := runTarget(t.Context(), sampleTarget(), 1)
	require.NoError(t, err)
	results := map[string]string{}
	for _, m := range mutants {
		results[m.Function+": "+m.Change] = m.Result
	}
	require.Equal(t, map[string]string{
		"Allowed: n > limit && !admin → n > limit || !admin":   resultKilled,
		"Allowed: n > limit → n >= limit":                      resultKilled,
		"Allowed: n > limit → n <= limit":                      resultKilled,
		"Allowed: limit → limit + 1":                           resultKilled,
		"Allowed: limit → limit - 1":                           resultKilled,
		"Allowed: !admin → !(!admin)":                          resultKilled,
		`Allowed: return "", errors.New("too many") → removed`: resultKilled,
		`Allowed: errors.New("too many") → zero value`:         resultKilled,
		`Allowed: "yes" → zero value`:                          resultSurvived,
		"Late: at.After(end) → !at.Before(end)":                resultSurvived,
		"Late: at.After(end) → !(at.After(end))":               resultKilled,
		"Unused: 1 → 1 + 1":                                    resultNotReached,
		"Unused: 1 → 1 - 1":                                    resultNotReached,
	}, results)
	for name, text := range sampleModule {
		raw, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Equal(t, text, string(raw), "the sources stay as they are")
	}
}

func TestSurvivorsNeedAReasonAndReasonsNeedASurvivor(t *testing.T) {
	survivor := mutant{File: "code/code.go", Function: "Late", Text: "return", Change: "a → b", Result: resultSurvived}
	mutants := []mutant{survivor}
	for range 9 {
		mutants = append(mutants, mutant{Result: resultKilled})
	}
	r := result{target: sampleTarget(), mutants: mutants}
	var out bytes.Buffer
	require.ErrorContains(t, printResult(&out, r, nil), "sample: 1 mutants survived without a reason")
	require.Contains(t, out.String(), "sample: 10 mutants, 9 killed, 1 survived, score 90.0%")

	reasons := acceptedSurvivors{keyOf(survivor): "equal"}
	require.NoError(t, printResult(&out, r, reasons))
	r.mutants[0].Result = resultTimedOut
	require.ErrorContains(t, printResult(&out, r, reasons), "the accepted survivor no longer survives")
	r.mutants = []mutant{survivor, {Result: resultKilled}}
	require.ErrorContains(t, printResult(&out, r, reasons), "sample: score 50.0% is below 90%")
}

func TestEveryAcceptedSurvivorIsOfATarget(t *testing.T) {
	reasons, err := readAccepted(filepath.Base(acceptedFile))
	require.NoError(t, err)
	require.NotEmpty(t, reasons)
	for key := range reasons {
		found := false
		for _, target := range targets() {
			found = found || target.hasFile(key.File)
		}
		require.True(t, found, "%s is in no target", key.File)
	}
}

func TestEditsNest(t *testing.T) {
	wrap := func(name string) func(string) string {
		return func(inner string) string { return name + "(" + inner + ")" }
	}
	require.Equal(t, "x here;both(A(a) outer(inner(b))) z", render("x a b z", []edit{
		{4, 5, wrap("outer")},
		{2, 5, wrap("both")},
		{4, 5, wrap("inner")},
		{2, 3, wrap("A")},
		{2, 2, func(string) string { return "here;" }},
	}))
}
