package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"stanch/sensors/redact"
)

// escapeForTerminal escapes control characters, so that a terminal does not interpret attacker-controlled strings.
func escapeForTerminal(s string) string { return redact.EscapeControlChars(s) }

// logProgress prints a line to standard error, so that it is never part of machine-readable output.
func logProgress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

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
