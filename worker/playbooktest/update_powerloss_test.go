package playbooktest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/powerloss"
)

func TestUpdatedPlaybookSurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "playbook.yaml"), []byte("the user's text"), 0o600))
		},
		Run: func(t *testing.T, dir string) {
			require.NoError(t, writeFileAtomically(filepath.Join(dir, "playbook.yaml"), []byte("the new text")))
		},
		Read: powerloss.ReadFile("playbook.yaml"),
	})
}
