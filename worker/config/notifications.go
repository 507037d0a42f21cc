package config

import (
	"cmp"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"stanch/sensors/yamlnode"
)

// Webhook is a receiver of `notify: webhook`.
type Webhook struct {
	Name       string `yaml:"name" json:"name" jsonschema:"required"`
	URL        string `yaml:"url" json:"url" jsonschema:"required,description=https; http only to this machine"`
	SecretFile string `yaml:"secret_file" json:"secret_file" jsonschema:"required,description=a file with the signing key (whsec_…) in the Standard Webhooks format"`
}

// Email is the mail server and the recipients of `notify: email`.
type Email struct {
	SMTPAddress  string   `yaml:"smtp" json:"smtp" jsonschema:"required,description=host:port"`
	FromAddress  string   `yaml:"from" json:"from" jsonschema:"required"`
	Recipients   []string `yaml:"to" json:"to" jsonschema:"required,description=the only allowed recipients; a step can choose among them"`
	TLSMode      string   `yaml:"tls" json:"tls,omitempty" jsonschema:"enum=starttls,enum=implicit,enum=none,description=default starttls; none only to this machine"`
	Username     string   `yaml:"username" json:"username,omitempty"`
	PasswordFile string   `yaml:"password_file" json:"password_file,omitempty"`
}

// The kinds of trackers.
const (
	TrackerGitHub = "github"
	TrackerGitLab = "gitlab"
	TrackerJira   = "jira"
)

// TicketTracker is the tracker of `ticket: create`.
type TicketTracker struct {
	Kind      string   `yaml:"kind" json:"kind" jsonschema:"required,enum=github,enum=gitlab,enum=jira"`
	URL       string   `yaml:"url" json:"url,omitempty" jsonschema:"description=the API's URL; default https://api.github.com or https://gitlab.com"`
	Project   string   `yaml:"project" json:"project" jsonschema:"required,description=OWNER/NAME in GitHub; a path or a number in GitLab; a key in Jira"`
	TokenFile string   `yaml:"token_file" json:"token_file" jsonschema:"required"`
	User      string   `yaml:"user" json:"user,omitempty" jsonschema:"description=the account of the token; Jira only"`
	IssueType string   `yaml:"issue_type" json:"issue_type,omitempty" jsonschema:"description=Jira only; default Task"`
	Labels    []string `yaml:"labels" json:"labels,omitempty"`
}

// APIBaseURL returns the address of the tracker's API.
func (t *TicketTracker) APIBaseURL() string {
	return cmp.Or(t.URL, map[string]string{
		TrackerGitHub: "https://api.github.com",
		TrackerGitLab: "https://gitlab.com",
	}[t.Kind])
}

// SMTPHostPort returns the mail server's host and port.
func (e *Email) SMTPHostPort() (host string, port int, err error) {
	host, text, err := net.SplitHostPort(e.SMTPAddress)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || host == "" || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("invalid address `%s`; use HOST:PORT", e.SMTPAddress)
	}
	return host, port, nil
}

func (p *configParser) checkNotifications(c *Config) {
	seen := map[string]bool{}
	for i, w := range c.Webhooks {
		where := "webhook " + w.Name
		if w.Name == "" || seen[w.Name] {
			p.Errorf(p.at("webhooks", i, "name"), "name", "", "the webhook name `%s` is empty or used twice", w.Name)
		}
		seen[w.Name] = true
		p.checkURL(p.at("webhooks", i, "url"), where, w.URL)
		if w.SecretFile == "" {
			p.Errorf(p.at("webhooks", i, "secret_file"), "required",
				"`echo whsec_$(openssl rand -base64 32) > FILE` creates a key",
				"%s: `secret_file` is missing", where)
		}
	}
	p.checkEmail(c.Email)
	p.checkTicket(c.Ticket)
}

// checkURL checks an address that Stanch calls. Messages do not contain the address, because some addresses are
// secrets.
func (p *configParser) checkURL(at yamlnode.Position, where, address string) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		p.Errorf(at, "url", "use a URL such as https://example.com/path", "%s: `url` is not an https URL", where)
	case u.User != nil:
		p.Errorf(at, "url", "put secrets into files", "%s: `url` contains a user or a password", where)
	case u.Fragment != "":
		p.Errorf(at, "url", "remove everything from the # onward", "%s: `url` has a fragment", where)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		p.Errorf(at, "url", "use https", "%s: http is allowed only to this machine", where)
	}
}

// isSingleAddress reports whether a text is exactly one mail address in one line.
func isSingleAddress(text string) bool {
	_, err := mail.ParseAddress(text)
	return err == nil && !strings.ContainsAny(text, "\r\n")
}

func (p *configParser) checkEmail(e *Email) {
	if e == nil {
		return
	}
	host, _, err := e.SMTPHostPort()
	if err != nil {
		p.Errorf(p.at("email", "smtp"), "address", "use an address such as smtp.example.com:587", "`email.smtp`: %v", err)
	}
	if !isSingleAddress(e.FromAddress) {
		p.Errorf(p.at("email", "from"), "address", "use an address such as stanch@example.com",
			"`email.from`: invalid address `%s`",
			e.FromAddress)
	}
	if len(e.Recipients) == 0 {
		p.Errorf(p.at("email", "to"), "required", "such as `to: [oncall@example.com]`", "`email.to` is missing")
	}
	for n, to := range e.Recipients {
		if !isSingleAddress(to) {
			p.Errorf(p.at("email", "to", n), "address", "such as oncall@example.com", "`email.to`: invalid address `%s`", to)
		}
	}
	switch e.TLSMode {
	case "", "starttls", "implicit":
	case "none":
		if err == nil && !isLoopback(host) || e.Username != "" {
			p.Errorf(p.at("email", "tls"), "tls", "use starttls or implicit",
				"`email.tls`: `none` is allowed only for a server on this machine, without a password")
		}
	default:
		p.Errorf(p.at("email", "tls"), "tls", "use starttls, implicit or none", "`email.tls`: unknown mode `%s`", e.TLSMode)
	}
	if (e.Username == "") != (e.PasswordFile == "") {
		p.Errorf(p.at("email", "username"), "required", "specify both or neither",
			"`email`: `username` or `password_file` is missing")
	}
}

// projectPatterns match valid projects, so that a project cannot select another path of the API.
var projectPatterns = map[string]*regexp.Regexp{
	TrackerGitHub: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$`),
	TrackerGitLab: regexp.MustCompile(`^([0-9]+|[\w][\w.-]*(/[\w][\w.-]*)+)$`),
	TrackerJira:   regexp.MustCompile(`^[A-Z][A-Z0-9_]+$`),
}

func (p *configParser) checkTicket(t *TicketTracker) {
	if t == nil {
		return
	}
	project, ok := projectPatterns[t.Kind]
	if !ok {
		p.Errorf(p.at("ticket", "kind"), "kind", "use github, gitlab or jira", "`ticket.kind`: unknown tracker `%s`", t.Kind)
		return
	}
	switch {
	case t.APIBaseURL() == "":
		p.Errorf(p.at("ticket", "url"), "required", "add a URL such as https://example.atlassian.net",
			"`ticket.url` is missing")
	default:
		p.checkURL(p.at("ticket", "url"), "ticket", t.APIBaseURL())
	}
	if !project.MatchString(t.Project) {
		hint := map[string]string{
			TrackerGitHub: "OWNER/NAME", TrackerGitLab: "use a path such as group/project, or a number",
			TrackerJira: "use its key, such as OPS",
		}[t.Kind]
		p.Errorf(p.at("ticket", "project"), "project", hint, "`ticket.project`: invalid project `%s` for %s", t.Project,
			t.Kind)
	}
	if t.TokenFile == "" {
		p.Errorf(p.at("ticket", "token_file"), "required", "write the token into a file that only Stanch can read",
			"`ticket.token_file` is missing")
	}
	if t.Kind == TrackerJira && t.User == "" {
		p.Errorf(p.at("ticket", "user"), "required", "use the email address of the token's account",
			"`ticket.user` is missing")
	}
	if t.Kind != TrackerJira && (t.User != "" || t.IssueType != "") {
		p.Errorf(p.at("ticket"), "value", "remove them", "`ticket`: `user` and `issue_type` are allowed only for Jira")
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
