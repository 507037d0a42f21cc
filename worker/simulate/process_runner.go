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

// ProcessRunner simulates in a process of its own, which is replaced after so many recordings: Temporal's test environment
// leaves real timers behind that hold what they were made for, for as long as the workflow's own timers were to run. A
// process that ends lets go of all of it, so that a corpus of any size needs the memory of one share of it.
type ProcessRunner struct {
	// Command makes the process: it reads and writes what Serve does.
	Command func(context.Context) *exec.Cmd
	// RecordingsPerProcess is how many recordings one process simulates.
	RecordingsPerProcess int
	// Timeout bounds one recording in real time; 0 is three minutes: a process bounds each of its two simulations to a
	// minute, and tells more of what was wrong.
	Timeout time.Duration

	current   *childProcess
	remaining int
}

// childProcess is a process under way.
type childProcess struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  io.ReadCloser
	decoder *json.Decoder
}

// What a process gets when no more is asked of it: to end by itself, and then to let go of its pipes.
const (
	exitTimeout      = 10 * time.Second
	pipeCloseTimeout = time.Second
)

var _ Runner = (*ProcessRunner)(nil)

// processJob is one recording on its way to a process, byte for byte: its hash is of its bytes.
type processJob struct {
	Name      string `json:"name"`
	Recording []byte `json:"recording"`
}

// Run simulates a recording in the process, which is started if there is none. Where the process dies of a recording,
// or has no answer in time, the next is simulated by another.
func (p *ProcessRunner) Run(ctx context.Context, name string, raw []byte) RecordingOutcome {
	out, err := p.runInProcess(ctx, name, raw)
	if err != nil {
		if p.current != nil {
			p.current.kill()
		}
		p.Close()
		return RecordingOutcome{Result: UnreadableResult(name, fmt.Errorf("%s: simulate in a process of its own: %w", name, err))}
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
		return out, err //nolint:wrapcheck // the caller says what was done
	}
	limit := cmp.Or(p.Timeout, 3*time.Minute)
	timed, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s: the process was ended", duration.Format(limit)))
	defer cancel()
	unwatch := context.AfterFunc(timed, p.current.kill)
	if _, err = p.current.stdin.Write(append(line, '\n')); err == nil {
		err = p.current.decoder.Decode(&out)
	}
	if !unwatch() {
		return RecordingOutcome{}, context.Cause(timed) // it is being killed, with or without an answer
	}
	return out, err
}

func (p *ProcessRunner) startProcess(ctx context.Context) error {
	c := p.Command(ctx)
	c.WaitDelay = pipeCloseTimeout
	in, err := c.StdinPipe()
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was done
	}
	out, err := c.StdoutPipe()
	if err != nil {
		_ = in.Close()
		return err //nolint:wrapcheck // the caller says what was done
	}
	if err := c.Start(); err != nil {
		return err //nolint:wrapcheck // the caller says what was done
	}
	p.current, p.remaining = &childProcess{c, in, out, json.NewDecoder(out)}, p.RecordingsPerProcess
	return nil
}

// kill ends the process at once, and whatever waits for its pipes: a child of its own may still hold them.
func (c *childProcess) kill() {
	_ = c.cmd.Process.Kill()
	_, _ = c.stdin.Close(), c.stdout.Close()
}

// Close ends the process: one that does not end by itself is killed.
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

// ServeProcess simulates the recordings that it reads, one after the other, and writes what became of each, until there are no
// more.
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
