package notify_test

import (
	"bufio"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities/notify"
	"stanch/playbooks"
	server "stanch/testenv/mail"
	"stanch/testenv/steprunner"
)

func newEmailAction(s *server.Server, with notify.MailTLSMode) *notify.EmailAction {
	return &notify.EmailAction{ManifestHead: func(string) string { return "abc123" }, Server: &notify.SMTPServer{
		Host: s.Host, Port: s.Port, TLSMode: with, FromAddress: "Stanch <stanch@example.com>",
		Recipients: []string{"oncall@example.com", "bob@example.com"},
		Username:   server.User, Password: server.Password, RootCAs: s.Roots,
	}}
}

// parseMail parses a message as a mail program does.
func parseMail(t *testing.T, m server.Message) (header mail.Header, subject, body string) {
	t.Helper()
	parsed, err := mail.ReadMessage(strings.NewReader(m.Raw))
	require.NoError(t, err)
	require.Equal(t, "text/plain; charset=UTF-8", parsed.Header.Get("Content-Type"))
	require.Equal(t, "quoted-printable", parsed.Header.Get("Content-Transfer-Encoding"))
	var b strings.Builder
	lines := bufio.NewScanner(quotedprintable.NewReader(parsed.Body))
	for lines.Scan() {
		b.WriteString(lines.Text() + "\n")
	}
	require.NoError(t, lines.Err())
	subject, err = new(mime.WordDecoder).DecodeHeader(parsed.Header.Get("Subject"))
	require.NoError(t, err)
	return parsed.Header, subject, b.String()
}

func TestMailIsSentEncryptedAndAuthenticated(t *testing.T) {
	for name, c := range map[string]struct {
		mode server.TLSMode
		with notify.MailTLSMode
	}{"STARTTLS": {server.ModeStartTLS, notify.MailStartTLS}, "TLS from the start": {
		server.ModeImplicitTLS,
		notify.MailImplicitTLS,
	}} {
		t.Run(name, func(t *testing.T) {
			s := server.Start(t, c.mode)
			ran := steprunner.Run(t, newEmailAction(s, c.with), steprunner.NewIncidentRef(),
				notify.EmailParams{Text: "isolated"})
			require.NoError(t, ran.Err)
			require.Equal(t, playbooks.OutcomeSucceeded, ran.Outcome, ran.Reason)
			require.Len(t, s.Messages(), 1)
			m := s.Messages()[0]
			require.True(t, m.Encrypted)
			require.Equal(t, server.User, m.Login)
			require.Equal(t, []string{"oncall@example.com", "bob@example.com"}, m.To)
			header, subject, body := parseMail(t, m)
			require.Equal(t, steprunner.IncidentID+": shop/Deployment/web in test", subject)
			require.Equal(t, "auto-generated", header.Get("Auto-Submitted"))
			require.Contains(t, body, "| isolated\n")
			require.Contains(t, body, "| A miner was started in shop/Deployment/web.\n")
			require.Contains(t, body, "Evidence head:  abc123\n")
		})
	}
}

func TestMailIsNeverSentUnencrypted(t *testing.T) {
	s := server.Start(t, server.ModePlaintext) // it does not offer STARTTLS
	ran := steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), steprunner.NewIncidentRef(), notify.EmailParams{})
	require.Error(t, ran.Err)
	require.Empty(t, s.Messages())

	e := newEmailAction(s, notify.MailStartTLS)
	e.Server.Username = "" // no authentication, which would fail anyway
	require.ErrorContains(t, steprunner.Run(t, e, steprunner.NewIncidentRef(), notify.EmailParams{}).Err, "STARTTLS")
	require.Empty(t, s.Messages())

	e = newEmailAction(s, notify.MailNoTLS)
	ran = steprunner.Run(t, e, steprunner.NewIncidentRef(), notify.EmailParams{})
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome, "a password in the clear")
	e.Server.Username, e.Server.Host = "", "mail.example.com"
	ran = steprunner.Run(t, e, steprunner.NewIncidentRef(), notify.EmailParams{})
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome, "another machine")
	e.Server.Host = s.Host
	require.NoError(t, steprunner.Run(t, e, steprunner.NewIncidentRef(), notify.EmailParams{}).Err)
	require.Len(t, s.Messages(), 1, "a server on this machine")
}

func TestServerWithForgedCertificateGetsNoMail(t *testing.T) {
	s, other := server.Start(t, server.ModeStartTLS), server.Start(t, server.ModeStartTLS)
	e := newEmailAction(s, notify.MailStartTLS)
	e.Server.RootCAs = other.Roots
	require.ErrorContains(t, steprunner.Run(t, e, steprunner.NewIncidentRef(), notify.EmailParams{}).Err, "certificate")
	require.Empty(t, s.Messages())
}

func TestRetriedMailKeepsItsMessageID(t *testing.T) {
	s := server.Start(t, server.ModeStartTLS)
	require.NoError(t, steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), steprunner.NewIncidentRef(),
		notify.EmailParams{Text: "x"}).Err)
	s.FailNext(451, "try again")
	require.NoError(t, steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), steprunner.NewIncidentRef(),
		notify.EmailParams{Text: "x"}).Err)
	messages := s.Messages()
	require.Len(t, messages, 2)
	first, _, _ := parseMail(t, messages[0])
	second, _, _ := parseMail(t, messages[1])
	require.Regexp(t, `^<stanch_[0-9a-f]{32}@example\.com>$`, first.Get("Message-Id"))
	// The two runs are two attempts of one activity: the same workflow and activity, sent at different times.
	require.Equal(t, first.Get("Message-Id"), second.Get("Message-Id"))
}

func TestMailHeadersCannotBeInjected(t *testing.T) {
	s := server.Start(t, server.ModeStartTLS)
	in := steprunner.NewIncidentRef()
	in.Workload.Name = "web\r\nBcc: eve@evil.example\r\n\r\n<b>hi</b>"
	in.Cluster = "test\nX-Evil: 1"
	in.Summary = "a process\r\n.\r\nMAIL FROM:<eve@evil.example>\r\nIncident: INC-FORGED\r\n--boundary\r\nContent-Type: text/html\r\n\r\n<script>\u202eevil</script>"
	require.NoError(t, steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), in,
		notify.EmailParams{Text: "ls\r\n\r\nConfidence: 0.00"}).Err)
	require.Len(t, s.Messages(), 1)
	m := s.Messages()[0]
	require.Equal(t, []string{"oncall@example.com", "bob@example.com"}, m.To)
	header, subject, body := parseMail(t, m)
	for _, name := range []string{"Bcc", "X-Evil", "Cc"} {
		require.Empty(t, header[textproto.CanonicalMIMEHeaderKey(name)])
	}
	require.Contains(t, subject, "Bcc: eve@evil.example <b>hi</b> in test X-Evil: 1")
	require.Contains(t, body, "| MAIL FROM:<eve@evil.example>\n| Incident: INC-FORGED\n")
	require.Contains(t, body, "| <script>·evil</script>\n")
	require.NotContains(t, body, "\nIncident: INC-FORGED")
	require.NotContains(t, body, "\nConfidence: 0.00")
	require.Contains(t, body, "\nConfidence:     0.93\n")
}

func TestOnlyConfiguredRecipientsGetMail(t *testing.T) {
	s := server.Start(t, server.ModeStartTLS)
	for _, to := range []string{
		"eve@evil.example", "bob@example.com\r\nBcc: eve@evil.example",
		"bob@example.com, eve@evil.example",
	} {
		ran := steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), steprunner.NewIncidentRef(),
			notify.EmailParams{Recipients: []string{"bob@example.com", to}})
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, "is not one of the recipients")
	}
	require.Empty(t, s.Messages())
	require.NoError(t, steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), steprunner.NewIncidentRef(),
		notify.EmailParams{Recipients: []string{"bob@example.com"}}).Err)
	require.Equal(t, []string{"bob@example.com"}, s.Messages()[0].To)
	ran := steprunner.Run(t, &notify.EmailAction{}, steprunner.NewIncidentRef(), notify.EmailParams{})
	require.Equal(t, "email is not configured; add `email:` to stanch.yaml", ran.Reason)
}

func TestPermanentMailErrorIsRefused(t *testing.T) {
	s := server.Start(t, server.ModeStartTLS)
	s.RejectRecipient("bob@example.com")
	ran := steprunner.Run(t, newEmailAction(s, notify.MailStartTLS), steprunner.NewIncidentRef(), notify.EmailParams{})
	require.NoError(t, ran.Err)
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
	require.Contains(t, ran.Reason, "no such mailbox")
}

// The server repeats the password that it rejected.
func TestMailErrorsOmitThePassword(t *testing.T) {
	s := server.Start(t, server.ModeStartTLS)
	e := newEmailAction(s, notify.MailStartTLS)
	e.Server.Password = "Tr0ub4dor-and-3"
	ran := steprunner.Run(t, e, steprunner.NewIncidentRef(), notify.EmailParams{})
	said := ran.Reason
	if ran.Err != nil {
		said += ran.Err.Error()
	}
	require.Contains(t, said, "no such login")
	require.NotContains(t, said, e.Server.Password)
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
}
