package actions_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities/notify"
	"stanch/activities/ticket"
	"stanch/playbooks"
	"stanch/testenv/steprunner"
	stand "stanch/testenv/ticket"
	"stanch/testenv/webhook"
	"stanch/worker/actions"
	"stanch/worker/config"
)

func writeSecretFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
	return file
}

// From the text of a configuration to a signed request and a ticket.
func TestConfigurationSetsUpNotificationsAndTickets(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	pager, tracker := webhook.Start(t, secret), stand.StartGitHub(t)
	c, problems := config.Parse("c", []byte("webhooks: [{name: pager, url: '"+pager.URL+"', secret_file: "+
		writeSecretFile(t, secret)+"}]\n"+
		"ticket: {kind: github, url: '"+tracker.URL+"', project: acme/incidents, token_file: "+writeSecretFile(t,
		stand.Token)+", labels: [security]}\n"))
	require.NoError(t, problems.Err())
	outside, err := actions.OpenExternalServices(c)
	require.NoError(t, err)
	for _, a := range actions.All(actions.Deps{ExternalServices: outside}) {
		switch a := a.(type) {
		case *notify.WebhookAction:
			require.NoError(t, steprunner.Run(t, a, steprunner.NewIncidentRef(),
				notify.WebhookParams{ReceiverName: "pager"}).Err)
		case *ticket.CreateAction:
			require.NoError(t, steprunner.Run(t, a, steprunner.NewIncidentRef(), ticket.CreateParams{}).Err)
		}
	}
	require.Len(t, pager.Accepted(), 1)
	require.Len(t, tracker.Issues(), 1)
	require.Equal(t, []string{"stanch-" + steprunner.IncidentID, "security"}, tracker.Issues()[0].Labels)
}

func TestInvalidSecretFailsStartWithoutDisclosure(t *testing.T) {
	for name, c := range map[string]struct {
		text, want string
	}{
		"a weak key": {"webhooks: [{name: a, url: 'https://x.example', secret_file: " + writeSecretFile(t, "hunter2") +
			"}]", "webhook a: secret_file"},
		"no token": {"ticket: {kind: github, project: acme/x, token_file: /nowhere}", "ticket.token_file"},
		"no password": {"email: {smtp: 'x:25', from: a@example.com, to: [b@example.com], username: u, password_file: " +
			writeSecretFile(t, "") + "}", "email.password_file"},
		"a missing file": {"webhooks: [{name: a, url: 'https://x.example', secret_file: /}]", "webhook a: secret_file"},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, problems := config.Parse("c", []byte(c.text))
			require.NoError(t, problems.Err())
			_, err := actions.OpenExternalServices(parsed)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestPlaybookCanUseTicketOutputs(t *testing.T) {
	load := func(steps string) (messages []string) {
		_, problems := playbooks.LoadPlaybook("p.yaml",
			[]byte("playbook: p\ndescription: x\nmatch: { objective: crypto-mining }\nsteps:\n"+steps), actions.Catalog())
		for _, p := range problems {
			messages = append(messages, p.Message)
		}
		return messages
	}
	require.Empty(
		t,
		load(
			"  - ticket: create\n    id: t\n    with: { title: \"${incident.summary}\", labels: [\"${incident.workload.name}\"] }\n"+
				"  - notify: email\n    with: { to: [oncall@example.com], text: \"${t.url}\" }\n  - notify: webhook\n    if: t.created\n    with: { name: pager, text: \"${t.id}\" }\n",
		),
	)
	require.Contains(t, strings.Join(load("  - notify: webhook\n"), "\n"), "`webhook` requires the parameter `name`")
	require.NotEmpty(t, load("  - notify: webhook\n    with: { name: pager, url: 'https://evil.example' }\n"),
		"a playbook cannot set a URL")
	require.NotEmpty(t, load("  - ticket: webhook\n    with: { name: pager }\n"))
}
