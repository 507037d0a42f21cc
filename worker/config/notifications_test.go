package config_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/diagnostic"
	"stanch/worker/config"
)

func TestParseReadsNotifications(t *testing.T) {
	c, problems := config.Parse("c", []byte(`
webhooks: [{name: pager, url: 'https://pager.example/hook', secret_file: /s}, {name: here, url: 'http://127.0.0.1:9/x', secret_file: /s}]
email: {smtp: 'smtp.example.com:587', from: 'Stanch <stanch@example.com>', to: [oncall@example.com], username: stanch, password_file: /p}
ticket: {kind: gitlab, project: acme/ops/incidents, token_file: /t, labels: [security]}
`))
	require.Empty(t, problems)
	require.Len(t, c.Webhooks, 2)
	require.Equal(t, "https://gitlab.com", c.Ticket.APIBaseURL())
	host, port, err := c.Email.SMTPHostPort()
	require.NoError(t, err)
	require.Equal(t, "smtp.example.com", host)
	require.Equal(t, 587, port)
}

func TestParseRejectsInvalidNotifications(t *testing.T) {
	const mail = "from: s@example.com, to: [o@example.com]"
	for name, c := range map[string]struct{ text, want string }{
		"http to another machine": {
			"webhooks: [{name: a, url: 'http://pager.example', secret_file: s}]",
			"http is allowed only to this machine",
		},
		"invalid URL": {
			"webhooks: [{name: a, url: 'file:///etc/passwd', secret_file: s}]",
			"`url` is not an https URL",
		},
		"password in URL": {
			"webhooks: [{name: a, url: 'https://u:p4ss@pager.example', secret_file: s}]",
			"contains a user or a password",
		},
		"duplicate name": {"webhooks: [{name: a, url: 'https://x.example', secret_file: s}, {name: a, url: " +
			"'https://y.example', secret_file: s}]", "used twice"},
		"webhook without secret": {"webhooks: [{name: a, url: 'https://x.example'}]", "`secret_file` is missing"},
		"unknown key":            {"webhooks: [{name: a, uri: 'https://x.example'}]", "unknown key `uri`"},
		"server without port":    {"email: {smtp: smtp.example.com, " + mail + "}", "use HOST:PORT"},
		"no recipients":          {"email: {smtp: 'x:25', from: s@example.com}", "`email.to` is missing"},
		"two addresses in one": {
			"email: {smtp: 'x:25', from: s@example.com, to: ['a@example.com, b@example.com']}",
			"`email.to`: invalid address",
		},
		"header injection": {"email: {smtp: 'x:25', from: \"s@example.com\\r\\nBcc: e@example.com\", to: " +
			"[a@example.com]}", "`email.from`"},
		"mail without TLS": {
			"email: {smtp: 'smtp.example.com:25', tls: none, " + mail + "}",
			"is allowed only for a server on this machine",
		},
		"password without TLS": {"email: {smtp: '127.0.0.1:25', tls: none, username: u, password_file: p, " + mail +
			"}", "without a password"},
		"unknown TLS mode": {"email: {smtp: 'x:25', tls: ssl, " + mail + "}", "unknown mode `ssl`"},
		"user without password file": {
			"email: {smtp: 'x:25', username: u, " + mail + "}",
			"`username` or `password_file` is missing",
		},
		"unknown tracker": {"ticket: {kind: bugzilla, project: x, token_file: t}", "unknown tracker `bugzilla`"},
		"path traversal in project": {
			"ticket: {kind: github, project: 'acme/../../user', token_file: t}",
			"invalid project `acme/../../user` for github",
		},
		"JQL in project": {"ticket: {kind: jira, url: 'https://x.example', user: u, project: 'A\" OR 1', " +
			"token_file: t}", "for jira"},
		"Jira without URL": {
			"ticket: {kind: jira, user: u, project: OPS, token_file: t}",
			"`ticket.url` is missing",
		},
		"Jira without user": {
			"ticket: {kind: jira, url: 'https://x.example', project: OPS, token_file: t}",
			"`ticket.user` is missing",
		},
		"no token": {"ticket: {kind: github, project: acme/x}", "`ticket.token_file` is missing"},
		"token over http": {
			"ticket: {kind: github, url: 'http://ghe.example', project: acme/x, token_file: t}",
			"http is allowed only to this machine",
		},
		"Jira key for GitHub": {
			"ticket: {kind: github, project: acme/x, token_file: t, issue_type: Bug}",
			"are allowed only for Jira",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := config.Parse("c", []byte(c.text))
			require.ErrorContains(t, problems.Err(), c.want)
			require.NotContains(t, problems.Err().Error(), "p4ss")
		})
	}
	_, problems := config.Parse("c", []byte("ticket: {kind: github, projct: acme/x}"))
	unknown := problems[slices.IndexFunc(problems, func(p diagnostic.Diagnostic) bool { return p.Code == "unknown-key" })]
	require.Equal(t, "did you mean `project`?", unknown.Hint)
}
