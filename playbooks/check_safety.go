package playbooks

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
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
	w := &safetyWalk{checker: c, book: c.program}
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
		c.errorf(s.ForPos, "too-short", fmt.Sprintf("hold it for at least `%s`", short(spec.MinFor)), "`%s` for %s ends before what it revokes does: that lives for at least %s, and is good again when the lease ends", s.Action, short(s.For), short(spec.MinFor))
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

// attempt is an evidence step that will have been attempted: for which targets and under which conditions.
type attempt struct {
	target     string
	conditions []string
	detected   bool // it looks at what detections are about, and not only at what was found through it
}

// path is what must have held on the way to a step.
type path struct {
	all        []string
	inApproval bool
}

func (c path) and(text string) path {
	return path{append(slices.Clone(c.all), text), c.inApproval}
}

// safetyWalk goes through a playbook and all that it calls.
type safetyWalk struct {
	*checker
	book    *Program
	alone   bool              // only `call` runs it
	site    *Step             // the call through which the walk came here
	prefix  string            // of paths
	deep    int               // in calls
	seen    *int              // steps
	aliases map[string]string // what a name of a loop or an input stands for, as text
}

// at is where an error is reported, and what it says of the place.
func (w *safetyWalk) at(pos Pos) (Pos, string) {
	if w.site == nil {
		return pos, ""
	}
	return w.site.Call.Pos, fmt.Sprintf(" (%s:%d)", w.book.File, pos.Line)
}

func (w *safetyWalk) report(pos Pos, code, hint, format string, args ...any) {
	pos, where := w.at(pos)
	w.errorf(pos, code, hint, "%s%s", fmt.Sprintf(format, args...), where)
}

// steps walks a sequence. It returns what evidence will have been attempted once it has run.
func (w *safetyWalk) steps(steps []Step, before []attempt, in path) []attempt {
	have := slices.Clone(before)
	for i := range steps {
		have = w.step(&steps[i], have, in)
	}
	return have
}

func (w *safetyWalk) step(s *Step, have []attempt, in path) []attempt {
	if w.seen == nil {
		w.seen = new(int)
	}
	if *w.seen++; *w.seen == maxExpanded {
		w.errorf(s.Pos, "too-large", "call fewer playbooks", "with all that it calls the playbook has more than %d steps", maxExpanded)
	}
	if *w.seen >= maxExpanded {
		return have
	}
	if s.If != nil {
		in = in.and(w.prefix + normal(s.If.Source))
	}
	switch {
	case s.Verb == VerbEvidence:
		have = append(have, attempt{w.targetOf(s), in.all, w.book.catalogue[s.Action].detected()})
	case s.Verb == VerbContain:
		w.contains(s, have, in)
	case s.Parallel != nil:
		after := slices.Clone(have)
		for i := range s.Parallel {
			// Branches run at once: evidence in one is not before a containment in another.
			after = append(after, w.step(&s.Parallel[i], have, in)[len(have):]...)
		}
		have = after
	case s.Approval != nil:
		if in.inApproval {
			w.report(s.Pos, "nested-approval", "give the outer one a higher quorum", "an approval inside of an approval")
		}
		inside := in.and("approved:" + w.prefix + s.Path)
		inside.inApproval = true
		w.steps(s.Approval.Steps, have, inside)
	case s.ForEach != nil:
		inner := *w
		inner.aliases = with(w.aliases, s.ForEach.As, w.resolve(s.ForEach.List))
		inner.steps(s.ForEach.Steps, have, in.and("each:"+w.prefix+s.Path))
	case s.Call != nil:
		have = w.call(s, have, in)
	}
	w.steps(s.OnFailure, have, in.and("failed:"+w.prefix+s.Path))
	w.steps(s.OnDenied, have, in.and("denied:"+w.prefix+s.Path))
	return have
}

// call walks what a step calls.
func (w *safetyWalk) call(s *Step, have []attempt, in path) []attempt {
	callee := w.book.Callees[s.Call.Playbook]
	if callee == nil {
		return have
	}
	if w.deep >= maxCallDeep {
		w.report(s.Pos, "too-deep", "", "playbooks call each other more than %d deep", maxCallDeep)
		return have
	}
	inner := *w
	inner.book, inner.prefix, inner.deep = callee, w.prefix+s.Path+"/", w.deep+1
	if w.site == nil {
		inner.site = s
	}
	inner.aliases = map[string]string{}
	for _, arg := range s.With {
		if arg.Value.Expr != nil {
			inner.aliases["inputs."+arg.Name] = w.resolve(arg.Value.Expr)
		}
	}
	return inner.steps(callee.Steps, have, in)
}

func with(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// maxResolve bounds what names stand for: each may stand for another.
const maxResolve = 16

// word is a name in an expression, with the fields that follow it.
var word = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_.]*`)

// resolve is an expression's text, with names that stand for other expressions replaced by these.
func (w *safetyWalk) resolve(e *Expr) string { return w.resolved(e, 0) }

func (w *safetyWalk) resolved(e *Expr, deep int) string {
	if e == nil {
		return ""
	}
	if deep > maxResolve {
		return "(nobody knows)" // names that stand for each other: they are errors of their own
	}
	text := word.ReplaceAllStringFunc(normal(e.Source), func(name string) string {
		if meant, ok := w.aliases[name]; ok {
			return meant
		}
		if id, ok := strings.CutSuffix(name, ".failed"); ok {
			if s := stepOf(w.book, id); s != nil && s.Target != nil && normal(s.Target.Source) != name {
				return "(" + w.resolved(s.Target, deep+1) + ")"
			} else if s != nil {
				return "(incident.targets)" // a selection of them
			}
		}
		return name
	})
	if w.prefix != "" && !strings.Contains(text, "incident.targets") {
		return w.prefix + text // names of a called playbook are its own
	}
	return text
}

// stepOf finds a step by its id.
func stepOf(p *Program, id string) (found *Step) {
	p.Walk(func(s *Step) {
		if s.ID == id {
			found = s
		}
	})
	return found
}

func (w *safetyWalk) targetOf(s *Step) string { return w.resolve(s.Target) }

// contains checks that evidence of the target was attempted on every path to a containment, and that what disrupts
// stands behind an approval.
func (w *safetyWalk) contains(s *Step, have []attempt, in path) {
	spec, known := w.book.catalogue[s.Action]
	if !known || w.alone {
		return
	}
	if spec.Class == ClassDisrupt && !in.inApproval {
		w.report(s.ActionPos, "needs-approval", "put it under the `steps` of an approval", "`%s` disrupts: it is allowed only inside of an approval", s.Action)
	}
	// What no detection is about has no evidence of its own: any of the incident counts, as it does for the guard.
	derived := len(spec.Targets) > 0 && !spec.Targets[0].Detected()
	target := w.targetOf(s)
	covers := func(a attempt) bool { return derived || a.detected && covers(a.target, target) }
	covered := slices.ContainsFunc(have, func(a attempt) bool {
		return covers(a) && !slices.ContainsFunc(a.conditions, func(cond string) bool { return !slices.Contains(in.all, cond) })
	})
	if covered {
		return
	}
	hint := "put `- evidence: process.snapshot` before it"
	if target != "" {
		hint = "put an evidence step with the same `target` before it"
	}
	if slices.ContainsFunc(have, covers) {
		hint = "the evidence step before it stands under an `if` of its own: move it out, or put the containment under the same `if`"
	}
	w.report(s.ActionPos, "evidence-first", hint, "`%s` comes before any evidence of its target", s.Action)
}

// covers tells whether evidence of one target is evidence of the other: the default is every pod of the incident with
// a detection of its own, so a selection of them is covered too.
func covers(evidence, containment string) bool {
	if evidence == containment {
		return true
	}
	selection := strings.Contains(containment, "incident.targets") && !strings.Contains(containment, "concat(") && !strings.Contains(containment, "map(")
	return (evidence == "" || evidence == "incident.targets") && (selection || containment == "")
}
