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

// expiryLayout is the format of the end in a statement's id, which may contain only letters and digits.
const expiryLayout = "20060102T150405Z"

// currentTimeKey is the condition key of the time at which AWS evaluates a request. A deny with this condition ends by
// AWS's clock, even if Stanch never runs again. Source: IAM User Guide, "AWS global condition context keys".
const currentTimeKey = "aws:CurrentTime"

// expiryCondition returns the condition that ends a deny by itself.
func expiryCondition(until time.Time) map[string]string {
	return map[string]string{currentTimeKey: truncateExpiry(until).Format(time.RFC3339)}
}

// denyAllPolicy is the only form of inline policy that this package writes: everything is denied until the end, with or
// without a further condition. The statement's id contains the expiry marker.
type denyAllPolicy struct {
	Condition map[string]map[string]string // without the condition of the end
	ExpiresAt time.Time
}

// allConditions returns all conditions of the statement, including that of the end.
func (d denyAllPolicy) allConditions() map[string]map[string]string {
	out := map[string]map[string]string{"DateLessThan": expiryCondition(d.ExpiresAt)}
	for operator, keys := range d.Condition {
		if out[operator] == nil {
			out[operator] = map[string]string{}
		}
		maps.Copy(out[operator], keys)
	}
	return out
}

type policyStatement struct {
	Sid       string                       `json:"Sid"`
	Effect    string                       `json:"Effect"`
	Action    string                       `json:"Action"`
	Resource  string                       `json:"Resource"`
	Condition map[string]map[string]string `json:"Condition,omitempty"`
}

type policyDocument struct {
	Version   string            `json:"Version"`
	Statement []policyStatement `json:"Statement"`
}

func (d denyAllPolicy) render() string {
	raw, err := json.Marshal(policyDocument{"2012-10-17", []policyStatement{{
		Sid: "StanchUntil" + d.ExpiresAt.UTC().Format(expiryLayout), Effect: "Deny", Action: "*", Resource: "*",
		Condition: d.allConditions(),
	}}})
	if err != nil {
		panic(err) // it contains only strings
	}
	return string(raw)
}

// maxPolicyBytes is the maximum size that is parsed. IAM's own limits are far below.
const maxPolicyBytes = 64 << 10

// parseDenyAll parses what text writes, and nothing else: any difference is a change by someone else.
func parseDenyAll(text string) (denyAllPolicy, error) {
	var doc policyDocument
	if len(text) > maxPolicyBytes {
		return denyAllPolicy{}, fmt.Errorf("it has %d bytes", len(text))
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil || len(doc.Statement) != 1 {
		return denyAllPolicy{}, fmt.Errorf("it differs from what Stanch wrote")
	}
	stamp, ok := strings.CutPrefix(doc.Statement[0].Sid, "StanchUntil")
	until, err := time.Parse(expiryLayout, stamp)
	if err != nil || !ok {
		return denyAllPolicy{}, fmt.Errorf("its end time is missing")
	}
	d := denyAllPolicy{Condition: doc.Statement[0].Condition, ExpiresAt: until}
	delete(d.Condition["DateLessThan"], currentTimeKey) // the comparison below detects a different one
	if len(d.Condition["DateLessThan"]) == 0 {
		delete(d.Condition, "DateLessThan")
	}
	if len(d.Condition) == 0 {
		d.Condition = nil
	}
	if canonicalJSON(d.render()) != canonicalJSON(text) {
		return denyAllPolicy{}, fmt.Errorf("it differs from what Stanch wrote")
	}
	return d, nil
}

// truncateExpiry returns an end with the precision of the marker, one second.
func truncateExpiry(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// canonicalJSON returns JSON with sorted keys and no spaces, or "" for invalid JSON.
func canonicalJSON(text string) string {
	v, err := decodeJSON(text)
	if err != nil {
		return ""
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(raw)
}

func decodeJSON(text string) (any, error) {
	if len(text) > maxPolicyBytes {
		return nil, fmt.Errorf("it has %d bytes", len(text))
	}
	var v any
	decoder := json.NewDecoder(bytes.NewBufferString(text))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return nil, fmt.Errorf("invalid JSON: %w", err)
	}
	return v, nil
}

// decodeURLEncoded decodes IAM's URL-encoded documents.
func decodeURLEncoded(encoded string) string {
	if text, err := url.QueryUnescape(encoded); err == nil && !strings.HasPrefix(strings.TrimSpace(encoded), "{") {
		return text
	}
	return encoded
}

// shortLeaseID returns letters and digits that identify a lease.
func shortLeaseID(id string) string {
	sum := sha256.Sum256([]byte(id))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

var leaseIDPattern = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// policyName returns the name of a lease's inline policy, so that people can find one by the other.
func policyName(prefix, lease string) string {
	if !leaseIDPattern.MatchString(lease) {
		lease = shortLeaseID(lease)
	}
	return prefix + lease
}

// policySize returns a policy's size as IAM counts it: without white space.
func policySize(text string) int {
	n := 0
	for _, r := range text {
		if r != ' ' && r != '\n' && r != '\t' && r != '\r' {
			n++
		}
	}
	return n
}
