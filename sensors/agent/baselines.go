package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"stanch/sensors/baseline"
)

// The files of a state directory that hold baselines: what was learnt, and what somebody wants taken in.
const (
	baselineFile       = "baselines.json"
	baselineImportFile = "baselines.import.json"
)

// baselineSaveInterval is how often what was learnt is kept.
const baselineSaveInterval = time.Minute

// BaselinePath is where a state directory keeps what was learnt.
func BaselinePath(stateDir string) string { return filepath.Join(stateDir, baselineFile) }

// QueueBaselineImport lays baselines where the sensor of a state directory takes them in, within a minute if it runs. They are
// checked first: what is not sound is an error and not laid.
func QueueBaselineImport(stateDir string, r io.Reader) (images int, err error) {
	offered := baseline.New(baseline.Options{})
	waiting := filepath.Join(stateDir, baselineImportFile)
	if old, err := os.Open(waiting); err == nil {
		_, err = offered.Read(old)
		_ = old.Close()
		if err != nil {
			return 0, fmt.Errorf("%s waits to be taken in and is damaged; remove it: %w", waiting, err)
		}
	}
	if images, err = offered.Read(r); err != nil {
		return 0, err
	}
	return images, offered.Save(waiting)
}

// saveBaselines keeps what is learnt, until ctx ends and once more then.
func (a *Agent) saveBaselines(ctx context.Context) {
	if a.Baselines == nil || a.StateDir == "" {
		return
	}
	tick := time.NewTicker(baselineSaveInterval)
	defer tick.Stop()
	for {
		a.importQueuedBaselines()
		if err := a.Baselines.Save(BaselinePath(a.StateDir)); err != nil {
			a.logThrottled("keep the baselines", err)
		}
		select {
		case <-ctx.Done():
			if err := a.Baselines.Save(BaselinePath(a.StateDir)); err != nil {
				a.logThrottled("keep the baselines", err)
			}
			return
		case <-tick.C:
		}
	}
}

// importQueuedBaselines takes in what was offered.
func (a *Agent) importQueuedBaselines() {
	name := filepath.Join(a.StateDir, baselineImportFile)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		a.logThrottled("take baselines in", err)
		return
	}
	n, err := a.Baselines.Read(f)
	_ = f.Close()
	if err != nil {
		a.logThrottled("take baselines in", err)
	} else {
		a.Log.Info("baselines were taken in", "images", n)
	}
	if err := os.Remove(name); err != nil {
		a.logThrottled("take baselines in", err)
	}
}
