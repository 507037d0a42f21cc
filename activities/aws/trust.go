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

const webIdentity = "sts:AssumeRoleWithWebIdentity"

// trust is a role's trust policy: its statements, and all else that is in it as it is.
type trust struct {
	fields     map[string]any
	statements []any
}

func readTrust(text string) (trust, error) {
	v, err := decode(text)
	if err != nil {
		return trust{}, fmt.Errorf("the trust policy cannot be read: %w", err)
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return trust{}, fmt.Errorf("the trust policy is no document")
	}
	t := trust{fields: fields}
	switch s := fields["Statement"].(type) {
	case []any:
		t.statements = s
	case map[string]any: // one statement may stand alone
		t.statements = []any{s}
	}
	delete(fields, "Statement")
	return t, nil
}

func (t trust) text() string {
	doc := map[string]any{"Statement": t.statements}
	maps.Copy(doc, t.fields)
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err) // it was decoded from JSON
	}
	return string(raw)
}

// trustSid is how the statements are called that untrust adds: lease, number, end.
var trustSid = regexp.MustCompile(`^Stanch([a-z2-7]{16})n[0-9]{1,3}Until([0-9]{8}T[0-9]{6}Z)$`)

// hold is what of a trust policy is a lease's.
type trustHold struct {
	lease string // its short id
	until time.Time
}

// split takes the statements of holds out: what rests is what others wrote.
func (t trust) split() (rest trust, holds []trustHold, theirs []any) {
	rest = trust{fields: t.fields}
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		sid, _ := m["Sid"].(string)
		if found := trustSid.FindStringSubmatch(sid); found != nil {
			until, err := time.Parse(stampLayout, found[2])
			if err == nil {
				holds = append(holds, trustHold{found[1], until})
				theirs = append(theirs, s)
				continue
			}
		}
		rest.statements = append(rest.statements, s)
	}
	return rest, holds, theirs
}

// with adds a deny for the subjects, a statement for each identity provider that the role trusts.
func (t trust) with(subjects []string, lease string, until time.Time) trust {
	out := trust{fields: t.fields, statements: slices.Clone(t.statements)}
	for i, provider := range t.providers() {
		out.statements = append(out.statements, map[string]any{
			"Sid":    fmt.Sprintf("Stanch%sn%dUntil%s", shortID(lease), i, until.UTC().Format(stampLayout)),
			"Effect": "Deny", "Action": webIdentity, "Principal": map[string]any{"Federated": provider},
			"Condition": map[string]any{
				"StringEquals": map[string]any{issuer(provider) + ":sub": list(subjects)},
				"DateLessThan": beforeEnd(until),
			},
		})
	}
	return out
}

func list(words []string) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = w
	}
	return out
}

// issuer is the part of an identity provider's ARN by which condition keys name it.
func issuer(provider string) string {
	_, name, _ := strings.Cut(provider, ":oidc-provider/")
	return name
}

// providers are the identity providers that an Allow of the trust policy names.
func (t trust) providers() []string {
	var out []string
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		if m["Effect"] != "Allow" || !slices.ContainsFunc(words(m["Action"]), func(a string) bool { return matchFold(a, webIdentity) }) {
			continue
		}
		principal, _ := m["Principal"].(map[string]any)
		for _, p := range words(principal["Federated"]) {
			if strings.Contains(p, ":oidc-provider/") && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// admits tells whether a subject may assume the role by its web identity, as far as conditions on the subject say.
func (t trust) admits(subject string) bool {
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		one := trust{statements: []any{s}}
		providers := one.providers()
		if len(providers) == 0 {
			continue
		}
		conditions, _ := m["Condition"].(map[string]any)
		fits := true
		for _, provider := range providers {
			for operator, keys := range conditions {
				values, _ := keys.(map[string]any)
				for key, want := range values {
					if !strings.EqualFold(key, issuer(provider)+":sub") {
						continue
					}
					switch operator {
					case "StringEquals":
						fits = fits && slices.Contains(words(want), subject)
					case "StringLike":
						fits = fits && slices.ContainsFunc(words(want), func(p string) bool { return match(p, subject) })
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

// words is a value that may be one string or a list of them.
func words(v any) []string {
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

// match is IAM's: * and ?, and no other character is special.
func match(pattern, s string) bool {
	escaped := strings.NewReplacer(`\`, `\\`, `[`, `\[`).Replace(pattern)
	// path.Match stops at slashes; there are none in what is compared here once they are replaced.
	ok, err := path.Match(strings.ReplaceAll(escaped, "/", "\x00"), strings.ReplaceAll(s, "/", "\x00"))
	return err == nil && ok
}

func matchFold(pattern, s string) bool { return match(strings.ToLower(pattern), strings.ToLower(s)) }
