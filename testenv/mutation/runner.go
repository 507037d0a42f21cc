package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// runTarget returns every mutant of a target with its result.
func runTarget(ctx context.Context, t target, workers int) ([]mutant, error) {
	dir, err := os.MkdirTemp("", "stanch-mutation-")
	if err != nil {
		return nil, fmt.Errorf("create the directory of the overlay: %w", err)
	}
	defer os.RemoveAll(dir)
	mutants, overlay, err := writeOverlay(ctx, t, dir)
	if err != nil {
		return nil, err
	}
	for i := range mutants {
		mutants[i].Result = resultNotReached
	}
	for i, s := range t.Suites {
		binary, err := buildSuite(ctx, s, overlay, filepath.Join(dir, fmt.Sprintf("suite%d.test", i)))
		if err != nil {
			return nil, err
		}
		if err := binary.runMutants(ctx, mutants, workers); err != nil {
			return nil, err
		}
	}
	return mutants, ctx.Err()
}

// writeOverlay writes the sources with mutants, and returns the file for `go build -overlay`.
func writeOverlay(ctx context.Context, t target, dir string) (mutants []mutant, overlay string, err error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, "", fmt.Errorf("find the project: %w", err)
	}
	replace := map[string]string{}
	write := func(original, text string) error {
		replace[filepath.Join(root, original)] = filepath.Join(dir, strings.ReplaceAll(original, "/", "_"))
		return os.WriteFile(replace[filepath.Join(root, original)], []byte(text), 0o600)
	}
	next := 0
	for _, s := range t.Files {
		p, err := loadPackage(ctx, s.Dir)
		if err != nil {
			return nil, "", err
		}
		for _, name := range s.Files {
			file := filepath.Join(s.Dir, name)
			src, err := os.ReadFile(file)
			if err != nil {
				return nil, "", fmt.Errorf("read a target: %w", err)
			}
			m := &mutator{
				typedPackage: p, target: t.Name, file: file, src: string(src), nextID: &next, tree: p.trees[name],
				chosen: s.Functions,
			}
			if err := write(file, m.mutateFile()); err != nil {
				return nil, "", fmt.Errorf("write the overlay: %w", err)
			}
			mutants = append(mutants, m.mutants...)
		}
		if err := write(filepath.Join(s.Dir, "mutant_switches.go"), switchesSource(p.types.Name())); err != nil {
			return nil, "", fmt.Errorf("write the overlay: %w", err)
		}
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, "", fmt.Errorf("write the overlay: %w", err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, raw, 0o600); err != nil {
		return nil, "", fmt.Errorf("write the overlay: %w", err)
	}
	return mutants, overlay, nil
}

// suiteBinary is a test binary with mutants.
type suiteBinary struct {
	suite
	file    string
	reached map[int]bool  // mutants that its tests run
	timeout time.Duration // of one run
}

// buildSuite builds the tests, and runs them once without a mutant.
func buildSuite(ctx context.Context, s suite, overlay, file string) (*suiteBinary, error) {
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay", overlay, "-o", file,
		s.Package)
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the tests of %s: %w\n%s", s.Package, err, out)
	}
	b := &suiteBinary{suite: s, file: file, reached: map[int]bool{}, timeout: 5 * time.Minute}
	start := time.Now()
	list := file + ".reached"
	if out, err := b.run(ctx, envReached+"="+list); err != nil {
		return nil, fmt.Errorf("the tests of %s fail without a mutant: %w\n%s", s.Package, err, out[max(0, len(out)-2000):])
	}
	b.timeout = 10*time.Second + 5*time.Since(start)
	raw, err := os.ReadFile(list)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the reached mutants: %w", err)
	}
	for id := range strings.FieldsSeq(string(raw)) {
		n, err := strconv.Atoi(id)
		if err != nil {
			return nil, fmt.Errorf("read the reached mutants: %w", err)
		}
		b.reached[n] = true
	}
	return b, nil
}

// run runs the tests once in the directory of their package.
func (b *suiteBinary) run(ctx context.Context, env string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.file, "-test.failfast", "-test.run", b.Run)
	cmd.Dir = b.Package
	cmd.Env = append(os.Environ(), env)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.Discard
	err := cmd.Run()
	if ctx.Err() != nil {
		return out.Bytes(), ctx.Err() //nolint:wrapcheck // the caller compares it
	}
	return out.Bytes(), err //nolint:wrapcheck // the caller adds context
}

// runMutants runs the tests with each mutant that they reach and that survived so far.
func (b *suiteBinary) runMutants(ctx context.Context, mutants []mutant, workers int) error {
	todo := make(chan *mutant)
	var running sync.WaitGroup
	for range max(workers, 1) {
		running.Go(func() {
			for m := range todo {
				switch _, err := b.run(ctx, fmt.Sprintf("%s=%d", envMutant, m.ID)); {
				case errors.Is(err, context.DeadlineExceeded):
					m.Result = resultTimedOut
				case err != nil:
					m.Result = resultKilled
				default:
					m.Result = resultSurvived
				}
			}
		})
	}
	for i := range mutants {
		m := &mutants[i]
		if b.reached[m.ID] && (m.Result == resultNotReached || m.Result == resultSurvived) && ctx.Err() == nil {
			todo <- m
		}
	}
	close(todo)
	running.Wait()
	return ctx.Err() //nolint:wrapcheck // only the interrupt of the caller
}
