package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

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
