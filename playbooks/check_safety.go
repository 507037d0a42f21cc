package playbooks

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// Limits after calls are expanded.
const (
	maxExpandedSteps = 2000 // number of steps
	maxCallDepth     = 8
)

// checkSafety checks the safety rules, following every call.
func (c *checker) checkSafety() {
	walkSteps(c.program.Steps, c.checkLeaseDuration)
	c.checkSecrets()
	w := &safetyWalker{checker: c, currentProgram: c.program, symbols: &symbolTable{sourceLists: map[string]string{}}}
	// A playbook without `match` is checked at its call sites: evidence and approval may come from the caller.
	w.callOnly = c.program.Match == nil
	w.walkSteps(c.program.Steps, nil, pathConditions{})
}

// checkLeaseDuration checks that `for` is valid for the action.
func (c *checker) checkLeaseDuration(s *Step) {
	spec, ok := c.program.catalog[s.Action]
	if !ok || c.stepsWithUnknownNames[s] {
		return
	}
	given := s.LeaseDurationPos != (Pos{})
	switch {
	case spec.Reversible && !given:
		c.errorf(s.ActionPos, "for-required", "add a duration: `for: 30m`", "`%s` is a lease and requires `for`", s.Action)
	case !spec.Reversible && given && s.Verb == VerbContain:
		c.errorf(s.LeaseDurationPos, "for-forbidden", "remove it", "`%s` is not reversible: `for` is not allowed", s.Action)
	case spec.Reversible && s.LeaseDuration > 0 && s.LeaseDuration < 5*time.Second:
		c.errorf(s.LeaseDurationPos, "range", "", "the lease is too short; the minimum is 5s")
	case s.LeaseDuration > 7*24*time.Hour:
		c.errorf(s.LeaseDurationPos, "range", "extend it before it expires", "the lease is too long; the maximum is 168h")
	case s.LeaseDuration > 0 && s.LeaseDuration < spec.MinDuration:
		c.errorf(
			s.LeaseDurationPos,
			"too-short",
			fmt.Sprintf("use a duration of at least `%s`", duration.Format(spec.MinDuration)),
			"`%s` for %s ends before the revoked credentials expire: they live for at least %s, and are valid again when the lease ends",
			s.Action,
			duration.Format(s.LeaseDuration),
			duration.Format(spec.MinDuration),
		)
	}
}

// secretPatterns match credentials. A playbook is reviewed, stored in histories and shown to people, so it must not
// contain any.
var secretPatterns = []struct {
	what string
	re   *regexp.Regexp
}{
	{"an AWS access key", regexp.MustCompile(`\b(AKIA|ASIA)[A-Z0-9]{16}\b`)},
	{"a Slack token", regexp.MustCompile(`\bxox[abeprs]-[A-Za-z0-9-]{10,}`)},
	{"a Slack webhook", regexp.MustCompile(`hooks\.slack\.com/services/[A-Za-z0-9/]{20,}`)},
	{"a GitHub token", regexp.MustCompile(`\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})`)},
	{"a GitLab token", regexp.MustCompile(`\bglpat-[A-Za-z0-9_-]{20,}`)},
	{"a private key", regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`)},
	{"a signed token (JWT)", regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.`)},
	{"a password in a URL", regexp.MustCompile(`[a-z][a-z0-9+]*://[^\s/:@"'${}]+:[^\s/@"'${}]{3,}@`)},
}

// checkSecrets reports text that looks like a credential, without repeating it.
func (c *checker) checkSecrets() {
	for i, line := range strings.Split(string(c.program.SourceText), "\n") {
		for _, p := range secretPatterns {
			if at := p.re.FindStringIndex(line); at != nil {
				c.errorf(Pos{Line: i + 1, Column: len([]rune(line[:at[0]])) + 1}, "secret",
					"remove it, revoke it, and use a file or variable of the worker's configuration instead", "this looks like %s",
					p.what)
				break
			}
		}
	}
}
