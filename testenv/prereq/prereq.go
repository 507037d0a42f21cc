// Package require says, loudly, what a machine lacks for a test.
//
// It refuses to decide what is needed: the caller probes and says. With STANCH_NO_SKIP=1, as in CI, a lack is a
// failure, so that a green run means that everything ran.
package prereq

import (
	"os"
	"testing"
)

// SkipOrFail ends the test because the machine lacks something: it skips, or fails if STANCH_NO_SKIP=1.
func SkipOrFail(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("STANCH_NO_SKIP") == "1" {
		t.Fatalf("STANCH_NO_SKIP=1 and lacking: "+format, args...)
	}
	t.Skipf("SKIPPED: lacking: "+format, args...)
}

// RequireRoot ends the test unless it runs as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		SkipOrFail(t, "root (run as root, or with sudo -E)")
	}
}
