package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is a module whose packages end in every way.
var module = map[string]string{
	"go.mod": "module sample\n\ngo 1.24\n",
	"good/good_test.go": `package good
import ("fmt"; "testing")
func TestGood(t *testing.T) { t.Log("a passing test's log"); fmt.Println("its output") }
func TestSkipped(t *testing.T) { t.Skip("a reason") }
`,
	"bad/bad_test.go": `package bad
import ("fmt"; "testing")
func TestGood(t *testing.T) { t.Log("a passing test's log") }
func TestBad(t *testing.T) {
	t.Log("before")
	t.Run("first", func(t *testing.T) { t.Log("a passing subtest's log") })
	t.Run("second", func(t *testing.T) { t.Error("second is wrong") })
}
func TestParallel(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		t.Run(name, func(t *testing.T) { t.Parallel(); if name == "b" { t.Fatal("b is wrong") } })
	}
}
func TestPrints(t *testing.T) { fmt.Println("printed"); t.Fail() }
`,
	"panics/panics_test.go": `package panics
import "testing"
func TestGood(t *testing.T) {}
func TestPanics(t *testing.T) { panic("no way out") }
`,
	"exits/exits_test.go": `package exits
import ("os"; "testing")
func TestMain(m *testing.M) { m.Run(); os.Exit(3) }
func TestGood(t *testing.T) {}
`,
	"broken/broken_test.go": "package broken\nimport \"testing\"\nfunc TestBroken(t *testing.T) { undefined() }\n",
	"none/none.go":          "package none\n",
}

func goTest(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range module {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"test", "-p", "1", "-count", "1"}, args...)...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// changing is what differs between two runs of the same tests.
var changing = regexp.MustCompile(`\d+\.\d+s|0x[0-9a-f]+|goroutine \d+|(?m)^\t/.*\n`)

func TestOutputIsThatOfGoTest(t *testing.T) {
	for _, packages := range [][]string{
		{"./good", "./none"},
		{"./bad"},
		{"./panics"},
		{"./exits"},
		{"./broken"},
		{"./..."},
	} {
		want, failed := goTest(t, packages...)
		raw, _ := goTest(t, append([]string{"-json"}, packages...)...)
		var got bytes.Buffer
		p := newPrinter(&got)
		require.NoError(t, p.copyFrom(bytes.NewReader(raw)))
		require.Equal(t, failed != nil, p.failed, packages)
		if p.failed {
			got.WriteString("FAIL\n")
		}
		require.Equal(t, normalize(want), normalize(got.Bytes()), packages)
	}
}

func normalize(out []byte) string { return string(changing.ReplaceAll(out, []byte("·"))) }

func TestSlowestTestsOfAllPhasesAreListed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "times")
	for _, one := range []phaseTimes{
		{
			Phase: "first", Seconds: 9,
			Tests:    []testTime{{"p", "TestA", 2}, {"p", "TestB", 7.25}},
			Packages: []testTime{{"p", "", 9}},
		},
		{
			Phase: "second", Seconds: 4, Tests: []testTime{{"q", "TestC", 4}},
			Packages: []testTime{{"q", "", 4}},
		},
	} {
		require.NoError(t, appendTimes(file, one))
	}
	phases, err := readTimes(file)
	require.NoError(t, err)
	var out bytes.Buffer
	writeSlowest(&out, phases, 2)
	require.Equal(t, `   9.0 s  phase "first": 1 packages, 2 tests
   4.0 s  phase "second": 1 packages, 1 tests
slowest packages:
   9.0 s  p
   4.0 s  q
slowest tests:
   7.2 s  p TestB
   4.0 s  q TestC
`, out.String())
}

func TestTimesOfTestsAreRecorded(t *testing.T) {
	raw, err := goTest(t, "-json", "./good", "./bad")
	require.Error(t, err)
	p := newPrinter(new(bytes.Buffer))
	require.NoError(t, p.copyFrom(bytes.NewReader(raw)))
	var names []string
	for _, one := range p.tests {
		names = append(names, one.Package+" "+one.Test)
	}
	require.ElementsMatch(t, []string{
		"sample/good TestGood", "sample/good TestSkipped", "sample/bad TestGood", "sample/bad TestBad",
		"sample/bad TestParallel", "sample/bad TestPrints",
	}, names)
	require.Len(t, p.packages, 2)
}
