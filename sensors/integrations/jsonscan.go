package integrations

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// BatchDecodeError reports that a part of a batch could not be decoded. The other records were returned.
type BatchDecodeError struct {
	FailedCount, TotalCount int
	FirstError              error
}

// Error returns the counts and the first error.
func (e *BatchDecodeError) Error() string {
	return fmt.Sprintf("%d of %d records are invalid; the first: %v", e.FailedCount, e.TotalCount, e.FirstError)
}

// Unwrap returns the first error.
func (e *BatchDecodeError) Unwrap() error { return e.FirstError }

func (e *BatchDecodeError) add(err error) {
	e.FailedCount++
	if e.FirstError == nil {
		e.FirstError = err
	}
}

func (e *BatchDecodeError) orNilFor(of int) error {
	if e.FailedCount == 0 {
		return nil
	}
	e.TotalCount = of
	return e
}

var (
	errNotJSONObject = errors.New("not a JSON object")
	errNotJSONArray  = errors.New("not a JSON array")
)

// splitJSONObject splits an object without parsing its values, so that one malformed value does not hide the others.
// The readers of the values validate them. If a name occurs twice, the last one counts, as in encoding/json.
func splitJSONObject(raw []byte) (map[string]json.RawMessage, error) {
	parts, err := splitAtCommas(raw, '{', '}')
	if err != nil {
		return nil, errNotJSONObject
	}
	out := make(map[string]json.RawMessage, len(parts))
	for _, part := range parts {
		end := findStringEnd(part)
		if end < 0 {
			return nil, errNotJSONObject
		}
		var name string
		rest := bytes.TrimSpace(part[end:])
		if json.Unmarshal(part[:end], &name) != nil || len(rest) == 0 || rest[0] != ':' {
			return nil, errNotJSONObject
		}
		out[name] = bytes.TrimSpace(rest[1:])
	}
	return out, nil
}

// splitJSONArray splits an array without parsing its elements. A missing array or null has no elements.
func splitJSONArray(raw []byte) ([][]byte, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	return splitAtCommas(raw, '[', ']')
}

// splitAtCommas splits the content of a pair of brackets at its top-level commas.
func splitAtCommas(raw []byte, opens, closes byte) ([][]byte, error) {
	if raw = bytes.TrimSpace(raw); len(raw) < 2 || raw[0] != opens || raw[len(raw)-1] != closes {
		return nil, errNotJSONArray
	}
	raw = raw[1 : len(raw)-1]
	var out [][]byte
	depth, from := 0, 0
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			end := findStringEnd(raw[i:])
			if end < 0 {
				return nil, errNotJSONArray
			}
			i += end - 1
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return nil, errNotJSONArray
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
		return nil, errNotJSONArray
	}
	return out, nil
}

// findStringEnd returns the index after the string at the start of raw, or -1 if there is none.
func findStringEnd(raw []byte) int {
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
