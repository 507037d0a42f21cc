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
	"stanch/activities/httpclient"
	"stanch/playbooks"
	"stanch/sensors/redact"
)

// EmailAction is `notify: email`: plain text to recipients from the configuration.
type EmailAction struct {
	Server *SMTPServer // nil: no mail server is configured
	// ManifestHead returns the last line's hash of an incident's manifest. With nil, mails do not include it.
	ManifestHead func(incident string) string
}

// SMTPServer is a mail server.
type SMTPServer struct {
	Host        string
	Port        int
	TLSMode     MailTLSMode
	FromAddress string
	Recipients  []string
	Username    string // "" disables authentication
	Password    string
	RootCAs     *x509.CertPool // nil means the system's
}

// MailTLSMode is how the connection is encrypted.
type MailTLSMode string

// The TLS modes. MailNoTLS is only for a server on this machine.
const (
	MailStartTLS    MailTLSMode = "starttls"
	MailImplicitTLS MailTLSMode = "implicit"
	MailNoTLS       MailTLSMode = "none"
)

var _ activities.Observer = (*EmailAction)(nil)

// EmailParams are the parameters of email.
type EmailParams struct {
	Recipients []string `json:"to,omitempty" doc:"recipients from email.to in stanch.yaml; default all"`
	Text       string   `json:"text,omitempty" doc:"the text; default the incident's summary"`
}

// Spec returns the spec of email.
func (*EmailAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "email", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:     "Send plain text to configured recipients.", Params: EmailParams{}, AttemptTimeout: notifyTimeout,
	}
}

// Observe sends the mail.
func (a *EmailAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.DecodeParams[EmailParams](r)
	if err != nil {
		return none, err
	}
	if a.Server == nil {
		return none, activities.Refusef("email is not configured; add `email:` to stanch.yaml")
	}
	to := a.Server.Recipients
	if len(params.Recipients) > 0 {
		to = params.Recipients
	}
	for _, address := range to {
		if !slices.Contains(a.Server.Recipients, address) {
			return none, activities.Refusef("%q is not one of the recipients under `email.to` in stanch.yaml",
				httpclient.SanitizeLine(address, 80))
		}
	}
	id, at := httpclient.IdempotencyKey(ctx, r, strings.Join(to, ","))
	m := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := errors.Join(m.From(a.Server.FromAddress), m.To(to...)); err != nil {
		return none, activities.Refusef("invalid address under `email` in stanch.yaml: %v", err)
	}
	domain := a.Server.FromAddress[strings.LastIndexByte(a.Server.FromAddress, '@')+1:]
	m.SetMessageIDWithValue(id + "@" + strings.Trim(domain, "> "))
	m.SetDateWithValue(at)
	m.SetGenHeader("Auto-Submitted", "auto-generated") // suppresses automatic replies
	m.Subject(httpclient.SanitizeLine(r.IncidentRef.ID+": "+r.IncidentRef.Workload.String()+" in "+r.IncidentRef.Cluster,
		150))
	m.SetBodyString(mail.TypeTextPlain, mailBody(r.IncidentRef, params.Text,
		manifestHead(a.ManifestHead, r.IncidentRef.ID)))
	return none, a.Server.send(ctx, m)
}

// mailBody returns the mail's text. Text that may be attacker-controlled is prefixed with a bar, so that it cannot look
// like Stanch's.
func mailBody(in activities.IncidentRef, text, head string) string {
	var b strings.Builder
	quote := func(title, text string) {
		if text = httpclient.SanitizeText(text, maxTextRunes); text != "" {
			fmt.Fprintf(&b, "%s\n\n| %s\n\n", title, strings.ReplaceAll(text, "\n", "\n| "))
		}
	}
	quote("Message:", text)
	quote("Summary:", in.Summary)
	for _, f := range [][2]string{
		{"Incident", in.ID},
		{"Cluster", in.Cluster},
		{"Scope", in.Scope},
		{"Workload", in.Workload.String()},
		{"Image", in.Workload.Image},
		{"Confidence", fmt.Sprintf("%.2f", in.Confidence)},
		{"Opened", in.Opened.UTC().Format(time.RFC3339)},
		{"Evidence head", head},
	} {
		if f[1] != "" {
			fmt.Fprintf(&b, "%-15s %s\n", f[0]+":", httpclient.SanitizeLine(f[1], 300))
		}
	}
	fmt.Fprintf(&b, "\nstanch incidents %s\n", httpclient.SanitizeLine(in.ID, 60))
	return b.String()
}

// mailTimeout limits one attempt.
const mailTimeout = 10 * time.Second

// send delivers one message.
func (s *SMTPServer) send(ctx context.Context, m *mail.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, mailTimeout)
	defer cancel()
	options := []mail.Option{
		mail.WithTimeout(mailTimeout), mail.WithTLSConfig(&tls.Config{
			ServerName: s.Host, MinVersion: tls.VersionTLS12,
			RootCAs: s.RootCAs,
		}),
	}
	switch {
	case s.TLSMode == MailImplicitTLS:
		options = append(options, mail.WithSSL())
	case s.TLSMode == MailNoTLS && isLoopback(s.Host) && s.Username == "":
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	case s.TLSMode == MailNoTLS:
		return activities.Refusef("configure email: `tls: none` is allowed only for a server on this machine, without a password")
	default:
		options = append(options, mail.WithTLSPolicy(mail.TLSMandatory))
	}
	if s.Username != "" {
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(s.Username),
			mail.WithPassword(s.Password))
	}
	client, err := mail.NewClient(s.Host, append(options, mail.WithPort(s.Port))...)
	if err != nil {
		return activities.Refusef("send the email: %s", s.redactError(err))
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
		return activities.Refusef("the mail server rejected the message: %s", s.redactError(err))
	}
	return fmt.Errorf("send mail: %s", s.redactError(err))
}

func (s *SMTPServer) redactError(err error) string {
	text := err.Error()
	if s.Password != "" {
		text = strings.ReplaceAll(text, s.Password, redact.Placeholder)
	}
	return httpclient.SanitizeLine(text, 300)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
