package playbooks

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// Bounds of what calls expand to.
const (
	maxExpanded = 2000 // steps
	maxCallDeep = 8
)

// safetyStage checks what no playbook may do, through every call.
func (c *checker) safetyStage() {
	walk(c.program.Steps, c.lease)
	c.secrets()
	w := &safetyWalk{checker: c, book: c.program, symbols: &symbols{lists: map[string]string{}}}
	// What only `call` runs is judged where it is called: the evidence and the approval may stand there.
	w.alone = c.program.Match == nil
	w.steps(c.program.Steps, nil, path{})
}

// lease checks that `for` fits the action.
func (c *checker) lease(s *Step) {
	spec, ok := c.program.catalogue[s.Action]
	if !ok || c.bad[s] {
		return
	}
	given := s.ForPos != (Pos{})
	switch {
	case spec.Reversible && !given:
		c.errorf(s.ActionPos, "for-required", "say how long: `for: 30m`", "`%s` is a lease and needs `for`", s.Action)
	case !spec.Reversible && given && s.Verb == VerbContain:
		c.errorf(s.ForPos, "for-forbidden", "remove it", "`%s` is not reversible: it has no `for`", s.Action)
	case spec.Reversible && s.For > 0 && s.For < 5*time.Second:
		c.errorf(s.ForPos, "range", "", "a lease shorter than 5s is not a containment")
	case s.For > 7*24*time.Hour:
		c.errorf(s.ForPos, "range", "extend it when the time comes", "a lease is at most 168h")
	case s.For > 0 && s.For < spec.MinFor:
		c.errorf(s.ForPos, "too-short", fmt.Sprintf("hold it for at least `%s`", duration.Format(spec.MinFor)), "`%s` for %s ends before what it revokes does: that lives for at least %s, and is good again when the lease ends", s.Action, duration.Format(s.For), duration.Format(spec.MinFor))
	}
}

// secretPatterns are what must never stand in a file that is reviewed, stored in histories and shown to people.
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

// secrets reports what looks like a credential. Its text is not repeated.
func (c *checker) secrets() {
	for i, line := range strings.Split(string(c.program.Source), "\n") {
		for _, p := range secretPatterns {
			if at := p.re.FindStringIndex(line); at != nil {
				c.errorf(Pos{Line: i + 1, Column: len([]rune(line[:at[0]])) + 1}, "secret", "take it out, revoke it, and name a file or variable of the worker's configuration instead", "this looks like %s", p.what)
				break
			}
		}
	}
}
