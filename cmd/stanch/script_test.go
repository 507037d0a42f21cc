package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"stanch": func() {
		err := command().Execute()
		if err != nil && !errors.Is(err, errAnswered) {
			fmt.Fprintln(os.Stderr, "stanch:", err)
		}
		os.Exit(exitCode(err))
	}})
}

// Each file of testdata/script is one behaviour of the command line.
func TestScripts(t *testing.T) {
	recordings, err := filepath.Abs("../../testenv/recordings")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true, Setup: func(e *testscript.Env) error {
		e.Setenv("RECORDINGS", recordings)
		return nil
	}})
}
