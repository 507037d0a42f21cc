package worker

import (
	"fmt"

	"stanch/activities"
	"stanch/activities/notify"
	"stanch/activities/ticket"
	"stanch/worker/config"
)

// Outside is where word of incidents goes besides the chat. Its zero value goes nowhere.
type Outside struct {
	Webhooks map[string]notify.WebhookReceiver
	Mail     *notify.SMTPServer
	Tracker  ticket.Tracker
	Labels   []string
	Records  ticket.ManifestReader
	Head     func(incident string) string
	At       func(point string)
}

func (o Outside) actions() []activities.Action {
	return []activities.Action{
		&notify.WebhookAction{Receivers: o.Webhooks, ManifestHead: o.Head},
		&notify.EmailAction{Server: o.Mail, ManifestHead: o.Head},
		&ticket.CreateAction{Tracker: o.Tracker, Labels: o.Labels, Manifests: o.Records, Failpoint: o.At},
	}
}

// OpenOutside reads the secrets of the configuration's webhooks, mail server and tracker. It calls none of them: who is
// away holds no start up.
func OpenOutside(c *config.Config) (Outside, error) {
	o := Outside{Webhooks: map[string]notify.WebhookReceiver{}}
	for _, hook := range c.Webhooks {
		where := "webhook " + hook.Name + ": secret_file"
		secret, err := secretFile(where, hook.SecretFile)
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
		host, port, err := e.Server()
		if err != nil {
			return o, fmt.Errorf("email.smtp: %w", err)
		}
		o.Mail = &notify.SMTPServer{Host: host, Port: port, TLSMode: notify.MailTLSMode(e.TLS), FromAddress: e.From, Recipients: e.To, Username: e.Username}
		if e.PasswordFile != "" {
			if o.Mail.Password, err = secretFile("email.password_file", e.PasswordFile); err != nil {
				return o, err
			}
		}
	}
	if t := c.Ticket; t != nil {
		token, err := secretFile("ticket.token_file", t.TokenFile)
		if err != nil {
			return o, err
		}
		o.Labels = t.Labels
		at := ticket.TrackerConfig{URL: t.Base(), Project: t.Project, Token: token, JiraUser: t.User, JiraIssueType: t.IssueType}
		switch t.Kind {
		case config.TicketGitHub:
			o.Tracker = ticket.NewGitHub(at)
		case config.TicketGitLab:
			o.Tracker = ticket.NewGitLab(at)
		case config.TicketJira:
			o.Tracker = ticket.NewJira(at)
		}
	}
	return o, nil
}

// records is the worker's evidence, which is known later than the actions that read it.
type records struct{ w *Worker }

func (r records) Manifest(incident string) ([]activities.ManifestLine, []activities.IntegrityFinding, error) {
	return r.w.Set.Evidence.Manifest(incident, r.w.Authority.Keys()) //nolint:wrapcheck // it names the manifest
}
