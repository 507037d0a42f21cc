package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// testEvent is one line of `go test -json`; see `go doc test2json`.
type testEvent struct {
	Action     string
	Package    string
	ImportPath string // of build-output and build-fail
	Test       string
	Elapsed    float64
	Output     string
}

// printer prints what `go test` without -json and -v prints: the result of each package, and the output of tests that
// failed. The zero value is not usable; use newPrinter.
type printer struct {
	to       io.Writer
	held     map[string][]outputLine // lines of each package that are not printed yet
	passed   map[string]bool         // tests that passed or were skipped, by package and name
	tests    []testTime
	packages []testTime
	failed   bool
}

type outputLine struct{ test, text string }

func newPrinter(to io.Writer) *printer {
	return &printer{to: to, held: map[string][]outputLine{}, passed: map[string]bool{}}
}

// copyFrom prints a run of `go test`, until it ends.
func (p *printer) copyFrom(from io.Reader) error {
	for lines := bufio.NewReader(from); ; {
		line, err := lines.ReadBytes('\n')
		var e testEvent
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) != nil || e.Action == "":
			_, _ = p.to.Write(line) // not from a test: go's own messages
		default:
			p.add(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (p *printer) add(e testEvent) {
	switch e.Action {
	case "build-output":
		p.print(e.Output)
	case "build-fail":
		p.failed = true
	case "output":
		p.held[e.Package] = append(p.held[e.Package], outputLine{e.Test, e.Output})
	case "pass", "skip", "fail":
		p.end(e)
	}
}

// end handles the end of a package, a test or a subtest.
func (p *printer) end(e testEvent) {
	failed := e.Action == "fail"
	top, _, isSubtest := strings.Cut(e.Test, "/")
	switch {
	case e.Test == "":
		p.endPackage(e)
		return
	case !failed:
		p.passed[e.Package+" "+e.Test] = true
	}
	if isSubtest {
		return
	}
	p.tests = append(p.tests, testTime{e.Package, e.Test, e.Elapsed})
	var own, rest []outputLine
	for _, line := range p.held[e.Package] {
		if of, _, _ := strings.Cut(line.test, "/"); of == top {
			own = append(own, line)
		} else {
			rest = append(rest, line)
		}
	}
	if p.held[e.Package] = rest; failed {
		p.printFailure(e.Package, e.Test, own)
	}
}

// printFailure prints a failed test: what it wrote to standard output, and its log with that of its failed subtests
// below it. The JSON form has the lines as they were written, as -v has.
func (p *printer) printFailure(pkg, test string, lines []outputLine) {
	title := slices.IndexFunc(lines, func(line outputLine) bool { return line.test == test && isTitle(line.text) })
	if title < 0 { // it did not end: nothing can be put in order
		title = len(lines)
	}
	for _, line := range lines[:title] {
		if !isLog(line.text) && !isTitle(line.text) {
			p.printLine(pkg, line)
		}
	}
	p.printLog(pkg, test, lines, "")
	for _, line := range lines[title:] {
		if !isLog(line.text) && !isTitle(line.text) {
			p.printLine(pkg, line)
		}
	}
}

// printLog prints the log of one test, and those of its subtests.
func (p *printer) printLog(pkg, test string, lines []outputLine, indent string) {
	var subtests []string
	for _, line := range lines {
		parent := line.test[:max(0, strings.LastIndexByte(line.test, '/'))]
		switch {
		case line.test == test && isTitle(line.text):
			p.print(indent + line.text)
		case parent == test && isTitle(line.text) && !p.passed[pkg+" "+line.test]:
			subtests = append(subtests, line.test)
		}
	}
	for _, line := range lines {
		if line.test == test && isLog(line.text) {
			p.print(indent + line.text)
		}
	}
	for _, one := range subtests {
		p.printLog(pkg, one, lines, indent+logIndent)
	}
}

const logIndent = "    "

// isTitle reports whether a line is the result of a test.
func isTitle(line string) bool { return strings.HasPrefix(line, "--- ") }

// isLog reports whether a line is from a test's log. Other lines are from standard output.
func isLog(line string) bool { return strings.HasPrefix(line, logIndent) }

// endPackage prints the result of a package. What is still held belongs to no test, or to one that did not end, for
// example because of a panic.
func (p *printer) endPackage(e testEvent) {
	p.packages = append(p.packages, testTime{Package: e.Package, Seconds: e.Elapsed})
	p.failed = p.failed || e.Action == "fail"
	for _, line := range p.held[e.Package] {
		if e.Action == "fail" || line.test == "" && isResult(line.text) {
			p.printLine(e.Package, line)
		}
	}
	delete(p.held, e.Package)
}

// isResult reports whether a line is the last one of a package that did not fail.
func isResult(line string) bool {
	return strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t")
}

// printLine prints a line of a test, unless `go test` without -v would not.
func (p *printer) printLine(pkg string, line outputLine) {
	if p.passed[pkg+" "+line.test] {
		return
	}
	for _, progress := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME "} {
		if strings.HasPrefix(line.text, progress) {
			return
		}
	}
	p.print(line.text)
}

func (p *printer) print(text string) { fmt.Fprint(p.to, text) }
