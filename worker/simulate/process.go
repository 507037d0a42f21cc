package simulate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
)

// Process simulates in a process of its own, which is replaced after so many recordings: Temporal's test environment
// leaves real timers behind that hold what they were made for, for as long as the workflow's own timers were to run. A
// process that ends lets go of all of it, so that a corpus of any size needs the memory of one share of it.
type Process struct {
	// Command makes the process: it reads and writes what Serve does.
	Command func(context.Context) *exec.Cmd
	// Share is how many recordings one process simulates.
	Share int

	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	left int
}

var _ Runner = (*Process)(nil)

// job is one recording on its way to a process, byte for byte: its hash is of its bytes.
type job struct {
	Name      string `json:"name"`
	Recording []byte `json:"recording"`
}

// Run simulates a recording in the process, which is started if there is none. Where the process dies of a recording
// the next is simulated by another.
func (p *Process) Run(ctx context.Context, name string, raw []byte) Outcome {
	out, err := p.run(ctx, name, raw)
	if err != nil {
		p.Close()
		return Outcome{Result: Broken(name, fmt.Errorf("%s: simulate in a process of its own: %w", name, err))}
	}
	if p.left--; p.left <= 0 {
		p.Close()
	}
	return out
}

func (p *Process) run(ctx context.Context, name string, raw []byte) (out Outcome, err error) {
	if p.cmd == nil {
		if err := p.start(ctx); err != nil {
			return out, err
		}
	}
	line, err := json.Marshal(job{name, raw})
	if err != nil {
		return out, err //nolint:wrapcheck // the caller says what was done
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return out, err //nolint:wrapcheck // the caller says what was done
	}
	return out, p.out.Decode(&out)
}

func (p *Process) start(ctx context.Context) error {
	p.cmd, p.left = p.Command(ctx), p.Share
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was done
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was done
	}
	p.in, p.out = in, json.NewDecoder(out)
	return p.cmd.Start() //nolint:wrapcheck // the caller says what was done
}

// Close ends the process.
func (p *Process) Close() {
	if p.cmd == nil {
		return
	}
	_ = p.in.Close()
	_ = p.cmd.Wait()
	p.cmd = nil
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
