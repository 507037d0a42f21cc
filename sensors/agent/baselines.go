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

// The files in the state directory that contain baselines: what the sensor learned, and what it should import.
const (
	baselineFile       = "baselines.json"
	baselineImportFile = "baselines.import.json"
)

// baselineSaveInterval is how often the learned baselines are saved.
const baselineSaveInterval = time.Minute

// BaselinePath returns the path of the learned baselines in a state directory.
func BaselinePath(stateDir string) string { return filepath.Join(stateDir, baselineFile) }

// QueueBaselineImport queues baselines for the sensor that uses the state directory, which imports them within a
// minute if it runs. It returns the number of images in r. Invalid baselines are an error and are not queued.
func QueueBaselineImport(stateDir string, r io.Reader) (images int, err error) {
	offered := baseline.New(baseline.Options{})
	waiting := filepath.Join(stateDir, baselineImportFile)
	if old, err := os.Open(waiting); err == nil {
		_, err = offered.Read(old)
		_ = old.Close()
		if err != nil {
			return 0, fmt.Errorf("read the queued import %s: %w; remove the file", waiting, err)
		}
	}
	if images, err = offered.Read(r); err != nil {
		return 0, err
	}
	return images, offered.Save(waiting)
}

// saveBaselines saves the baselines at every interval and once more when ctx ends.
func (a *Agent) saveBaselines(ctx context.Context) {
	if a.Baselines == nil || a.StateDir == "" {
		return
	}
	tick := time.NewTicker(baselineSaveInterval)
	defer tick.Stop()
	for {
		a.importQueuedBaselines()
		if err := a.Baselines.Save(BaselinePath(a.StateDir)); err != nil {
			a.logThrottled("save the baselines", err)
		}
		select {
		case <-ctx.Done():
			if err := a.Baselines.Save(BaselinePath(a.StateDir)); err != nil {
				a.logThrottled("save the baselines", err)
			}
			return
		case <-tick.C:
		}
	}
}

// importQueuedBaselines imports the queued baselines and deletes the file, also if it is invalid.
func (a *Agent) importQueuedBaselines() {
	name := filepath.Join(a.StateDir, baselineImportFile)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		a.logThrottled("import baselines", err)
		return
	}
	n, err := a.Baselines.Read(f)
	_ = f.Close()
	if err != nil {
		a.logThrottled("import baselines", err)
	} else {
		a.Log.Info("baselines imported", "images", n)
	}
	if err := os.Remove(name); err != nil {
		a.logThrottled("import baselines", err)
	}
}
