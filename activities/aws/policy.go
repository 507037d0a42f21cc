package aws

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// stampLayout is how an end stands in a statement's id, which holds letters and digits only.
const stampLayout = "20060102T150405Z"

// currentTime is the condition key of when AWS judges a request. A deny under it ends by AWS's own clock, also if nothing of
// Stanch ever runs again.
// Source: IAM User Guide, "AWS global condition context keys".
const currentTime = "aws:CurrentTime"

// beforeEnd is the condition under which a deny ends by itself.
func beforeEnd(until time.Time) map[string]string {
	return map[string]string{currentTime: stamped(until).Format(time.RFC3339)}
}

// denyAll is the one shape of inline policy that this package writes: everything is denied until the end, under a further
// condition or without one. Its statement's id is the stamp.
type denyAll struct {
	Condition map[string]map[string]string // without that of the end
	Until     time.Time
}

// conditions are all conditions of the statement, that of the end among them.
func (d denyAll) conditions() map[string]map[string]string {
	out := map[string]map[string]string{"DateLessThan": beforeEnd(d.Until)}
	for operator, keys := range d.Condition {
		if out[operator] == nil {
			out[operator] = map[string]string{}
		}
		maps.Copy(out[operator], keys)
	}
	return out
}

type statement struct {
	Sid       string
	Effect    string
	Action    string
	Resource  string
	Condition map[string]map[string]string `json:",omitempty"`
}

type document struct {
	Version   string
	Statement []statement
}

func (d denyAll) text() string {
	raw, err := json.Marshal(document{"2012-10-17", []statement{{
		Sid: "StanchUntil" + d.Until.UTC().Format(stampLayout), Effect: "Deny", Action: "*", Resource: "*", Condition: d.conditions(),
	}}})
	if err != nil {
		panic(err) // it is made of strings
	}
	return string(raw)
}

// maxPolicy bounds what is parsed; IAM's own limits are far below.
const maxPolicy = 64 << 10

// readDenyAll reads what text wrote, and nothing else: whatever differs was changed by somebody.
func readDenyAll(text string) (denyAll, error) {
	var doc document
	if len(text) > maxPolicy {
		return denyAll{}, fmt.Errorf("it has %d bytes", len(text))
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil || len(doc.Statement) != 1 {
		return denyAll{}, fmt.Errorf("it is not what Stanch wrote")
	}
	stamp, ok := strings.CutPrefix(doc.Statement[0].Sid, "StanchUntil")
	until, err := time.Parse(stampLayout, stamp)
	if err != nil || !ok {
		return denyAll{}, fmt.Errorf("it does not say until when")
	}
	d := denyAll{Condition: doc.Statement[0].Condition, Until: until}
	delete(d.Condition["DateLessThan"], currentTime) // the comparison below finds one that is another
	if len(d.Condition["DateLessThan"]) == 0 {
		delete(d.Condition, "DateLessThan")
	}
	if len(d.Condition) == 0 {
		d.Condition = nil
	}
	if canonical(d.text()) != canonical(text) {
		return denyAll{}, fmt.Errorf("it is not what Stanch wrote")
	}
	return d, nil
}

// stamped is an end as it can be stamped.
func stamped(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// canonical is a JSON text with sorted keys and no spaces, or "" if it is none.
func canonical(text string) string {
	v, err := decode(text)
	if err != nil {
		return ""
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(raw)
}

func decode(text string) (any, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("it has %d bytes", len(text))
	}
	var v any
	decoder := json.NewDecoder(bytes.NewBufferString(text))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return nil, fmt.Errorf("it is not JSON: %w", err)
	}
	return v, nil
}

// plainText undoes IAM's URL encoding of documents.
func plainText(encoded string) string {
	if text, err := url.QueryUnescape(encoded); err == nil && !strings.HasPrefix(strings.TrimSpace(encoded), "{") {
		return text
	}
	return encoded
}

// shortID makes of any id letters and digits.
func shortID(id string) string {
	sum := sha256.Sum256([]byte(id))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

var safeLease = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// policyName names an inline policy after its lease, so that a person finds the one by the other.
func policyName(prefix, lease string) string {
	if !safeLease.MatchString(lease) {
		lease = shortID(lease)
	}
	return prefix + lease
}

// weight is a policy's size as IAM counts it: without white space.
func weight(text string) int {
	n := 0
	for _, r := range text {
		if r != ' ' && r != '\n' && r != '\t' && r != '\r' {
			n++
		}
	}
	return n
}
