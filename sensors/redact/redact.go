// Package redact takes secrets out of command lines, environments and text before they leave the node.
//
// It is pure and errs on the side of hiding: it refuses to decide whether a secret is a real one.
package redact

import (
	"regexp"
	"slices"
	"strings"
)

// Mark stands where a secret was.
const Mark = "[redacted]"

// secretWord matches names of options and variables whose value is a secret.
var secretWord = regexp.MustCompile(`(?i)(passw(or)?d|passwd|passphrase|pass$|secret|token|api[-_.]?key|access[-_.]?key|private[-_.]?key|` +
	`credential|auth(orization)?$|bearer|session[-_.]?id|cookie|client[-_.]?key|encryption[-_.]?key|signing[-_.]?key|^-*pwd$|_pwd$|_pass$|mnemonic|wallet[-_.]?seed)`)

// secretHints: of these every name that secretWord matches has one, in small letters.
var secretHints = []string{"pass", "secret", "token", "key", "credential", "auth", "bearer", "session", "cookie", "pwd", "mnemonic", "wallet"}

// shape is what is a secret by its form.
type shape struct {
	// hints: whatever the expression matches has one of these, in small letters. To look for them takes a hundredth of
	// the time that an expression takes, and few texts have one.
	hints []string
	re    *regexp.Regexp
	with  string // what replaces it
}

// shapes are secrets wherever they stand. What a group named keep matches stays before the mark.
var shapes = []shape{
	mark(`(?P<keep>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#@'"]+@`, "://"),                                                                                           // user info of a URL
	mark(`(?P<keep>(?i:bearer|basic|negotiate)\s+)[A-Za-z0-9+/=_.~-]{8,}`, "bearer", "basic", "negotiate"),                                                     // HTTP authorization
	mark(`(?P<keep>(?i)\b(?:proxy-)?(?:authorization|cookie)\s*:\s*(?:(?:bearer|basic|negotiate|token|digest|bot)\s+)?)[^"'\r\n]+`, "authorization", "cookie"), // HTTP headers, whatever the scheme
	mark(`\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}\b`, "akia", "asia", "aroa", "aida", "agpa", "anpa"),                                                  // AWS key ids
	mark(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?`, "eyj"),                                                                              // JWT
	mark(`\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}`, "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
	mark(`\bhv[sbr]\.[A-Za-z0-9_-]{8,}`, "hvs.", "hvb.", "hvr."),                                                      // Vault
	mark(`(?P<keep>(?i)\b(?:password|identified\s+(?:with\s+\S+\s+)?by)\s+["'])[^"']+`, "password", "identified"),     // SQL
	mark(`(?P<keep>\b[\w.-]+/[\w.$-]+:)[^\s:@/'"]+@`, "/"),                                                            // domain/user:password@host, as impacket's programs take it
	mark(`(?P<keep>(?i)[?&](?:key|sig|signature|pass|pwd|code)=)[^&\s"'#]+`, "key=", "sig", "pass=", "pwd=", "code="), // query of a URL
	mark(`(?P<keep>\bbot[0-9]{6,}:)[A-Za-z0-9_-]{30,}`, "bot"),                                                        // Telegram
	mark(`(?P<keep>hooks\.slack\.com/(?:services|workflows)/)[A-Za-z0-9/_-]+`, "hooks.slack.com"),                     // Slack's incoming webhooks
	mark(`\bglpat-[A-Za-z0-9_-]{16,}`, "glpat-"),                                                                      // GitLab
	mark(`\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}`, "xox", "xapp-"),                                 // Slack
	mark(`\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}`, "k_live_", "k_test_"),                                              // Stripe
	mark(`\bAIza[A-Za-z0-9_-]{30,}`, "aiza"),                                                                          // Google
	mark(`-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`, "private key-----"),
	mark(`(?P<keep>(?i)\b[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)[\w.-]*["']?\s*[=:]\s*["']?)[^\s"'&;,}]+`,
		"passw", "passphrase", "secret", "token", "key", "credential"),
}

func mark(expression string, hints ...string) shape {
	s := shape{hints: hints, re: regexp.MustCompile(expression), with: Mark}
	if s.re.SubexpIndex("keep") > 0 {
		s.with = "${keep}" + Mark
	}
	if strings.HasSuffix(expression, "@") {
		s.with += "@"
	}
	return s
}

// folded gives a text in small letters, and the one letter beyond ASCII that a case-blind expression takes for a letter of
// ASCII and that is small already as that letter. (The other, the sign of the kelvin, is a capital.)
func folded(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), "\u017f", "s")
}

func hasAny(s string, of []string) bool {
	for _, one := range of {
		if strings.Contains(s, one) {
			return true
		}
	}
	return false
}

// isSecret tells whether a name is one whose value is a secret.
func isSecret(name string) bool {
	return hasAny(folded(name), secretHints) && secretWord.MatchString(name)
}

// Args returns a copy of a command line with what looks like a secret replaced by Mark: the values of options and
// variables whose names say so, what the table of programs knows (-pVALUE of MySQL, `docker login -p`), user:password
// pairs, random tokens, and what Text knows. A line for a shell is read as the commands in it.
func Args(args []string) []string { return commandLine(args, true) }

func commandLine(args []string, lines bool) []string {
	if args == nil {
		return nil
	}
	out := make([]string, len(args))
	r := &reader{}
	hideNext := false
	for i, a := range args {
		if i == 0 {
			out[i] = Text(a)
			// A line for a shell may begin with a variable; a process may be given any name.
			if name, value, ok := strings.Cut(a, "="); ok && value != "" && isSecret(name) && optionName.MatchString(name) && wholeValue(a) {
				out[i] = name + "=" + Mark
			}
			r.rows = slices.Clone(known.of(a))
			r.at = make([]int, len(r.rows))
			continue
		}
		byTable, inTable := r.read(args, i)
		switch name, value, hasValue := strings.Cut(a, "="); {
		case hideNext && (!strings.HasPrefix(a, "-") || len(a) <= 1 || !secretOption(a)):
			// A value that begins with a dash may be an option after all: then the secret is the argument behind it.
			out[i], hideNext = Mark, strings.HasPrefix(a, "-")
		case inTable:
			out[i] = Text(byTable)
		case hasValue && value != "" && isSecret(name) && optionName.MatchString(name) && wholeValue(a):
			out[i], hideNext = name+"="+Mark, false
		case secretOption(a):
			out[i], hideNext = a, true
		case hasValue && isRandom(value):
			out[i] = name + "=" + Mark
		case isRandom(a):
			out[i] = Mark
		case lines && strings.ContainsAny(a, " \t\n"):
			out[i] = shellLine(Text(a))
		default:
			out[i] = Text(a)
		}
	}
	return out
}

// optionName is what an option or a variable is called.
var optionName = regexp.MustCompile(`^[\w.-]+$`)

// wholeValue tells whether all behind the sign is the value. NAME=value with blanks is a line for a shell, and the rest
// of the line is what a responder wants to see; an option has no such line.
func wholeValue(a string) bool {
	return strings.HasPrefix(a, "-") || !strings.ContainsAny(a, " \t\n")
}

// secretOption tells whether an option's value is a secret that is the next argument.
func secretOption(a string) bool {
	return strings.HasPrefix(a, "-") && !strings.ContainsAny(a, "= \t\n") && len(a) < 64 && isSecret(a)
}

// Text replaces what looks like a secret in free text.
func Text(s string) string {
	small := folded(s)
	for _, one := range shapes {
		if hasAny(small, one.hints) {
			s = one.re.ReplaceAllString(s, one.with)
		}
	}
	return s
}

// EnvNames gives the names of an environment ("NAME=value" each) and none of its values. What has no "=" is left out: it
// could be a value.
func EnvNames(env []string) []string {
	var out []string
	for _, e := range env {
		if name, _, ok := strings.Cut(e, "="); ok && name != "" && len(name) <= 256 {
			out = append(out, name)
		}
	}
	return out
}
