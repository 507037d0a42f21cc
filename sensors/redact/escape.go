package redact

import (
	"strings"
	"unicode"
)

// EscapeControlChars returns s in a form that is safe to display: it replaces control characters, invisible characters
// and characters that change the text direction with "·". Tabs and spaces stay.
func EscapeControlChars(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == ' ':
			return r
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r),
			r == unicode.ReplacementChar:
			return '·'
		}
		return r
	}, s)
}
