package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/attestation"
	"stanch/testenv/powerloss"
)

func TestNodeKeySetSurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Run: func(t *testing.T, dir string) {
			require.NoError(t, writeKeySet(filepath.Join(dir, "authority.json"), attestation.KeySet{ActiveKeyID: "a"}))
		},
		Read: powerloss.ReadFile("authority.json"),
	})
}
