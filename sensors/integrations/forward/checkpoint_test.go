package forward

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/powerloss"
)

func TestCheckpointSurvivesPowerLoss(t *testing.T) {
	save := func(t *testing.T, dir string, offset int64) {
		require.NoError(t, saveState(filepath.Join(dir, "state"), savedState{File: "alerts.log", Offset: offset}))
	}
	powerloss.Check(t, powerloss.Operation{
		Prepare: func(t *testing.T, dir string) { save(t, dir, 100) },
		Run:     func(t *testing.T, dir string) { save(t, dir, 200) },
		Read: func(_ *testing.T, dir string) (string, error) {
			s, err := loadState(filepath.Join(dir, "state"))
			if err != nil {
				return "", err
			}
			return fmt.Sprint(s.Offset), nil
		},
	})
}
