package redact

import (
	"strings"
	"unicode"
)

// EscapeControlChars makes an attacker's string safe to look at: control characters, invisible ones, and those that change the
// direction of what follows, are shown as dots and not obeyed.
func EscapeControlChars(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == ' ':
			return r
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r), r == unicode.ReplacementChar:
			return '·'
		}
		return r
	}, s)
}
