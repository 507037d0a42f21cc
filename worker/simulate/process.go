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

// Process simulates in a process of its own, which is replaced after so many recordings: Temporal's test environment
// leaves real timers behind that hold what they were made for, for as long as the workflow's own timers were to run. A
// process that ends lets go of all of it, so that a corpus of any size needs the memory of one share of it.
type Process struct {
	// Command makes the process: it reads and writes what Serve does.
	Command func(context.Context) *exec.Cmd
	// Share is how many recordings one process simulates.
	Share int
	// Limit bounds one recording in real time; 0 is three minutes: a process bounds each of its two simulations to a
	// minute, and tells more of what was wrong.
	Limit time.Duration

	now  *child
	left int
}

// child is a process under way.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.ReadCloser
	read *json.Decoder
}

// What a process gets when no more is asked of it: to end by itself, and then to let go of its pipes.
const (
	ending    = 10 * time.Second
	lettingGo = time.Second
)

var _ Runner = (*Process)(nil)

// job is one recording on its way to a process, byte for byte: its hash is of its bytes.
type job struct {
	Name      string `json:"name"`
	Recording []byte `json:"recording"`
}

// Run simulates a recording in the process, which is started if there is none. Where the process dies of a recording,
// or has no answer in time, the next is simulated by another.
func (p *Process) Run(ctx context.Context, name string, raw []byte) Outcome {
	out, err := p.run(ctx, name, raw)
	if err != nil {
		if p.now != nil {
			p.now.kill()
		}
		p.Close()
		return Outcome{Result: Broken(name, fmt.Errorf("%s: simulate in a process of its own: %w", name, err))}
	}
	if p.left--; p.left <= 0 {
		p.Close()
	}
	return out
}

func (p *Process) run(ctx context.Context, name string, raw []byte) (out Outcome, err error) {
	if p.now == nil {
		if err := p.start(ctx); err != nil {
			return out, err
		}
	}
	line, err := json.Marshal(job{name, raw})
	if err != nil {
		return out, err //nolint:wrapcheck // the caller says what was done
	}
	limit := cmp.Or(p.Limit, 3*time.Minute)
	timed, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s: the process was ended", duration.Format(limit)))
	defer cancel()
	unwatch := context.AfterFunc(timed, p.now.kill)
	if _, err = p.now.in.Write(append(line, '\n')); err == nil {
		err = p.now.read.Decode(&out)
	}
	if !unwatch() {
		return Outcome{}, context.Cause(timed) // it is being killed, with or without an answer
	}
	return out, err
}

func (p *Process) start(ctx context.Context) error {
	c := p.Command(ctx)
	c.WaitDelay = lettingGo
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
	p.now, p.left = &child{c, in, out, json.NewDecoder(out)}, p.Share
	return nil
}

// kill ends the process at once, and whatever waits for its pipes: a child of its own may still hold them.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_, _ = c.in.Close(), c.out.Close()
}

// Close ends the process: one that does not end by itself is killed.
func (p *Process) Close() {
	if p.now == nil {
		return
	}
	_ = p.now.in.Close()
	late := time.AfterFunc(ending, p.now.kill)
	_ = p.now.cmd.Wait()
	late.Stop()
	p.now = nil
}

// Serve simulates the recordings that it reads, one after the other, and writes what became of each, until there are no
// more.
func Serve(ctx context.Context, in io.Reader, out io.Writer, with Runner) error {
	jobs, results := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var j job
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
