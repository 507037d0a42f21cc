package agent

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/attestation"
	"stanch/testenv/powerloss"
)

func TestRevocationSurvivesPowerLoss(t *testing.T) {
	revoke := func(t *testing.T, dir, lease string) {
		l, err := openRevocations(filepath.Join(dir, "state"))
		require.NoError(t, err)
		require.NoError(t, l.record(lease, "pod:a", time.Now().Add(time.Hour), attestation.Grant{}))
	}
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) { revoke(t, dir, "first") },
		Run:     func(t *testing.T, dir string) { revoke(t, dir, "second") },
		Read: func(_ *testing.T, dir string) (string, error) {
			l, err := openRevocations(filepath.Join(dir, "state"))
			if err != nil {
				return "", err
			}
			var issued time.Time
			return fmt.Sprint(l.isTokenRevoked("first", issued), l.isTokenRevoked("second", issued)), nil
		},
	})
}
