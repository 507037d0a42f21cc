package aws

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

const assumeWithWebIdentityAction = "sts:AssumeRoleWithWebIdentity"

// trustPolicy is a role's trust policy: its statements, and all other fields unchanged.
type trustPolicy struct {
	otherFields map[string]any
	statements  []any
}

func parseTrustPolicy(text string) (trustPolicy, error) {
	v, err := decodeJSON(text)
	if err != nil {
		return trustPolicy{}, fmt.Errorf("parse the trust policy: %w", err)
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return trustPolicy{}, fmt.Errorf("the trust policy is not a JSON object")
	}
	t := trustPolicy{otherFields: fields}
	switch s := fields["Statement"].(type) {
	case []any:
		t.statements = s
	case map[string]any: // a single statement needs no list
		t.statements = []any{s}
	}
	delete(fields, "Statement")
	return t, nil
}

func (t trustPolicy) render() string {
	doc := map[string]any{"Statement": t.statements}
	maps.Copy(doc, t.otherFields)
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err) // it was decoded from JSON
	}
	return string(raw)
}

// trustStatementIDPrefix begins the ids of statements that aws.irsa.untrust adds. trustStatementIDPattern matches them:
// lease, number, end.
const trustStatementIDPrefix = "Stanch"

var trustStatementIDPattern = regexp.MustCompile(`^Stanch([a-z2-7]{16})n[0-9]{1,3}Until([0-9]{8}T[0-9]{6}Z)$`)

// trustDeny is a lease's part of a trust policy.
type trustDeny struct {
	shortLeaseID string // short id of the lease
	expiresAt    time.Time
}

// splitOwnStatements removes the leases' statements; rest is what others wrote.
func (t trustPolicy) splitOwnStatements() (rest trustPolicy, holds []trustDeny, theirs []any) {
	rest = trustPolicy{otherFields: t.otherFields}
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		sid, _ := m["Sid"].(string)
		if found := trustStatementIDPattern.FindStringSubmatch(sid); found != nil {
			until, err := time.Parse(expiryLayout, found[2])
			if err == nil {
				holds = append(holds, trustDeny{found[1], until})
				theirs = append(theirs, s)
				continue
			}
		}
		rest.statements = append(rest.statements, s)
	}
	return rest, holds, theirs
}

// withDeny adds a deny for the subjects, one statement for each identity provider that the role trusts.
func (t trustPolicy) withDeny(subjects []string, lease string, until time.Time) trustPolicy {
	out := trustPolicy{otherFields: t.otherFields, statements: slices.Clone(t.statements)}
	for i, provider := range t.identityProviders() {
		out.statements = append(out.statements, map[string]any{
			"Sid":    fmt.Sprintf("Stanch%sn%dUntil%s", shortLeaseID(lease), i, until.UTC().Format(expiryLayout)),
			"Effect": "Deny", "Action": assumeWithWebIdentityAction, "Principal": map[string]any{"Federated": provider},
			"Condition": map[string]any{
				"StringEquals": map[string]any{issuerFromARN(provider) + ":sub": toAnySlice(subjects)},
				"DateLessThan": expiryCondition(until),
			},
		})
	}
	return out
}

func toAnySlice(words []string) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = w
	}
	return out
}

// issuerFromARN returns the part of an identity provider's ARN that condition keys use.
func issuerFromARN(provider string) string {
	_, name, _ := strings.Cut(provider, ":oidc-provider/")
	return name
}

// identityProviders returns the identity providers in the Allow statements.
func (t trustPolicy) identityProviders() []string {
	var out []string
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		if m["Effect"] != "Allow" || !slices.ContainsFunc(stringOrList(m["Action"]),
			func(a string) bool { return matchesWildcardFold(a, assumeWithWebIdentityAction) }) {
			continue
		}
		principal, _ := m["Principal"].(map[string]any)
		for _, p := range stringOrList(principal["Federated"]) {
			if strings.Contains(p, ":oidc-provider/") && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// allowsSubject reports whether a subject may assume the role by web identity, by the conditions on the subject.
func (t trustPolicy) allowsSubject(subject string) bool {
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		one := trustPolicy{statements: []any{s}}
		providers := one.identityProviders()
		if len(providers) == 0 {
			continue
		}
		conditions, _ := m["Condition"].(map[string]any)
		fits := true
		for _, provider := range providers {
			for operator, keys := range conditions {
				values, _ := keys.(map[string]any)
				for key, want := range values {
					if !strings.EqualFold(key, issuerFromARN(provider)+":sub") {
						continue
					}
					switch operator {
					case "StringEquals":
						fits = fits && slices.Contains(stringOrList(want), subject)
					case "StringLike":
						fits = fits && slices.ContainsFunc(stringOrList(want), func(p string) bool { return matchesWildcard(p, subject) })
					}
				}
			}
		}
		if fits {
			return true
		}
	}
	return false
}

// stringOrList returns the elements of a string or a list of strings.
func stringOrList(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, item := range v {
			if s, ok := item.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// matchesWildcard matches as IAM does: only * and ? are special.
func matchesWildcard(pattern, s string) bool {
	escaped := strings.NewReplacer(`\`, `\\`, `[`, `\[`).Replace(pattern)
	// path.Match stops at slashes, so they are replaced on both sides.
	ok, err := path.Match(strings.ReplaceAll(escaped, "/", "\x00"), strings.ReplaceAll(s, "/", "\x00"))
	return err == nil && ok
}

func matchesWildcardFold(pattern, s string) bool {
	return matchesWildcard(strings.ToLower(pattern), strings.ToLower(s))
}
