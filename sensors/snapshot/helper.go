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

// Helper takes snapshots in a process of their own. A read of a container's memory or file that never ends can keep a
// process from ending too, even when it is killed: the helper may be left behind so, the sensor must not be.
type Helper struct {
	program string
	args    []string
	slots   chan struct{}

	mu     sync.Mutex
	idle   *process // waits for its request: to start a program takes longer than a small snapshot
	closed bool
}

// process is a helper that was started.
type process struct {
	in, out *os.File
}

const (
	// maxHelpers bounds how many helpers there are at a time, those left behind included.
	maxHelpers = 4
	// helperTime is how much longer than its snapshot a helper may take.
	helperTime = 2 * time.Second
)

// ErrTooManyHelpers says that helpers of earlier snapshots have not ended.
var ErrTooManyHelpers = errors.New("earlier snapshots still wait for files of containers")

// NewHelper names the program that calls ServeTake, and its arguments.
func NewHelper(program string, args ...string) *Helper {
	return &Helper{program: program, args: args, slots: make(chan struct{}, maxHelpers)}
}

// request and result are what goes to a helper and comes back.
type request struct {
	Target Target
	Limits Limits
}

type result struct {
	Snapshot Snapshot
	Blobs    []Blob
	Err      string
}

// Take is Take in a helper. It returns in time whatever the container does.
func (h *Helper) Take(ctx context.Context, t Target, lim Limits) (Snapshot, []Blob, error) {
	lim = lim.defaults()
	p, err := h.ask(request{t, lim})
	if err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: %w", err)
	}
	defer h.Warm()
	out := p.out
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
	defer stop()
	if err := out.SetReadDeadline(time.Now().Add(lim.Time + helperTime)); err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: %w", err)
	}
	// One value, and not all until the end: a helper that cannot end never closes its output.
	var r result
	if err := gob.NewDecoder(io.LimitReader(out, 2*lim.TotalBytes+maxResult)).Decode(&r); err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: its process gave no answer: %w", err)
	}
	if r.Err != "" {
		return Snapshot{}, nil, errors.New(r.Err)
	}
	return r.Snapshot, r.Blobs, nil
}

// maxResult bounds what a helper tells besides copies of executables.
const maxResult = 256 << 20

// ask gives a request to a helper.
func (h *Helper) ask(r request) (*process, error) {
	h.mu.Lock()
	p := h.idle
	h.idle = nil
	h.mu.Unlock()
	if p != nil {
		if err := errors.Join(gob.NewEncoder(p.in).Encode(r), p.in.Close()); err == nil {
			return p, nil
		}
		_ = p.out.Close() // it was killed; another one does it
	}
	p, err := h.start()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(gob.NewEncoder(p.in).Encode(r), p.in.Close()); err != nil {
		return nil, errors.Join(err, p.out.Close())
	}
	return p, nil
}

// Warm starts the process of the next snapshot ahead of it, if it can. It ends with this one.
func (h *Helper) Warm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.idle != nil {
		return
	}
	if p, err := h.start(); err == nil { // else the next snapshot says why
		h.idle = p
	}
}

// Close ends the process that waits.
func (h *Helper) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.idle == nil {
		return nil
	}
	err := errors.Join(h.idle.in.Close(), h.idle.out.Close())
	h.idle = nil
	return err
}

// start starts a helper. Its slot is free when it has ended.
func (h *Helper) start() (*process, error) {
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
	cmd := exec.Command(h.program, h.args...) //nolint:gosec,noctx // this program itself; it bounds its own time
	cmd.Stdin, cmd.Stdout, cmd.Stderr = itsIn, itsOut, os.Stderr
	if err := cmd.Start(); err != nil {
		free()
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	go func() {
		_ = cmd.Wait() // what it had to say it has said
		free()
	}()
	return &process{in, out}, nil
}

// ServeTake is the helper's whole work: one request from in, one result to out. The process should end then.
func ServeTake(in io.Reader, out io.Writer) error {
	var r request
	if err := gob.NewDecoder(in).Decode(&r); errors.Is(err, io.EOF) {
		return nil // whoever started it has ended, and asked for nothing
	} else if err != nil {
		return fmt.Errorf("read what to take: %w", err)
	}
	r.Limits = r.Limits.defaults()
	time.AfterFunc(r.Limits.Time+helperTime, func() { os.Exit(1) }) // whoever asked has given up
	var answer result
	var err error
	if answer.Snapshot, answer.Blobs, err = Take(context.Background(), r.Target, r.Limits); err != nil {
		answer.Err = err.Error()
	}
	if err := gob.NewEncoder(out).Encode(answer); err != nil {
		return fmt.Errorf("give what was taken: %w", err)
	}
	return nil
}
