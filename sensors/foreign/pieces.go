package foreign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// UnreadError tells how much of a batch could not be read; what could be was given.
type UnreadError struct {
	Unread, Of int
	First      error
}

func (e *UnreadError) Error() string {
	return fmt.Sprintf("%d of %d cannot be read; the first: %v", e.Unread, e.Of, e.First)
}

func (e *UnreadError) Unwrap() error { return e.First }

func (e *UnreadError) add(err error) {
	e.Unread++
	if e.First == nil {
		e.First = err
	}
}

func (e *UnreadError) orNil(of int) error {
	if e.Unread == 0 {
		return nil
	}
	e.Of = of
	return e
}

var (
	errNoObject = errors.New("it is not a JSON object")
	errNoList   = errors.New("it is not a JSON list")
)

// fields takes an object apart without looking into its values: however one of them nests, the others are found. The
// values are checked by who reads them; of a name that comes twice the last counts, as in encoding/json.
func fields(raw []byte) (map[string]json.RawMessage, error) {
	parts, err := pieces(raw, '{', '}')
	if err != nil {
		return nil, errNoObject
	}
	out := make(map[string]json.RawMessage, len(parts))
	for _, part := range parts {
		end := stringEnd(part)
		if end < 0 {
			return nil, errNoObject
		}
		var name string
		rest := bytes.TrimSpace(part[end:])
		if json.Unmarshal(part[:end], &name) != nil || len(rest) == 0 || rest[0] != ':' {
			return nil, errNoObject
		}
		out[name] = bytes.TrimSpace(rest[1:])
	}
	return out, nil
}

// elements takes a list apart without looking into its elements. What is not there, or null, has none.
func elements(raw []byte) ([][]byte, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	return pieces(raw, '[', ']')
}

// pieces are what commas part within one pair of brackets.
func pieces(raw []byte, opens, closes byte) ([][]byte, error) {
	if raw = bytes.TrimSpace(raw); len(raw) < 2 || raw[0] != opens || raw[len(raw)-1] != closes {
		return nil, errNoList
	}
	raw = raw[1 : len(raw)-1]
	var out [][]byte
	depth, from := 0, 0
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			end := stringEnd(raw[i:])
			if end < 0 {
				return nil, errNoList
			}
			i += end - 1
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return nil, errNoList
			}
		case c == ',' && depth == 0:
			out = append(out, bytes.TrimSpace(raw[from:i]))
			from = i + 1
		}
	}
	if last := bytes.TrimSpace(raw[from:]); len(last) > 0 || len(out) > 0 {
		out = append(out, last)
	}
	if depth != 0 {
		return nil, errNoList
	}
	return out, nil
}

// stringEnd is where a string ends that raw begins with; -1 if there is none.
func stringEnd(raw []byte) int {
	if len(raw) == 0 || raw[0] != '"' {
		return -1
	}
	for i := 1; i < len(raw); i++ {
		switch raw[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}
