package notify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"stanch/activities"
	"stanch/activities/outside"
	"stanch/playbooks"
	"stanch/sensors/redact"
)

// Email is `notify: email`: plain text to recipients that the configuration names.
type Email struct {
	Server *MailServer // nil: none is configured
	// Head gives the head of an incident's manifest. Nil gives none.
	Head func(incident string) string
}

// MailServer takes mail by SMTP.
type MailServer struct {
	Host     string
	Port     int
	TLS      MailTLS
	From     string
	To       []string
	Username string // "": nobody logs in
	Password string
	Roots    *x509.CertPool // nil is the system's
}

// MailTLS is how the connection is protected.
type MailTLS string

// The ways. MailPlain is for a server on this machine only.
const (
	MailStartTLS MailTLS = "starttls"
	MailImplicit MailTLS = "implicit"
	MailPlain    MailTLS = "none"
)

var _ activities.Observer = (*Email)(nil)

// EmailParams are the parameters of email.
type EmailParams struct {
	To   []string `json:"to,omitempty" doc:"who gets it, out of email.to in stanch.yaml; all of them if not given"`
	Text string   `json:"text,omitempty" doc:"what to say; the incident's summary if not given"`
}

// Spec declares email.
func (*Email) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "email", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve, Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc: "Send plain text to configured recipients.", Params: EmailParams{}, AttemptTimeout: patience,
	}
}

// Observe sends the mail.
func (a *Email) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.Params[EmailParams](r)
	if err != nil {
		return none, err
	}
	if a.Server == nil {
		return none, activities.Refuse("no email is configured: add `email:` to stanch.yaml")
	}
	to := a.Server.To
	if len(params.To) > 0 {
		to = params.To
	}
	for _, address := range to {
		if !slices.Contains(a.Server.To, address) {
			return none, activities.Refuse("%q is not one of the recipients under `email.to` in stanch.yaml", outside.Line(address, 80))
		}
	}
	id, at := outside.Once(ctx, r, strings.Join(to, ","))
	m := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := errors.Join(m.From(a.Server.From), m.To(to...)); err != nil {
		return none, activities.Refuse("an address under `email` in stanch.yaml is none: %v", err)
	}
	domain := a.Server.From[strings.LastIndexByte(a.Server.From, '@')+1:]
	m.SetMessageIDWithValue(id + "@" + strings.Trim(domain, "> "))
	m.SetDateWithValue(at)
	m.SetGenHeader("Auto-Submitted", "auto-generated") // no answer by a machine
	m.Subject(outside.Line(r.Incident.ID+": "+r.Incident.Workload.String()+" in "+r.Incident.Cluster, 150))
	m.SetBodyString(mail.TypeTextPlain, body(r.Incident, params.Text, head(a.Head, r.Incident.ID)))
	return none, a.Server.send(ctx, m)
}

// body is the mail's text. What may be an attacker's stands behind a bar, so that none of it looks like Stanch's own words.
func body(in activities.Brief, text, head string) string {
	var b strings.Builder
	quote := func(title, text string) {
		if text = outside.Text(text, maxText); text != "" {
			fmt.Fprintf(&b, "%s\n\n| %s\n\n", title, strings.ReplaceAll(text, "\n", "\n| "))
		}
	}
	quote("Stanch says:", text)
	quote("What happened:", in.Summary)
	for _, f := range [][2]string{
		{"Incident", in.ID},
		{"Cluster", in.Cluster},
		{"Scope", in.Scope},
		{"Workload", in.Workload.String()},
		{"Image", in.Workload.Image},
		{"Confidence", fmt.Sprintf("%.2f", in.Confidence)},
		{"Opened", in.Opened.UTC().Format(time.RFC3339)},
		{"Evidence up to", head},
	} {
		if f[1] != "" {
			fmt.Fprintf(&b, "%-15s %s\n", f[0]+":", outside.Line(f[1], 300))
		}
	}
	fmt.Fprintf(&b, "\nstanch incidents %s\n", outside.Line(in.ID, 60))
	return b.String()
}

// mailLimit bounds one attempt.
const mailLimit = 10 * time.Second

// send delivers one message.
func (s *MailServer) send(ctx context.Context, m *mail.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, mailLimit)
	defer cancel()
	options := []mail.Option{
		mail.WithTimeout(mailLimit), mail.WithTLSConfig(&tls.Config{ServerName: s.Host, MinVersion: tls.VersionTLS12, RootCAs: s.Roots}),
	}
	switch {
	case s.TLS == MailImplicit:
		options = append(options, mail.WithSSL())
	case s.TLS == MailPlain && loopback(s.Host) && s.Username == "":
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	case s.TLS == MailPlain:
		return activities.Refuse("email: `tls: none` is for a server on this machine without a password")
	default:
		options = append(options, mail.WithTLSPolicy(mail.TLSMandatory))
	}
	if s.Username != "" {
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(s.Username), mail.WithPassword(s.Password))
	}
	client, err := mail.NewClient(s.Host, append(options, mail.WithPort(s.Port))...)
	if err != nil {
		return activities.Refuse("email: %s", s.scrub(err))
	}
	err = client.DialAndSendWithContext(ctx, m)
	if err == nil {
		return nil
	}
	var answer *textproto.Error
	var sending *mail.SendError
	code := 0
	switch {
	case errors.As(err, &answer):
		code = answer.Code
	case errors.As(err, &sending):
		code = sending.ErrorCode()
	}
	if code/100 == 5 {
		return activities.Refuse("the mail server will not take it: %s", s.scrub(err))
	}
	return fmt.Errorf("send mail: %s", s.scrub(err)) //nolint:errorlint // its text may hold the password
}

func (s *MailServer) scrub(err error) string {
	text := err.Error()
	if s.Password != "" {
		text = strings.ReplaceAll(text, s.Password, redact.Placeholder)
	}
	return outside.Line(text, 300)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
