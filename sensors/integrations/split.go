package integrations

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// RawRecord is one record of a request body. Line is its line number, or its position in a JSON array, from 1.
type RawRecord struct {
	Line int
	Raw  []byte
}

// SplitRecords splits a request body into records: one JSON object, a JSON array, or one record per line (NDJSON;
// empty lines are skipped). A line that is not JSON is returned as a record, so that its decoder rejects only that
// line. An array that is not valid JSON is an error, because the next element cannot be found. More than most records,
// or an empty body, are an error too.
func SplitRecords(body []byte, most int) ([]RawRecord, error) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	switch {
	case len(body) == 0:
		return nil, errors.New("the body is empty")
	case body[0] == '[':
		return splitRecordList(body, most)
	case !bytes.ContainsRune(body, '\n') || json.Valid(body):
		return []RawRecord{{Line: 1, Raw: body}}, nil
	}
	var out []RawRecord
	line := 0
	for raw := range bytes.Lines(body) {
		line++
		if raw = bytes.TrimSpace(raw); len(raw) == 0 {
			continue
		}
		if len(out) == most {
			return nil, fmt.Errorf("more than %d lines; send fewer at once", most)
		}
		out = append(out, RawRecord{Line: line, Raw: raw})
	}
	return out, nil
}

func splitRecordList(body []byte, most int) ([]RawRecord, error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON array: %w", err)
	}
	var out []RawRecord
	for decoder.More() {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return nil, fmt.Errorf("element %d of the array: %w", len(out)+1, err)
		}
		if len(out) == most {
			return nil, fmt.Errorf("more than %d elements; send fewer at once", most)
		}
		out = append(out, RawRecord{Line: len(out) + 1, Raw: raw})
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("the array is not closed: %w", err)
	}
	if rest := bytes.TrimSpace(body[decoder.InputOffset():]); len(rest) > 0 {
		return nil, errors.New("unexpected data after the array")
	}
	return out, nil
}
