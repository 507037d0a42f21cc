package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"stanch/testenv/require"
)

// StateEnv names the environment variable that holds the state file of a lab to share.
const StateEnv = "STANCH_LAB"

// Shared returns a lab for a test: the one that STANCH_LAB names, which `make test` starts once for all packages,
// or else one of its own that ends with the test. Tests that share a lab keep to namespaces of their own (see
// Namespace). Where the machine lacks something the test is skipped loudly, or fails under STANCH_NO_SKIP=1.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	if path := os.Getenv(StateEnv); path != "" {
		c, err := Attach(path)
		if err != nil {
			t.Fatalf("%v; unset %s to have a lab of its own", err, StateEnv)
		}
		return c
	}
	return Own(t, Options{})
}

// Own starts a lab for one test and stops it with the test.
func Own(t testing.TB, o Options) *Cluster {
	t.Helper()
	if lacking := Missing(); len(lacking) > 0 {
		require.Lacking(t, "%v", lacking)
	}
	if o.Progress == nil {
		o.Progress = t.Logf
	}
	c, err := Start(context.Background(), o)
	if errors.Is(err, ErrNotBuilt) {
		require.Lacking(t, "%v", err)
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

// Main is for the TestMain of a package whose tests all need a lab: they share one, as under STANCH_LAB, instead of
// starting one each. Where a lab cannot run, each test says so itself.
func Main(m *testing.M) (code int) {
	if _, err := Binary(); err != nil || os.Getenv(StateEnv) != "" || len(Missing()) > 0 {
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
	if err := os.Setenv(StateEnv, c.StateFile()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
