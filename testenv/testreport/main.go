// Command testreport makes the output of `go test -json` readable, and lists the slowest tests of a run.
//
//	go test -json ./... | testreport -phase unit -times FILE   # prints what `go test ./...` prints
//	testreport -slowest 10 -times FILE                         # prints the slowest tests of all phases
//
// It decides nothing: what a test's result is, and whether the run failed, is taken from `go test`.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	phase := flag.String("phase", "", "read `go test -json` from standard input, as the phase `NAME`")
	slowest := flag.Int("slowest", 0, "list the `N` slowest tests in the file of times")
	file := flag.String("times", "", "the `FILE` with the times of all phases")
	flag.Parse()
	if err := run(*phase, *slowest, *file); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

var errFailed = errors.New("a package failed")

func run(phase string, slowest int, file string) error {
	if slowest > 0 {
		times, err := readTimes(file)
		if err != nil {
			return err
		}
		writeSlowest(os.Stdout, times, slowest)
		return nil
	}
	began := time.Now()
	p := newPrinter(os.Stdout)
	if err := p.copyFrom(os.Stdin); err != nil {
		return fmt.Errorf("read the output of go test: %w", err)
	}
	took := phaseTimes{Phase: phase, Seconds: time.Since(began).Seconds(), Tests: p.tests, Packages: p.packages}
	if err := appendTimes(file, took); err != nil {
		return err
	}
	if p.failed {
		fmt.Println("FAIL")
		return errFailed
	}
	return nil
}

// phaseTimes are the times of one run of `go test`.
type phaseTimes struct {
	Phase    string     `json:"phase"`
	Seconds  float64    `json:"seconds"`
	Tests    []testTime `json:"tests"`
	Packages []testTime `json:"packages"`
}

// testTime is the time of a package, or of one of its tests. Subtests are part of their test.
type testTime struct {
	Package string  `json:"package"`
	Test    string  `json:"test,omitempty"`
	Seconds float64 `json:"seconds"`
}

// appendTimes appends a phase to the file, as one line of JSON.
func appendTimes(file string, times phaseTimes) error {
	if file == "" {
		return nil
	}
	raw, err := json.Marshal(times)
	if err != nil {
		return fmt.Errorf("write the times: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write the times: %w", err)
	}
	if _, err = f.Write(append(raw, '\n')); err != nil {
		return errors.Join(fmt.Errorf("write the times: %w", err), f.Close())
	}
	return f.Close()
}

func readTimes(file string) ([]phaseTimes, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the times: %w", err)
	}
	defer f.Close()
	var out []phaseTimes
	for d := json.NewDecoder(f); ; {
		var one phaseTimes
		if err := d.Decode(&one); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the times: %w", err)
		}
		out = append(out, one)
	}
}
