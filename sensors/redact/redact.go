// Package redact removes secrets from command lines, environments and text before they leave the node.
//
// It is pure and prefers to redact too much: it refuses to decide whether a secret is real.
package redact

import (
	"regexp"
	"slices"
	"strings"
)

// Placeholder replaces a secret.
const Placeholder = "[redacted]"

// secretNamePattern matches the names of options and variables whose value is a secret.
var secretNamePattern = regexp.MustCompile(
	`(?i)(passw(or)?d|passwd|passphrase|pass$|secret|token|api[-_.]?key|access[-_.]?key|private[-_.]?key|` +
		`credential|auth(orization)?$|bearer|session[-_.]?id|cookie|client[-_.]?key|encryption[-_.]?key|signing[-_.]?key|^-*pwd$|_pwd$|_pass$|mnemonic|wallet[-_.]?seed)`,
)

// secretNameHints are substrings in lower case. Every name that secretNamePattern matches contains one of them.
var secretNameHints = []string{
	"pass", "secret", "token", "key", "credential", "auth", "bearer", "session", "cookie",
	"pwd", "mnemonic", "wallet",
}

// secretPattern matches secrets by their form.
type secretPattern struct {
	// hints are substrings in lower case. Every match of the pattern contains one of them. Searching for them takes a
	// hundredth of the time of the pattern, and few texts contain one.
	hints       []string
	pattern     *regexp.Regexp
	replacement string // replaces the match
}

// secretPatterns match secrets anywhere in a text. The text that the group named keep matches stays.
var secretPatterns = []secretPattern{
	// user info of a URL
	newSecretPattern(`(?P<keep>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#@'"]+@`, "://"),
	// HTTP authorization
	newSecretPattern(`(?P<keep>(?i:bearer|basic|negotiate)\s+)[A-Za-z0-9+/=_.~-]{8,}`, "bearer", "basic", "negotiate"),
	// HTTP headers, whatever the scheme
	newSecretPattern(
		`(?P<keep>(?i)\b(?:proxy-)?(?:authorization|cookie)\s*:\s*(?:(?:bearer|basic|negotiate|token|digest|bot)\s+)?)[^"'\r\n]+`,
		"authorization",
		"cookie",
	),
	// AWS key IDs
	newSecretPattern(`\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}\b`, "akia", "asia", "aroa", "aida", "agpa", "anpa"),
	newSecretPattern(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?`, "eyj"), // JWT
	newSecretPattern(`\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}`, "ghp_", "gho_", "ghu_", "ghs_",
		"ghr_", "github_pat_"),
	newSecretPattern(`\bhv[sbr]\.[A-Za-z0-9_-]{8,}`, "hvs.", "hvb.", "hvr."), // Vault
	// SQL passwords
	newSecretPattern(`(?P<keep>(?i)\b(?:password|identified\s+(?:with\s+\S+\s+)?by)\s+["'])[^"']+`, "password",
		"identified"),
	// domain/user:password@host, the form of impacket
	newSecretPattern(`(?P<keep>\b[\w.-]+/[\w.$-]+:)[^\s:@/'"]+@`, "/"),
	// query of a URL
	newSecretPattern(`(?P<keep>(?i)[?&](?:key|sig|signature|pass|pwd|code)=)[^&\s"'#]+`, "key=", "sig", "pass=", "pwd=",
		"code="),
	// Telegram
	newSecretPattern(`(?P<keep>\bbot[0-9]{6,}:)[A-Za-z0-9_-]{30,}`, "bot"),
	// Slack incoming webhooks
	newSecretPattern(`(?P<keep>hooks\.slack\.com/(?:services|workflows)/)[A-Za-z0-9/_-]+`, "hooks.slack.com"),
	newSecretPattern(`\bglpat-[A-Za-z0-9_-]{16,}`, "glpat-"),                                      // GitLab
	newSecretPattern(`\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}`, "xox", "xapp-"), // Slack
	newSecretPattern(`\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}`, "k_live_", "k_test_"),              // Stripe
	newSecretPattern(`\bAIza[A-Za-z0-9_-]{30,}`, "aiza"),                                          // Google
	newSecretPattern(`-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`, "private key-----"),
	newSecretPattern(
		`(?P<keep>(?i)\b[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential)[\w.-]*["']?\s*[=:]\s*["']?)[^\s"'&;,}]+`,
		"passw",
		"passphrase",
		"secret",
		"token",
		"key",
		"credential",
	),
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

// foldCase returns a text in lower case, and replaces the one non-ASCII lower-case letter (long s) that a
// case-insensitive pattern treats as an ASCII letter. The other such character, the Kelvin sign, is upper case.
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

// isSecretName reports whether the value of an option or variable with this name is a secret.
func isSecretName(name string) bool {
	return containsAny(foldCase(name), secretNameHints) && secretNamePattern.MatchString(name)
}

// Args returns a copy of a command line in which Placeholder replaces values that look like secrets: values of options
// and variables whose names say so, what the table of programs knows (-pVALUE of MySQL, `docker login -p`),
// user:password pairs, random tokens, and what Text recognizes. An argument with spaces is also parsed as a shell
// command line. The result is nil for nil. It is safe for concurrent use.
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
			// A shell command line may begin with a variable, and a process may have any name.
			if name, value, ok := strings.Cut(a, "="); ok && value != "" && isSecretName(name) &&
				optionNamePattern.MatchString(name) && isWholeValue(a) {
				out[i] = name + "=" + Placeholder
			}
			r.rules = slices.Clone(rulesByProgram.find(a))
			r.positionalStarts = make([]int, len(r.rules))
			continue
		}
		byTable, inTable := r.redactArg(args, i)
		switch name, value, hasValue := strings.Cut(a, "="); {
		case hideNext && (!strings.HasPrefix(a, "-") || len(a) <= 1 || !isSecretOption(a)):
			// A value that begins with a dash may be another option: then the next argument is the secret.
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

// optionNamePattern matches the name of an option or variable.
var optionNamePattern = regexp.MustCompile(`^[\w.-]+$`)

// isWholeValue reports whether everything after the equals sign is the value. NAME=value with spaces is a shell
// command line, and a responder needs to see the rest of it. An option has no such rest.
func isWholeValue(a string) bool {
	return strings.HasPrefix(a, "-") || !strings.ContainsAny(a, " \t\n")
}

// isSecretOption reports whether the next argument is the value of a secret option.
func isSecretOption(a string) bool {
	return strings.HasPrefix(a, "-") && !strings.ContainsAny(a, "= \t\n") && len(a) < 64 && isSecretName(a)
}

// Text returns a text in which Placeholder replaces what looks like a secret by its form. It is safe for concurrent
// use.
func Text(s string) string {
	small := foldCase(s)
	for _, one := range secretPatterns {
		if containsAny(small, one.hints) {
			s = one.pattern.ReplaceAllString(s, one.replacement)
		}
	}
	return s
}

// EnvNames returns the names in an environment of "NAME=value" entries, without their values. It omits entries without
// "=", because they could be a value, and names longer than 256 bytes.
func EnvNames(env []string) []string {
	var out []string
	for _, e := range env {
		if name, _, ok := strings.Cut(e, "="); ok && name != "" && len(name) <= 256 {
			out = append(out, name)
		}
	}
	return out
}
