package audit

import "strings"

// Plain makes an attacker's string safe to show: control characters, and those that turn the direction of writing, are
// shown as a dot and not obeyed.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ' && r != '\t', r == 0x7f, r >= 0x80 && r < 0xa0: // control characters
			return '·'
		case r >= 0x200e && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x061c: // direction
			return '·'
		case r == 0x2028, r == 0x2029, r == 0xfeff, r == 0x200b: // hidden lines and spaces
			return '·'
		}
		return r
	}, s)
}
