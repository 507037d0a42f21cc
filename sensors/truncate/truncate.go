// Package truncate shortens texts that an attacker may have chosen, before they are shown, logged or stored. It does
// not escape or redact them; package redact does.
package truncate

import "unicode/utf8"

const (
	nameRunes   = 80
	reasonRunes = 300
)

// Text returns at most n characters of s, followed by "…" if s was longer.
func Text(s string, n int) string {
	if kept := Runes(s, n); len(kept) < len(s) {
		return kept + "…"
	}
	return s
}

// Name returns a name or an id as messages show it: at most 80 characters.
func Name(s string) string { return Text(s, nameRunes) }

// Reason returns a reason, such as an error, as messages show it: at most 300 characters.
func Reason(s string) string { return Text(s, reasonRunes) }

// Runes returns at most n characters of s.
func Runes(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}

// Bytes returns at most n bytes of s, of which "…" is the end if s was longer. It cuts between characters. With less
// than three bytes, it returns "…" alone.
func Bytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	end := max(n-len("…"), 0)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
