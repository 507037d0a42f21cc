package gatewayrpc

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/testenv/powerloss"
)

// Nobody calls Sync while the sensor runs.
func TestAddedDetectionIsSyncedInBackground(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Run: func(t *testing.T, dir string) {
			s, err := OpenSpool(dir, SpoolLimits{})
			require.NoError(t, err)
			require.NoError(t, s.Add(sensors.Detection{ID: "a"}))
			require.Eventually(t, func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.syncedLines == s.addedLines
			}, 30*time.Second, time.Millisecond)
		},
		Read: func(_ *testing.T, dir string) (string, error) {
			s, err := OpenSpool(dir, SpoolLimits{})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d detections", s.Len()), s.Close()
		},
	})
}

// A detection whose sync failed is written again, because the kernel may have dropped it from its cache.
func TestFailedSyncRewritesSpool(t *testing.T) {
	s, err := OpenSpool(t.TempDir(), SpoolLimits{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	require.NoError(t, s.Add(sensors.Detection{ID: "a"}))
	require.NoError(t, s.Sync())
	read, write, err := os.Pipe() // can be written and not synced
	require.NoError(t, err)
	defer func() { _ = read.Close() }()
	s.mu.Lock()
	_ = s.file.Close()
	s.file = write
	s.mu.Unlock()
	require.NoError(t, s.Add(sensors.Detection{ID: "b"}))
	_ = s.Sync() // fails, unless the sync in the background has failed already and the file is written again
	require.NoError(t, s.Acknowledge(1))
	require.NoError(t, s.Sync(), "the file was replaced")

	again, err := OpenSpool(filepath.Dir(s.path), SpoolLimits{})
	require.NoError(t, err)
	require.Equal(t, 1, again.Len(), "b, which is in no pipe anymore")
	require.NoError(t, again.Close())
}
