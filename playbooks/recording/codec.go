package recording

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/invopop/jsonschema"
)

// Limits of a recording. Encode and Decode refuse a recording that exceeds one of them.
const (
	MaxBytes         = 32 << 20
	MaxDetections    = 20_000
	MaxActionResults = 50_000
	MaxOtherEntries  = 20_000
	maxJSONDepth     = 40
)

var zeroHash = strings.Repeat("0", sha256.Size*2)

// Encode returns a recording as indented JSON with the SHA-256 of its content.
func Encode(r Recording) ([]byte, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	r.SHA256 = zeroHash
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(r); err != nil {
		return nil, fmt.Errorf("write the recording: %w", err)
	}
	raw := b.Bytes()
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("the recording is %d bytes; the maximum is %d", len(raw), MaxBytes)
	}
	sum := sha256.Sum256(raw)
	return bytes.Replace(raw, []byte(zeroHash), []byte(hex.EncodeToString(sum[:])), 1), nil
}

// Decode parses a recording strictly. It returns an error for unknown keys, trailing data, other versions, exceeded
// limits and a wrong hash.
func Decode(raw []byte) (Recording, error) {
	var r Recording
	if len(raw) > MaxBytes {
		return r, fmt.Errorf("the recording is %d bytes; the maximum is %d", len(raw), MaxBytes)
	}
	if err := checkNestingDepth(raw); err != nil {
		return r, err
	}
	// The version is checked first, so that a file of another version gets a version error and no error about its
	// content.
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return r, decodeError(err)
	}
	switch {
	case head.Version == nil:
		return r, errors.New("not a recording: missing version; create one with `stanch record`")
	case *head.Version != FormatVersion:
		return r, fmt.Errorf("the recording has version %d; this program supports version %d", *head.Version, FormatVersion)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return Recording{}, decodeError(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Recording{}, errors.New("unexpected data after the recording")
	}
	if err := verifyHash(raw, r.SHA256); err != nil {
		return Recording{}, err
	}
	if err := r.validate(); err != nil {
		return Recording{}, err
	}
	return r, nil
}

func decodeError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &syntax) && strings.Contains(syntax.Error(),
		"unexpected end"):
		return errors.New("the recording is truncated")
	case errors.As(err, &syntax):
		return fmt.Errorf("the recording is corrupted at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &kind):
		return fmt.Errorf("the recording is corrupted at byte %d: `%s` has the wrong type %s", kind.Offset, kind.Field,
			kind.Value)
	}
	return fmt.Errorf("decode the recording: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// checkNestingDepth returns an error if the JSON is nested too deeply. It runs before anything decodes the JSON.
func checkNestingDepth(raw []byte) error {
	depth, text, escaped := 0, false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case text && c == '\\':
			escaped = true
		case c == '"':
			text = !text
		case text:
		case c == '{' || c == '[':
			if depth++; depth > maxJSONDepth {
				return fmt.Errorf("the recording is nested deeper than %d levels", maxJSONDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// verifyHash compares the file's bytes with the hash in the file.
func verifyHash(raw []byte, sum string) error {
	if len(sum) != len(zeroHash) || strings.Trim(sum, "0123456789abcdef") != "" {
		return errors.New("the recording does not contain a valid SHA-256 hash of its content")
	}
	got := sha256.Sum256(bytes.Replace(raw, []byte(sum), []byte(zeroHash), 1))
	if hex.EncodeToString(got[:]) != sum {
		return fmt.Errorf("the recording was changed after it was created: its content has SHA-256 %x instead of %s", got,
			sum)
	}
	return nil
}

// validate returns an error if a required field is missing or a limit is exceeded.
func (r Recording) validate() error {
	switch {
	case r.Incident.ID == "" || r.Incident.GroupingKey == "" || r.Incident.Cluster == "":
		return errors.New("the recording has no incident ID, grouping key or cluster")
	case r.Incident.Opened.IsZero():
		return errors.New("the recording does not say when its incident was opened")
	case r.Incident.Phase < 1 || r.Incident.Phase > 3:
		return fmt.Errorf("the recording has an invalid phase, %d; use 1, 2 or 3", r.Incident.Phase)
	case len(r.Detections) == 0:
		return errors.New("the recording has no detection")
	case len(r.Detections) > MaxDetections, len(r.ActionResults) > MaxActionResults, len(r.Steps)+len(r.Votes)+
		len(r.TriageDecisions)+len(r.ApprovalRequests)+len(r.Leases)+len(r.LeaseChanges)+len(r.Evidence) > MaxOtherEntries:
		return errors.New("the recording has too many entries")
	}
	const longest = int64(400 * 24 * 3600 * 1000) // slightly more than a year, in milliseconds
	for i, d := range r.Detections {
		if d.OffsetMS < 0 || d.OffsetMS > longest || d.Detection.ID == "" || i > 0 &&
			d.OffsetMS < r.Detections[i-1].OffsetMS {
			return fmt.Errorf("detections[%d]: missing ID, or time out of order", i)
		}
	}
	for i, a := range r.ActionResults {
		switch a.Operation {
		case OperationObserve, OperationPlan, OperationApply, OperationVerify, OperationUndo:
		default:
			return fmt.Errorf("action_results[%d]: unknown operation %q", i, a.Operation)
		}
		if a.Action == "" || a.AttemptNumber < 1 || a.OffsetMS > longest {
			return fmt.Errorf("action_results[%d]: missing action or attempt, or time out of range", i)
		}
		if a.Outcome != "" && a.Outcome.WorseOf("") == "" {
			return fmt.Errorf("action_results[%d]: unknown outcome %q", i, a.Outcome)
		}
	}
	if v := r.Incident.IdleTimeoutMS; v < 0 || v > longest {
		return errors.New("the recording's idle timeout is out of range")
	}
	return nil
}

// Schema returns the JSON Schema of a recording.
func Schema() any { return (&jsonschema.Reflector{}).Reflect(Recording{}) }
