package main

import (
	"fmt"
	"os"
)

// newCrashFailpoint returns a hook that kills this process at the named point, as a crash would; nil for "".
func newCrashFailpoint(point string) func(string) {
	if point == "" {
		return nil
	}
	return func(at string) {
		if at != point {
			return
		}
		// The marker file makes the crash happen once, so that the next start survives.
		marker := os.Getenv("STANCH_CRASH_MARKER")
		if marker != "" {
			f, err := os.OpenFile(marker, os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return
			}
			_ = f.Close()
		}
		fmt.Fprintln(os.Stderr, "crashing at", point)
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			_ = self.Kill()
		}
		select {}
	}
}
