package snapshot

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Helper takes snapshots in a process of their own. A read of a container's memory or file that never ends can keep a
// process from ending too, even when it is killed: the helper may be left behind so, the sensor must not be.
type Helper struct {
	program string
	args    []string
	slots   chan struct{}
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
	select {
	case h.slots <- struct{}{}:
	default:
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: %w (%d processes of this program); stop the containers that keep them", ErrTooManyHelpers, maxHelpers)
	}
	out, err := h.start(request{t, lim})
	if err != nil {
		return Snapshot{}, nil, fmt.Errorf("take a snapshot: %w", err)
	}
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

// start starts a helper and gives its output. Its slot is free when it has ended.
func (h *Helper) start(r request) (*os.File, error) {
	free := func() { <-h.slots }
	var in bytes.Buffer
	if err := gob.NewEncoder(&in).Encode(r); err != nil {
		free()
		return nil, err
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		free()
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(h.program, h.args...) //nolint:gosec,noctx // this program itself; it bounds its own time
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, theirs, os.Stderr
	if err := cmd.Start(); err != nil {
		free()
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		_ = cmd.Wait() // what it had to say it has said
		free()
	}()
	return out, nil
}

// ServeTake is the helper's whole work: one request from in, one result to out. The process should end then.
func ServeTake(in io.Reader, out io.Writer) error {
	var r request
	if err := gob.NewDecoder(in).Decode(&r); err != nil {
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
