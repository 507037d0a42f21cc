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

// HelperPool takes snapshots in separate processes. A read of a container's memory or file can block forever and keep
// a process from exiting, even when it is killed. A helper may get stuck this way; the sensor must not. It is safe for
// concurrent use.
type HelperPool struct {
	executable string
	args       []string
	slots      chan struct{}

	mu        sync.Mutex
	prewarmed *helperProcess // waits for its request, because starting a program takes longer than a small snapshot
	closed    bool
}

// helperProcess is a running helper.
type helperProcess struct {
	in, out *os.File
}

const (
	// maxHelpers is the maximum number of helpers, including stuck ones.
	maxHelpers = 4
	// helperGracePeriod is how much longer than its snapshot a helper may take.
	helperGracePeriod = 2 * time.Second
)

// ErrTooManyHelpers means that the helpers of earlier snapshots have not exited.
var ErrTooManyHelpers = errors.New("previous snapshots are still waiting for container files")

// NewHelperPool returns a pool whose helpers run the given command line, which must call ServeHelper.
func NewHelperPool(program string, args ...string) *HelperPool {
	return &HelperPool{executable: program, args: args, slots: make(chan struct{}, maxHelpers)}
}

// helperRequest and helperResult are the messages to and from a helper.
type helperRequest struct {
	Target Target
	Limits Limits
}

type helperResult struct {
	Snapshot Snapshot
	Blobs    []ExecutableCopy
	Err      string
}

// Take takes a snapshot like the function Take, in a helper. It returns within the timeout of lim plus 2 s, whatever
// the container does. It returns ErrTooManyHelpers if earlier helpers are stuck.
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
	// Decode one value instead of reading to the end: a stuck helper never closes its output.
	var r helperResult
	if err := gob.NewDecoder(io.LimitReader(out, 2*lim.MaxTotalBytes+maxHelperResultBytes)).Decode(&r); err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: read the helper's response: %w", err)
	}
	if r.Err != "" {
		return Snapshot{}, nil, errors.New(r.Err)
	}
	return r.Snapshot, r.Blobs, nil
}

// maxHelperResultBytes limits the result of a helper, without the copies of executables.
const maxHelperResultBytes = 256 << 20

// sendRequest sends a request to a helper.
func (h *HelperPool) sendRequest(r helperRequest) (*helperProcess, error) {
	h.mu.Lock()
	p := h.prewarmed
	h.prewarmed = nil
	h.mu.Unlock()
	if p != nil {
		if err := errors.Join(gob.NewEncoder(p.in).Encode(r), p.in.Close()); err == nil {
			return p, nil
		}
		_ = p.out.Close() // it was killed; start another one
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

// Prewarm starts the helper for the next snapshot in advance, if possible. The helper exits with this process.
func (h *HelperPool) Prewarm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.prewarmed != nil {
		return
	}
	if p, err := h.startProcess(); err == nil { // otherwise the next snapshot returns the error
		h.prewarmed = p
	}
}

// Close stops the prewarmed helper. Helpers that take a snapshot continue.
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

// startProcess starts a helper, which occupies a slot until it exits.
func (h *HelperPool) startProcess() (*helperProcess, error) {
	select {
	case h.slots <- struct{}{}:
	default:
		return nil,
			fmt.Errorf("%w (%d processes of this program); stop the containers that block them", ErrTooManyHelpers, maxHelpers)
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
	cmd := exec.Command(h.executable, h.args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = itsIn, itsOut, os.Stderr
	if err := cmd.Start(); err != nil {
		free()
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	go func() {
		_ = cmd.Wait() // its result was sent through the pipe
		free()
	}()
	return &helperProcess{in, out}, nil
}

// ServeHelper is the main function of a helper: it reads one request from in and writes one result to out. The process
// should exit afterwards. If it takes too long, ServeHelper terminates the process.
func ServeHelper(in io.Reader, out io.Writer) error {
	var r helperRequest
	if err := gob.NewDecoder(in).Decode(&r); errors.Is(err, io.EOF) {
		return nil // the parent has exited and sent no request
	} else if err != nil {
		return fmt.Errorf("read the snapshot request: %w", err)
	}
	r.Limits = r.Limits.withDefaults()
	time.AfterFunc(r.Limits.Timeout+helperGracePeriod, func() { os.Exit(1) }) // the parent has given up
	var answer helperResult
	var err error
	if answer.Snapshot, answer.Blobs, err = Take(context.Background(), r.Target, r.Limits); err != nil {
		answer.Err = err.Error()
	}
	if err := gob.NewEncoder(out).Encode(answer); err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	return nil
}
