package simulate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"stanch/sensors/duration"
)

// ProcessRunner simulates in a separate process, which is replaced after a number of recordings: Temporal's test
// environment leaves real timers that keep memory alive for as long as the workflow's own timers would run. The end of
// the process frees it, so that a corpus of any size needs the memory of one batch.
type ProcessRunner struct {
	// Command returns the command of the process, which must run ServeProcess.
	Command func(context.Context) *exec.Cmd
	// RecordingsPerProcess is the number of recordings that one process simulates.
	RecordingsPerProcess int
	// Timeout limits one recording in real time; 0 means three minutes. A process limits each of its two simulations to
	// one minute, and returns a better error.
	Timeout time.Duration

	current   *childProcess
	remaining int
}

// childProcess is a running process.
type childProcess struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  io.ReadCloser
	decoder *json.Decoder
}

// How long a process may take to exit after its last recording, and then to close its pipes.
const (
	exitTimeout      = 10 * time.Second
	pipeCloseTimeout = time.Second
)

var _ Runner = (*ProcessRunner)(nil)

// processJob is one recording, byte for byte, because its hash covers its bytes.
type processJob struct {
	Name      string `json:"name"`
	Recording []byte `json:"recording"`
}

// Run simulates a recording in the process, and starts one if there is none. If the process crashes or times out,
// another one simulates the next recording.
func (p *ProcessRunner) Run(ctx context.Context, name string, raw []byte) RecordingOutcome {
	out, err := p.runInProcess(ctx, name, raw)
	if err != nil {
		if p.current != nil {
			p.current.kill()
		}
		p.Close()
		return RecordingOutcome{Result: UnreadableResult(name, fmt.Errorf("%s: simulate in a separate process: %w", name,
			err))}
	}
	if p.remaining--; p.remaining <= 0 {
		p.Close()
	}
	return out
}

func (p *ProcessRunner) runInProcess(ctx context.Context, name string, raw []byte) (out RecordingOutcome, err error) {
	if p.current == nil {
		if err := p.startProcess(ctx); err != nil {
			return out, err
		}
	}
	line, err := json.Marshal(processJob{name, raw})
	if err != nil {
		return out, err //nolint:wrapcheck // the caller adds context
	}
	limit := cmp.Or(p.Timeout, 3*time.Minute)
	timed, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("timed out after %s; the process was killed",
		duration.Format(limit)))
	defer cancel()
	unwatch := context.AfterFunc(timed, p.current.kill)
	if _, err = p.current.stdin.Write(append(line, '\n')); err == nil {
		err = p.current.decoder.Decode(&out)
	}
	if !unwatch() {
		return RecordingOutcome{}, context.Cause(timed) // it is being killed, with or without a result
	}
	return out, err
}

func (p *ProcessRunner) startProcess(ctx context.Context) error {
	c := p.Command(ctx)
	c.WaitDelay = pipeCloseTimeout
	in, err := c.StdinPipe()
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	out, err := c.StdoutPipe()
	if err != nil {
		_ = in.Close()
		return err //nolint:wrapcheck // the caller adds context
	}
	if err := c.Start(); err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	p.current, p.remaining = &childProcess{c, in, out, json.NewDecoder(out)}, p.RecordingsPerProcess
	return nil
}

// kill kills the process, and everything that waits for its pipes, which a child process may still have open.
func (c *childProcess) kill() {
	_ = c.cmd.Process.Kill()
	_, _ = c.stdin.Close(), c.stdout.Close()
}

// Close ends the process; it kills one that does not exit by itself.
func (p *ProcessRunner) Close() {
	if p.current == nil {
		return
	}
	_ = p.current.stdin.Close()
	late := time.AfterFunc(exitTimeout, p.current.kill)
	_ = p.current.cmd.Wait()
	late.Stop()
	p.current = nil
}

// ServeProcess simulates the recordings that it reads, one after the other, and writes the result of each, until the
// input ends.
func ServeProcess(ctx context.Context, in io.Reader, out io.Writer, with Runner) error {
	jobs, results := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var j processJob
		if err := jobs.Decode(&j); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a recording: %w", err)
		}
		if err := results.Encode(with.Run(ctx, j.Name, j.Recording)); err != nil {
			return fmt.Errorf("write a result: %w", err)
		}
	}
}
