package snapshot

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// HelperPool takes snapshots in a process of their own. A read of a container's memory or file that never ends can keep a
// process from ending too, even when it is killed: the helper may be left behind so, the sensor must not be.
type HelperPool struct {
	executable string
	args       []string
	slots      chan struct{}

	mu        sync.Mutex
	prewarmed *helperProcess // waits for its request: to start a program takes longer than a small snapshot
	closed    bool
}

// helperProcess is a helper that was started.
type helperProcess struct {
	in, out *os.File
}

const (
	// maxHelpers bounds how many helpers there are at a time, those left behind included.
	maxHelpers = 4
	// helperGracePeriod is how much longer than its snapshot a helper may take.
	helperGracePeriod = 2 * time.Second
)

// ErrTooManyHelpers says that helpers of earlier snapshots have not ended.
var ErrTooManyHelpers = errors.New("earlier snapshots still wait for files of containers")

// NewHelperPool names the program that calls ServeHelper, and its arguments.
func NewHelperPool(program string, args ...string) *HelperPool {
	return &HelperPool{executable: program, args: args, slots: make(chan struct{}, maxHelpers)}
}

// helperRequest and result are what goes to a helper and comes back.
type helperRequest struct {
	Target Target
	Limits Limits
}

type helperResult struct {
	Snapshot Snapshot
	Blobs    []ExecutableCopy
	Err      string
}

// Take is Take in a helper. It returns in time whatever the container does.
func (h *HelperPool) Take(ctx context.Context, t Target, lim Limits) (Snapshot, []ExecutableCopy, error) {
	lim = lim.withDefaults()
	p, err := h.sendRequest(helperRequest{t, lim})
	if err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: %w", err)
	}
	defer h.Prewarm()
	out := p.out
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
	defer stop()
	if err := out.SetReadDeadline(time.Now().Add(lim.Timeout + helperGracePeriod)); err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: %w", err)
	}
	// One value, and not all until the end: a helper that cannot end never closes its output.
	var r helperResult
	if err := gob.NewDecoder(io.LimitReader(out, 2*lim.MaxTotalBytes+maxHelperResultBytes)).Decode(&r); err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: its process gave no answer: %w", err)
	}
	if r.Err != "" {
		return Snapshot{}, nil, errors.New(r.Err)
	}
	return r.Snapshot, r.Blobs, nil
}

// maxHelperResultBytes bounds what a helper tells besides copies of executables.
const maxHelperResultBytes = 256 << 20

// sendRequest gives a request to a helper.
func (h *HelperPool) sendRequest(r helperRequest) (*helperProcess, error) {
	h.mu.Lock()
	p := h.prewarmed
	h.prewarmed = nil
	h.mu.Unlock()
	if p != nil {
		if err := errors.Join(gob.NewEncoder(p.in).Encode(r), p.in.Close()); err == nil {
			return p, nil
		}
		_ = p.out.Close() // it was killed; another one does it
	}
	p, err := h.startProcess()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(gob.NewEncoder(p.in).Encode(r), p.in.Close()); err != nil {
		return nil, errors.Join(err, p.out.Close())
	}
	return p, nil
}

// Prewarm starts the process of the next snapshot ahead of it, if it can. It ends with this one.
func (h *HelperPool) Prewarm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.prewarmed != nil {
		return
	}
	if p, err := h.startProcess(); err == nil { // else the next snapshot says why
		h.prewarmed = p
	}
}

// Close ends the process that waits.
func (h *HelperPool) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.prewarmed == nil {
		return nil
	}
	err := errors.Join(h.prewarmed.in.Close(), h.prewarmed.out.Close())
	h.prewarmed = nil
	return err
}

// startProcess starts a helper. Its slot is free when it has ended.
func (h *HelperPool) startProcess() (*helperProcess, error) {
	select {
	case h.slots <- struct{}{}:
	default:
		return nil, fmt.Errorf("%w (%d processes of this program); stop the containers that keep them", ErrTooManyHelpers, maxHelpers)
	}
	free := func() { <-h.slots }
	itsIn, in, err := os.Pipe()
	if err != nil {
		free()
		return nil, err
	}
	defer itsIn.Close()
	out, itsOut, err := os.Pipe()
	if err != nil {
		free()
		return nil, errors.Join(err, in.Close())
	}
	defer itsOut.Close()
	cmd := exec.Command(h.executable, h.args...) //nolint:gosec,noctx // this program itself; it bounds its own time
	cmd.Stdin, cmd.Stdout, cmd.Stderr = itsIn, itsOut, os.Stderr
	if err := cmd.Start(); err != nil {
		free()
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	go func() {
		_ = cmd.Wait() // what it had to say it has said
		free()
	}()
	return &helperProcess{in, out}, nil
}

// ServeHelper is the helper's whole work: one request from in, one result to out. The process should end then.
func ServeHelper(in io.Reader, out io.Writer) error {
	var r helperRequest
	if err := gob.NewDecoder(in).Decode(&r); errors.Is(err, io.EOF) {
		return nil // whoever started it has ended, and asked for nothing
	} else if err != nil {
		return fmt.Errorf("read what to take: %w", err)
	}
	r.Limits = r.Limits.withDefaults()
	time.AfterFunc(r.Limits.Timeout+helperGracePeriod, func() { os.Exit(1) }) // whoever asked has given up
	var answer helperResult
	var err error
	if answer.Snapshot, answer.Blobs, err = Take(context.Background(), r.Target, r.Limits); err != nil {
		answer.Err = err.Error()
	}
	if err := gob.NewEncoder(out).Encode(answer); err != nil {
		return fmt.Errorf("give what was taken: %w", err)
	}
	return nil
}
