// Command mutation measures whether the tests notice wrong code: it changes one operator, constant, statement, or
// result at a time (a mutant) and runs the tests, which should fail. It prints each mutant that survives.
//
//	go run ./testenv/mutation                  # every target
//	go run ./testenv/mutation -target guards   # one target
//	go run ./testenv/mutation -json mutants.jsonl
//
// All mutants of a target are compiled into one test binary, each behind a switch that an environment variable sets,
// so that a mutant costs one run of the tests and no build. The changed sources exist in an overlay only: the command
// never writes into the tree, and decides nothing about packages that are not its targets.
//
// It fails if a target's score is below 90 %, if a surviving mutant has no reason in survivors.json, or if a mutant
// with a reason no longer survives. Survivors with a reason count as survivors.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"
)

// minScore is the fraction of mutants that the tests of a target must notice.
const minScore = 0.9

func main() {
	only := flag.String("target", "", "run one target `NAME` instead of all")
	workers := flag.Int("workers", 2, "run the tests of `N` mutants at the same time")
	file := flag.String("json", "", "write every mutant and its result to the `FILE`, one JSON object per line")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *workers, *file); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, workers int, file string) error {
	chosen := slices.Clone(targets())
	if only != "" {
		chosen = slices.DeleteFunc(chosen, func(t target) bool { return t.Name != only })
	}
	if len(chosen) == 0 {
		return fmt.Errorf("unknown target %q", only)
	}
	reasons, err := readAccepted(acceptedFile)
	if err != nil {
		return err
	}
	details := io.Discard
	if file != "" {
		out, err := os.Create(file)
		if err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
		defer out.Close()
		details = out
	}
	var failed error
	for _, t := range chosen {
		start := time.Now()
		mutants, err := runTarget(ctx, t, workers)
		if err != nil {
			return fmt.Errorf("target %s: %w", t.Name, err)
		}
		for _, m := range mutants {
			if err := json.NewEncoder(details).Encode(m); err != nil {
				return fmt.Errorf("write the results: %w", err)
			}
		}
		failed = errors.Join(failed, printResult(os.Stdout, result{t, mutants, time.Since(start)}, reasons))
	}
	return failed
}

// result is a target with its mutants.
type result struct {
	target
	mutants []mutant
	took    time.Duration
}

// printResult prints the score and the survivors of a target. It returns an error if the target does not pass.
func printResult(w io.Writer, r result, reasons acceptedSurvivors) error {
	killed, unexplained := 0, 0
	unused := reasons.ofTarget(r.target)
	for _, m := range r.mutants {
		if m.Result == resultKilled || m.Result == resultTimedOut {
			killed++
			continue
		}
		reason := reasons[keyOf(m)]
		delete(unused, keyOf(m))
		if reason == "" {
			reason = "NO REASON"
			unexplained++
		}
		fmt.Fprintf(w, "%s:%d %s (%s): %s\n\t%s\n\t%s\n", m.File, m.Line, m.Function, m.Result, m.Text, m.Change, reason)
	}
	score := float64(killed) / float64(max(len(r.mutants), 1))
	fmt.Fprintf(w, "%s: %d mutants, %d killed, %d survived, score %.1f%%, %s\n", r.Name, len(r.mutants), killed,
		len(r.mutants)-killed, score*100, r.took.Round(time.Second))
	var problems []error
	for a := range unused {
		problems = append(problems, fmt.Errorf("%s: the accepted survivor no longer survives; remove it from %s: %s: %s: %s",
			r.Name, acceptedFile, a.Function, a.Text, a.Change))
	}
	if unexplained > 0 {
		problems = append(problems, fmt.Errorf("%s: %d mutants survived without a reason; write a test, or add a reason "+
			"to %s", r.Name, unexplained, acceptedFile))
	}
	if score < minScore {
		problems = append(problems, fmt.Errorf("%s: score %.1f%% is below %.0f%%", r.Name, score*100, minScore*100))
	}
	return errors.Join(problems...)
}
