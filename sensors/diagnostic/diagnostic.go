// Package diagnostic represents the problems in files that people write for Stanch (playbooks, rules, configuration):
// file, line, column, message, and how to fix the problem.
//
// It refuses to print: callers decide how to render a diagnostic.
package diagnostic

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Diagnostic is one problem in a file, with its position and how to fix it. Severity is "error" or a lower severity
// such as "warning".
type Diagnostic struct {
	File     string `json:"file"`
	Line     int    `json:"line"`   // from 1
	Column   int    `json:"column"` // from 1, in characters (runes)
	Severity string `json:"severity"`
	Code     string `json:"code"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// String returns the diagnostic as one line: "file:line:col: error: message [code]".
func (d Diagnostic) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s [%s]", d.File, d.Line, d.Column, d.Severity, d.Message, d.Code)
}

// Render returns the diagnostic with the source line, a caret below the column, and the hint. It omits the source line
// if source has no such line, and truncates it to 200 bytes.
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

// Diagnostics are the problems of one or more files.
type Diagnostics []Diagnostic

// Sorted returns the diagnostics sorted by line and column, without duplicates. It reorders ds.
func (ds Diagnostics) Sorted() Diagnostics {
	slices.SortStableFunc(ds, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.CompactFunc(ds, func(a, b Diagnostic) bool { return a == b })
}

// WithoutWarnings returns only the errors. Warnings matter after the errors are fixed.
func (ds Diagnostics) WithoutWarnings() Diagnostics {
	return slices.DeleteFunc(slices.Clone(ds), func(d Diagnostic) bool { return d.Severity != "error" })
}

// HasErrors reports whether at least one diagnostic is an error.
func (ds Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == "error" })
}

// Err returns all errors joined as one error, one per line, or nil if there are none.
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

// DidYouMean returns a hint with the known word that is closest to word, or a list of the known words if there are at
// most 16, or "".
func DidYouMean(word string, known []string) string {
	// Of two equally close words, prefer one of the same length, then the first in alphabetical order.
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
		return "use one of: " + strings.Join(sorted, ", ")
	}
	return ""
}

// editDistance returns the optimal string alignment distance: the number of insertions, deletions, replacements and
// swaps of neighboring characters. It returns 64 if one of the words is longer than 64 characters.
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
