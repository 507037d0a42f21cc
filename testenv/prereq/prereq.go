// Package prereq reports, loudly, what a machine lacks for a test. With STANCH_NO_SKIP=1, as in CI, a missing
// prerequisite is a failure, so that a green run means that every test ran.
//
// It refuses to decide what a test needs: the caller checks.
package prereq

import (
	"os"
	"testing"
)

// SkipOrFail skips the test because the machine lacks something, or fails it if STANCH_NO_SKIP=1.
func SkipOrFail(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("STANCH_NO_SKIP") == "1" {
		t.Fatalf("STANCH_NO_SKIP=1 and lacking: "+format, args...)
	}
	t.Skipf("SKIPPED: lacking: "+format, args...)
}

// RequireRoot skips or fails the test unless it runs as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		SkipOrFail(t, "root (run as root, or with sudo -E)")
	}
}
