package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"stanch/testenv/prereq"
)

// LabStateEnv is the environment variable with the state file of a shared lab.
const LabStateEnv = "STANCH_LAB"

// Shared returns a lab for a test: the one in STANCH_LAB, which `make test` starts once for all packages, or a new one
// that stops with the test. Tests that share a lab must use their own namespaces (see NewNamespace). If this machine
// lacks a prerequisite, the test is skipped loudly, or fails under STANCH_NO_SKIP=1.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	if path := os.Getenv(LabStateEnv); path != "" {
		c, err := Attach(path)
		if err != nil {
			t.Fatalf("%v; unset %s to have a lab of its own", err, LabStateEnv)
		}
		return c
	}
	return StartForTest(t, Options{})
}

// StartForTest starts a lab for one test and stops it at its end.
func StartForTest(t testing.TB, o Options) *Cluster {
	t.Helper()
	if lacking := MissingPrograms(); len(lacking) > 0 {
		prereq.SkipOrFail(t, "%v", lacking)
	}
	if o.Logf == nil {
		o.Logf = t.Logf
	}
	c, err := Start(context.Background(), o)
	if errors.Is(err, ErrNotBuilt) {
		prereq.SkipOrFail(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// RunTestMain is for the TestMain of a package whose tests all need a lab: they share one, as under STANCH_LAB, instead
// of starting one each. Where a lab cannot run, each test reports that itself.
func RunTestMain(m *testing.M) (code int) {
	if _, err := Binary(); err != nil || os.Getenv(LabStateEnv) != "" || len(MissingPrograms()) > 0 {
		return m.Run()
	}
	c, err := Start(context.Background(), Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := c.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	if err := os.Setenv(LabStateEnv, c.StateFile()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
