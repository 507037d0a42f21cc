// Package diagnostic is how every file that a person writes for Stanch (playbooks, rules, config) is told what is
// wrong with it: file, line, column, what, and how to mend it. It refuses to print: callers render.
package diagnostic

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Diagnostic is one problem of a file, with its place and how to mend it.
type Diagnostic struct {
	File     string `json:"file"`
	Line     int    `json:"line"`   // from 1
	Column   int    `json:"column"` // from 1, in characters
	Severity string `json:"severity"`
	Code     string `json:"code"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// String is the diagnostic's first line: "file:line:col: error: message [code]".
func (d Diagnostic) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s [%s]", d.File, d.Line, d.Column, d.Severity, d.Message, d.Code)
}

// Render is the diagnostic with the line of source, a caret and the hint.
func (d Diagnostic) Render(source []byte) string {
	var b strings.Builder
	b.WriteString(d.String())
	lines := strings.Split(string(source), "\n")
	if d.Line >= 1 && d.Line <= len(lines) {
		text := strings.TrimRight(lines[d.Line-1], "\r")
		if len(text) > 200 {
			text = text[:200]
		}
		pad := []rune{}
		for i, r := range []rune(text) {
			if i >= d.Column-1 {
				break
			}
			if r != '\t' {
				r = ' '
			}
			pad = append(pad, r)
		}
		fmt.Fprintf(&b, "\n  %s\n  %s^", text, string(pad))
	}
	if d.Hint != "" {
		fmt.Fprintf(&b, "\n  hint: %s", d.Hint)
	}
	return b.String()
}

// Diagnostics is every problem of a file, in the order of its lines.
type Diagnostics []Diagnostic

// Sorted is the diagnostics in the order of the file, each once.
func (ds Diagnostics) Sorted() Diagnostics {
	slices.SortStableFunc(ds, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.CompactFunc(ds, func(a, b Diagnostic) bool { return a == b })
}

// WithoutWarnings are the diagnostics without the warnings, which wait until the errors are mended.
func (ds Diagnostics) WithoutWarnings() Diagnostics {
	return slices.DeleteFunc(slices.Clone(ds), func(d Diagnostic) bool { return d.Severity != "error" })
}

// HasErrors tells whether any is an error and not a warning.
func (ds Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == "error" })
}

// Err is the errors as one error, or nil.
func (ds Diagnostics) Err() error {
	var lines []string
	for _, d := range ds {
		if d.Severity == "error" {
			lines = append(lines, d.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(lines, "\n"))
}

// DidYouMean gives a hint with the known word that is nearest, or the words themselves where they are few.
func DidYouMean(word string, known []string) string {
	// The nearest word; of two as near the one of the same length, then the first by the alphabet.
	best, bestDistance := "", min(6, len([]rune(word))+1)
	for _, k := range slices.Sorted(slices.Values(known)) {
		d := 2 * editDistance(strings.ToLower(word), strings.ToLower(k))
		if len(k) != len(word) {
			d++
		}
		if d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean `%s`?", best)
	}
	if len(known) > 0 && len(known) <= 16 {
		sorted := slices.Sorted(slices.Values(known))
		return "known here: " + strings.Join(sorted, ", ")
	}
	return ""
}

// editDistance is the optimal string alignment distance: insertions, deletions, replacements, swaps of neighbours.
func editDistance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 64 || len(y) > 64 {
		return 64
	}
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}
