package redact

import "math"

// Bounds of what looks like a random token. Longer ones are payloads and wallets, which a responder wants to see.
const (
	minTokenLength = 20
	maxTokenLength = 64
	// minEntropyBitsPerChar is the entropy of a character: 20 random characters of base64 have 4.1 on average, words some 3.3.
	minEntropyBitsPerChar = 3.7
	// minClassChangesPerChar is how often capitals, small letters and digits take turns, for each character: 0.6 at random, 0.3 in
	// a name such as MyServiceConfig2.
	minClassChangesPerChar = 0.4
)

// isRandomToken reports whether a value looks like a random token: letters of both cases and digits in disorder. Digests and
// ids in hexadecimal, UUIDs, paths, host names and versions do not.
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
