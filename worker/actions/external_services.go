package actions

import (
	"fmt"

	"stanch/activities"
	"stanch/activities/notify"
	"stanch/activities/ticket"
	"stanch/worker/config"
)

// ExternalServices are the webhooks, the mail server and the tracker. The zero value has none.
type ExternalServices struct {
	Webhooks     map[string]notify.WebhookReceiver
	SMTPServer   *notify.SMTPServer
	Tracker      ticket.Tracker
	TicketLabels []string
	Manifests    ticket.ManifestReader
	ManifestHead func(incident string) string
	Failpoint    func(point string)
}

func (o ExternalServices) newActions() []activities.Action {
	return []activities.Action{
		&notify.WebhookAction{Receivers: o.Webhooks, ManifestHead: o.ManifestHead},
		&notify.EmailAction{Server: o.SMTPServer, ManifestHead: o.ManifestHead},
		&ticket.CreateAction{Tracker: o.Tracker, Labels: o.TicketLabels, Manifests: o.Manifests, Failpoint: o.Failpoint},
	}
}

// OpenExternalServices reads the secrets of the configured webhooks, mail server and tracker. It connects to none of
// them, so that an outage does not delay the start.
func OpenExternalServices(c *config.Config) (ExternalServices, error) {
	o := ExternalServices{Webhooks: map[string]notify.WebhookReceiver{}}
	for _, hook := range c.Webhooks {
		where := "webhook " + hook.Name + ": secret_file"
		secret, err := config.ReadSecretFile(where, hook.SecretFile)
		if err != nil {
			return o, err
		}
		key, err := notify.ParseSigningKey(secret)
		if err != nil {
			return o, fmt.Errorf("%s: %s: %w", where, hook.SecretFile, err)
		}
		o.Webhooks[hook.Name] = notify.WebhookReceiver{URL: hook.URL, SigningKey: key}
	}
	if e := c.Email; e != nil {
		host, port, err := e.SMTPHostPort()
		if err != nil {
			return o, fmt.Errorf("email.smtp: %w", err)
		}
		o.SMTPServer = &notify.SMTPServer{
			Host: host, Port: port, TLSMode: notify.MailTLSMode(e.TLSMode),
			FromAddress: e.FromAddress, Recipients: e.Recipients, Username: e.Username,
		}
		if e.PasswordFile != "" {
			if o.SMTPServer.Password, err = config.ReadSecretFile("email.password_file", e.PasswordFile); err != nil {
				return o, err
			}
		}
	}
	if t := c.Ticket; t != nil {
		token, err := config.ReadSecretFile("ticket.token_file", t.TokenFile)
		if err != nil {
			return o, err
		}
		o.TicketLabels = t.Labels
		at := ticket.TrackerConfig{
			URL: t.APIBaseURL(), Project: t.Project, Token: token, JiraUser: t.User,
			JiraIssueType: t.IssueType,
		}
		switch t.Kind {
		case config.TrackerGitHub:
			o.Tracker = ticket.NewGitHub(at)
		case config.TrackerGitLab:
			o.Tracker = ticket.NewGitLab(at)
		case config.TrackerJira:
			o.Tracker = ticket.NewJira(at)
		}
	}
	return o, nil
}
