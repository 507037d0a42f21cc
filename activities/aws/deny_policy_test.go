package aws

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRiskyPermissionsAreDescribed(t *testing.T) {
	for policy, want := range map[string]string{
		`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`:                                      "do anything (*)",
		`{"Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":"*"}]}`:                               "read every bucket whose policy allows it (s3:*)",
		`{"Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"arn:aws:iam::1:role/x"}]}`:            "change IAM, and thereby grant itself any permission (iam:*)",
		`{"Statement":[{"Effect":"Allow","Action":"IAM:passrole","Resource":"*"}]}`:                         "pass any role to the resources that it starts (IAM:passrole)",
		`{"Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"arn:aws:iam::1:role/x"}]}`:   "assume other roles, whose sessions a deny of this role does not affect (sts:AssumeRole)",
		`{"Statement":[{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}]}`:                             "do anything except iam:*",
		`{"Statement":[{"Effect":"Allow","Action":"sqs:*","Resource":"*","Condition":{"Bool":{"a":"b"}}}]}`: "do anything in sqs, subject to a condition",
		`{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::a/*"}]}`:          "",
		`{"Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`:                                     "",
		`not json`: "unknown permissions: the policy cannot be parsed",
	} {
		require.Equal(t, want, strings.Join(describeRiskyPermissions(policy), "; "), policy)
	}
}

func TestReadDenyAllAcceptsOnlyStanchPolicies(t *testing.T) {
	mine := denyAllPolicy{
		Condition: map[string]map[string]string{"StringEquals": {podUIDTagKey: "u"}},
		ExpiresAt: time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC),
	}
	got, err := parseDenyAll(mine.render())
	require.NoError(t, err)
	require.Equal(t, mine, got)
	for _, change := range [][2]string{
		{`"Deny"`, `"Allow"`},
		{`"Resource":"*"`, `"Resource":"arn:aws:s3:::a"`},
		{`StanchUntil2026`, `StanchUntil26`},
		{`"Action":"*"`, `"Action":["*"]`},
		{`"Version":"2012-10-17"`, `"Version":"2008-10-17"`},
		{`"Effect"`, `"NotPrincipal":"*","Effect"`},
		{"}]}", `},{"Effect":"Allow"}]}`},
	} {
		text := strings.Replace(mine.render(), change[0], change[1], 1)
		require.NotEqual(t, mine.render(), text)
		_, err := parseDenyAll(text)
		require.Error(t, err, text)
	}
}

func TestTrustedServiceAccounts(t *testing.T) {
	const p = "arn:aws:iam::1:oidc-provider/oidc/id/A"
	policy := func(condition string) trustPolicy {
		tr, err := parseTrustPolicy(`{"Statement":{"Effect":"Allow","Principal":{"Federated":"` + p +
			`"},"Action":"sts:AssumeRoleWithWebIdentity","Condition":` + condition + `}}`)
		require.NoError(t, err)
		return tr
	}
	const web = "system:serviceaccount:shop:web"
	require.True(t, policy(`{"StringEquals":{"oidc/id/A:sub":"system:serviceaccount:shop:web"}}`).allowsSubject(web))
	require.True(t, policy(`{"StringLike":{"oidc/id/A:sub":"system:serviceaccount:shop:*"}}`).allowsSubject(web))
	require.True(t, policy(`{"StringEquals":{"oidc/id/A:aud":"sts.amazonaws.com"}}`).allowsSubject(web),
		"no condition on the subject admits everybody")
	require.False(t, policy(`{"StringEquals":{"oidc/id/A:sub":["system:serviceaccount:shop:web2"]}}`).allowsSubject(web))
	require.False(t, policy(`{"StringLike":{"oidc/id/A:sub":"system:serviceaccount:bank:*"}}`).allowsSubject(web))
}

func FuzzReadDenyAll(f *testing.F) {
	f.Add(denyAllPolicy{ExpiresAt: time.Unix(0, 0)}.render())
	f.Add(
		`{"Version":"2012-10-17","Statement":[{"Sid":"StanchUntil20261123T140000Z","Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:TokenIssueTime":"x"}}}]}`,
	)
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := parseDenyAll(text); err == nil && canonicalJSON(d.render()) != canonicalJSON(text) {
			t.Errorf("%q was taken for %q", text, d.render())
		}
	})
}

// Added statements can always be removed, and nothing else is.
func FuzzReadTrust(f *testing.F) {
	f.Add(
		`{"Statement":{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::1:oidc-provider/a"},"Action":"sts:*"},"Id":"x"}`,
	)
	f.Add(`{"Statement":[{"Sid":"Stanch"},1,null,"a"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		tr, err := parseTrustPolicy(text)
		if err != nil {
			return
		}
		rest, _, _ := tr.splitOwnStatements()
		tr.summarize()
		tr.allowsSubject("system:serviceaccount:a:b")
		describeRiskyPermissions(text)
		again, err := parseTrustPolicy(rest.withDeny([]string{"system:serviceaccount:a:b"}, "LSE-1",
			time.Unix(1e9, 0)).render())
		if err != nil {
			t.Fatal(err)
		}
		back, _, _ := again.splitOwnStatements()
		if canonicalJSON(back.render()) != canonicalJSON(rest.render()) {
			t.Errorf("%s came back as %s", rest.render(), back.render())
		}
	})
}

func TestDenyExpiresByAWSClock(t *testing.T) {
	until := time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)
	const end = `"aws:CurrentTime":"2026-11-23T14:00:00Z"`
	for name, text := range map[string]string{
		"of a user": denyAllPolicy{ExpiresAt: until}.render(),
		"of a pod": denyAllPolicy{
			ExpiresAt: until,
			Condition: map[string]map[string]string{"StringEquals": {podUIDTagKey: "u"}},
		}.render(),
		"of sessions": denyAllPolicy{
			ExpiresAt: until,
			Condition: map[string]map[string]string{"DateLessThan": {tokenIssueTimeKey: "2026-11-23T12:00:00Z"}},
		}.render(),
		"of a trust": (trustPolicy{statements: []any{map[string]any{
			"Effect": "Allow", "Action": assumeWithWebIdentityAction,
			"Principal": map[string]any{"Federated": "arn:aws:iam::1:oidc-provider/x"},
		}}}).withDeny([]string{"system:serviceaccount:a:b"}, "LSE-1", until).render(),
	} {
		require.Contains(t, text, end, name)
		require.NotContains(t, strings.Replace(text, end, "", 1), currentTimeKey, name)
	}
	changed := strings.Replace(denyAllPolicy{ExpiresAt: until}.render(), end, `"aws:CurrentTime":"2036-11-23T14:00:00Z"`,
		1)
	_, err := parseDenyAll(changed)
	require.ErrorContains(t, err, "differs from what Stanch wrote",
		"a date that differs from the marker was changed by another writer")
}
