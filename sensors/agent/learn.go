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
	baselineFile   = "baselines.json"
	baselineImport = "baselines.import.json"
)

// keepEvery is how often what was learnt is kept.
const keepEvery = time.Minute

// BaselineFile is where a state directory keeps what was learnt.
func BaselineFile(stateDir string) string { return filepath.Join(stateDir, baselineFile) }

// OfferBaselines lays baselines where the sensor of a state directory takes them in, within a minute if it runs. They are
// checked first: what is not sound is an error and not laid.
func OfferBaselines(stateDir string, r io.Reader) (images int, err error) {
	offered := baseline.New(baseline.Options{})
	waiting := filepath.Join(stateDir, baselineImport)
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

// learn keeps what is learnt, until ctx ends and once more then.
func (a *Agent) learn(ctx context.Context) {
	if a.Baselines == nil || a.StateDir == "" {
		return
	}
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		a.takeBaselines()
		if err := a.Baselines.Save(BaselineFile(a.StateDir)); err != nil {
			a.complain("keep the baselines", err)
		}
		select {
		case <-ctx.Done():
			if err := a.Baselines.Save(BaselineFile(a.StateDir)); err != nil {
				a.complain("keep the baselines", err)
			}
			return
		case <-tick.C:
		}
	}
}

// takeBaselines takes in what was offered.
func (a *Agent) takeBaselines() {
	name := filepath.Join(a.StateDir, baselineImport)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		a.complain("take baselines in", err)
		return
	}
	n, err := a.Baselines.Read(f)
	_ = f.Close()
	if err != nil {
		a.complain("take baselines in", err)
	} else {
		a.Log.Info("baselines were taken in", "images", n)
	}
	if err := os.Remove(name); err != nil {
		a.complain("take baselines in", err)
	}
}
