package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// isTerminal reports whether out is a terminal.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// useColor reports whether to print colors: on a terminal, unless NO_COLOR is set (no-color.org) or TERM is "dumb".
func useColor(out io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(out)
}

// colorize returns text with the ANSI color of word, or unchanged if color is false or word has no color.
func colorize(color bool, word, text string) string {
	code := ""
	switch {
	case !color:
	case word == "critical", strings.HasPrefix(word, "for you: "):
		code = "1;31" // bold red
	case word == "high":
		code = "31"
	case word == "medium":
		code = "33"
	case word == "open":
		code = "1"
	case word == "closed", strings.HasPrefix(word, "closed, "), strings.HasPrefix(word, "resolved: "):
		code = "2" // faint
	}
	if code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// table prints aligned columns. It escapes cells for the terminal, and colors those that colorize knows.
type table struct {
	color        bool
	rows         [][]string
	columnWidths []int
}

// addRow adds a row. Rows may have different numbers of cells.
func (t *table) addRow(cells ...string) {
	for i, c := range cells {
		cells[i] = escapeForTerminal(c)
		if i == len(t.columnWidths) {
			t.columnWidths = append(t.columnWidths, 0)
		}
		t.columnWidths[i] = max(t.columnWidths[i], utf8.RuneCountInString(cells[i]))
	}
	t.rows = append(t.rows, cells)
}

// print writes the rows to out.
func (t *table) print(out io.Writer) {
	for _, cells := range t.rows {
		var b strings.Builder
		for i, c := range cells {
			pad := strings.Repeat(" ", t.columnWidths[i]-utf8.RuneCountInString(c)+2)
			b.WriteString(colorize(t.color, c, c) + pad)
		}
		fmt.Fprintln(out, strings.TrimRight(b.String(), " "))
	}
}
