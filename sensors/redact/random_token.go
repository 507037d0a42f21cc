package redact

import "math"

// The properties of a random token. Longer values are payloads and wallet addresses, which a responder needs to see.
const (
	minTokenLength = 20
	maxTokenLength = 64
	// minEntropyBitsPerChar is the minimum entropy per character: 20 random base64 characters have 4.1 bits on
	// average, words about 3.3.
	minEntropyBitsPerChar = 3.7
	// minClassChangesPerChar is the minimum number of changes between capital letters, small letters and digits, per
	// character: 0.6 in random text, 0.3 in a name such as MyServiceConfig2.
	minClassChangesPerChar = 0.4
)

// isRandomToken reports whether a value looks like a random token: letters of both cases and digits in random order.
// Hexadecimal digests and IDs, UUIDs, paths, host names and versions do not.
func isRandomToken(s string) bool {
	if len(s) < minTokenLength || len(s) > maxTokenLength {
		return false
	}
	const upper, lower, digit, sign = 1, 2, 4, 8
	var seen, last, turns int
	var counts [128]int
	for i := range len(s) {
		kind := sign
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z':
			kind = upper
		case c >= 'a' && c <= 'z':
			kind = lower
		case c >= '0' && c <= '9':
			kind = digit
		case c == '+' || c == '/' && i > 0 || c == '=' || c == '_' || c == '-':
		default:
			return false
		}
		if kind != last && i > 0 {
			turns++
		}
		seen, last = seen|kind, kind
		counts[s[i]]++
	}
	if seen&(upper|lower|digit) != upper|lower|digit || float64(turns) < minClassChangesPerChar*float64(len(s)) {
		return false
	}
	bits := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(s))
			bits -= p * math.Log2(p)
		}
	}
	return bits >= minEntropyBitsPerChar
}
