// Package redact takes secrets out of command lines, environments and text before they leave the node.
//
// It is pure and errs on the side of hiding: it refuses to decide whether a secret is a real one.
package redact

import (
	"regexp"
	"slices"
	"strings"
)

// Placeholder stands where a secret was.
const Placeholder = "[redacted]"

// secretNamePattern matches names of options and variables whose value is a secret.
var secretNamePattern = regexp.MustCompile(`(?i)(passw(or)?d|passwd|passphrase|pass$|secret|token|api[-_.]?key|access[-_.]?key|private[-_.]?key|` +
	`credential|auth(orization)?$|bearer|session[-_.]?id|cookie|client[-_.]?key|encryption[-_.]?key|signing[-_.]?key|^-*pwd$|_pwd$|_pass$|mnemonic|wallet[-_.]?seed)`)

// secretNameHints: of these every name that secretNamePattern matches has one, in small letters.
var secretNameHints = []string{"pass", "secret", "token", "key", "credential", "auth", "bearer", "session", "cookie", "pwd", "mnemonic", "wallet"}

// secretPattern is what is a secret by its form.
type secretPattern struct {
	// hints: whatever the expression matches has one of these, in small letters. To look for them takes a hundredth of
	// the time that an expression takes, and few texts have one.
	hints       []string
	pattern     *regexp.Regexp
	replacement string // what replaces it
}

// secretPatterns are secrets wherever they stand. What a group named keep matches stays before the mark.
var secretPatterns = []secretPattern{
	newSecretPattern(`(?P<keep>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#@'"]+@`, "://"),                                                                                           // user info of a URL
	newSecretPattern(`(?P<keep>(?i:bearer|basic|negotiate)\s+)[A-Za-z0-9+/=_.~-]{8,}`, "bearer", "basic", "negotiate"),                                                     // HTTP authorization
	newSecretPattern(`(?P<keep>(?i)\b(?:proxy-)?(?:authorization|cookie)\s*:\s*(?:(?:bearer|basic|negotiate|token|digest|bot)\s+)?)[^"'\r\n]+`, "authorization", "cookie"), // HTTP headers, whatever the scheme
	newSecretPattern(`\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}\b`, "akia", "asia", "aroa", "aida", "agpa", "anpa"),                                                  // AWS key ids
	newSecretPattern(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?`, "eyj"),                                                                              // JWT
	newSecretPattern(`\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}`, "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
	newSecretPattern(`\bhv[sbr]\.[A-Za-z0-9_-]{8,}`, "hvs.", "hvb.", "hvr."),                                                      // Vault
	newSecretPattern(`(?P<keep>(?i)\b(?:password|identified\s+(?:with\s+\S+\s+)?by)\s+["'])[^"']+`, "password", "identified"),     // SQL
	newSecretPattern(`(?P<keep>\b[\w.-]+/[\w.$-]+:)[^\s:@/'"]+@`, "/"),                                                            // domain/user:password@host, as impacket's programs take it
	newSecretPattern(`(?P<keep>(?i)[?&](?:key|sig|signature|pass|pwd|code)=)[^&\s"'#]+`, "key=", "sig", "pass=", "pwd=", "code="), // query of a URL
	newSecretPattern(`(?P<keep>\bbot[0-9]{6,}:)[A-Za-z0-9_-]{30,}`, "bot"),                                                        // Telegram
	newSecretPattern(`(?P<keep>hooks\.slack\.com/(?:services|workflows)/)[A-Za-z0-9/_-]+`, "hooks.slack.com"),                     // Slack's incoming webhooks
	newSecretPattern(`\bglpat-[A-Za-z0-9_-]{16,}`, "glpat-"),                                                                      // GitLab
	newSecretPattern(`\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}`, "xox", "xapp-"),                                 // Slack
	newSecretPattern(`\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}`, "k_live_", "k_test_"),                                              // Stripe
	newSecretPattern(`\bAIza[A-Za-z0-9_-]{30,}`, "aiza"),                                                                          // Google
	newSecretPattern(`-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`, "private key-----"),
	newSecretPattern(`(?P<keep>(?i)\b[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)[\w.-]*["']?\s*[=:]\s*["']?)[^\s"'&;,}]+`,
		"passw", "passphrase", "secret", "token", "key", "credential"),
}

func newSecretPattern(expression string, hints ...string) secretPattern {
	s := secretPattern{hints: hints, pattern: regexp.MustCompile(expression), replacement: Placeholder}
	if s.pattern.SubexpIndex("keep") > 0 {
		s.replacement = "${keep}" + Placeholder
	}
	if strings.HasSuffix(expression, "@") {
		s.replacement += "@"
	}
	return s
}

// foldCase gives a text in small letters, and the one letter beyond ASCII that a case-blind expression takes for a letter of
// ASCII and that is small already as that letter. (The other, the sign of the kelvin, is a capital.)
func foldCase(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), "\u017f", "s")
}

func containsAny(s string, of []string) bool {
	for _, one := range of {
		if strings.Contains(s, one) {
			return true
		}
	}
	return false
}

// isSecretName tells whether a name is one whose value is a secret.
func isSecretName(name string) bool {
	return containsAny(foldCase(name), secretNameHints) && secretNamePattern.MatchString(name)
}

// Args returns a copy of a command line with what looks like a secret replaced by Mark: the values of options and
// variables whose names say so, what the table of programs knows (-pVALUE of MySQL, `docker login -p`), user:password
// pairs, random tokens, and what Text knows. A line for a shell is read as the commands in it.
func Args(args []string) []string { return redactArgs(args, true) }

func redactArgs(args []string, lines bool) []string {
	if args == nil {
		return nil
	}
	out := make([]string, len(args))
	r := &argScanner{}
	hideNext := false
	for i, a := range args {
		if i == 0 {
			out[i] = Text(a)
			// A line for a shell may begin with a variable; a process may be given any name.
			if name, value, ok := strings.Cut(a, "="); ok && value != "" && isSecretName(name) && optionNamePattern.MatchString(name) && isWholeValue(a) {
				out[i] = name + "=" + Placeholder
			}
			r.rules = slices.Clone(rulesByProgram.find(a))
			r.positionalStarts = make([]int, len(r.rules))
			continue
		}
		byTable, inTable := r.redactArg(args, i)
		switch name, value, hasValue := strings.Cut(a, "="); {
		case hideNext && (!strings.HasPrefix(a, "-") || len(a) <= 1 || !isSecretOption(a)):
			// A value that begins with a dash may be an option after all: then the secret is the argument behind it.
			out[i], hideNext = Placeholder, strings.HasPrefix(a, "-")
		case inTable:
			out[i] = Text(byTable)
		case hasValue && value != "" && isSecretName(name) && optionNamePattern.MatchString(name) && isWholeValue(a):
			out[i], hideNext = name+"="+Placeholder, false
		case isSecretOption(a):
			out[i], hideNext = a, true
		case hasValue && isRandomToken(value):
			out[i] = name + "=" + Placeholder
		case isRandomToken(a):
			out[i] = Placeholder
		case lines && strings.ContainsAny(a, " \t\n"):
			out[i] = redactShellLine(Text(a))
		default:
			out[i] = Text(a)
		}
	}
	return out
}

// optionNamePattern is what an option or a variable is called.
var optionNamePattern = regexp.MustCompile(`^[\w.-]+$`)

// isWholeValue tells whether all behind the sign is the value. NAME=value with blanks is a line for a shell, and the rest
// of the line is what a responder wants to see; an option has no such line.
func isWholeValue(a string) bool {
	return strings.HasPrefix(a, "-") || !strings.ContainsAny(a, " \t\n")
}

// isSecretOption tells whether an option's value is a secret that is the next argument.
func isSecretOption(a string) bool {
	return strings.HasPrefix(a, "-") && !strings.ContainsAny(a, "= \t\n") && len(a) < 64 && isSecretName(a)
}

// Text replaces what looks like a secret in free text.
func Text(s string) string {
	small := foldCase(s)
	for _, one := range secretPatterns {
		if containsAny(small, one.hints) {
			s = one.pattern.ReplaceAllString(s, one.replacement)
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
