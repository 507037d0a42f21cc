package playbooks

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/sensors/diagnostic"
	"stanch/sensors/duration"

	"go.yaml.in/yaml/v3"
)

// MaxSteps bounds the steps of one playbook.
const MaxSteps = 500

func (p *parser) steps(n *yaml.Node, path string) []Step {
	if n.Kind != yaml.SequenceNode {
		p.errorf(posOf(n), "type", "begin each step with `- `", "`%s` must be a list of steps, not %s", lastElement(path), kindName(n))
		return nil
	}
	steps := make([]Step, 0, len(n.Content))
	for i, item := range n.Content {
		if p.count++; p.count > MaxSteps {
			if p.count == MaxSteps+1 {
				p.errorf(posOf(item), "too-large", "move some into a playbook of their own and `call` it", "more than %d steps in one playbook", MaxSteps)
			}
			break
		}
		steps = append(steps, p.step(item, fmt.Sprintf("%s[%d]", path, i)))
	}
	return steps
}

func lastElement(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// stepReader reads one step. What the keys of a kind share is put together once all of them are read.
type stepReader struct {
	*parser
	s        Step
	kinds    []string
	approval Approval
	each     ForEach
	inner    []Step
	reason   *Text
}

func (p *parser) step(n *yaml.Node, path string) Step {
	r := &stepReader{parser: p, s: Step{Pos: posOf(n), Path: path, keys: map[string]Pos{}}, approval: Approval{Quorum: 1}, each: ForEach{As: "item", Concurrency: 1, Max: MaxItems}}
	readers := r.readers()
	for key, read := range readers {
		readers[key] = func(k, v *yaml.Node) { r.s.keys[key] = posOf(k); read(k, v) }
	}
	if !p.fields(n, "a step", readers) {
		return r.s
	}
	switch len(r.kinds) {
	case 0:
		p.errorf(r.s.Pos, "required", "give it one of "+strings.Join(kindNames(), ", "), "the step does nothing")
		return r.s
	case 1:
	default:
		p.errorf(r.s.Pos, "conflict", "make them steps of their own", "one step cannot be `%s` at once", strings.Join(r.kinds, "` and `"))
		return r.s
	}
	kind := r.kinds[0]
	for _, key := range slices.Sorted(maps.Keys(r.s.keys)) {
		if ok, kinds := takes(kind, key); key != kind && !ok {
			hint := "it belongs to " + strings.Join(kinds, ", ")
			if len(r.s.Parallel)+len(r.inner) > 0 && slices.Contains([]string{"for", "with", "target", "retry"}, key) {
				hint = "give it to the steps inside"
			}
			p.errorf(r.s.keys[key], "conflict", hint, "`%s` has no meaning on `%s`", key, kind)
		}
	}
	r.finish(kind)
	return r.s
}

// readers read the value of each key.
func (r *stepReader) readers() map[string]func(k, v *yaml.Node) {
	p, s, path := r.parser, &r.s, r.s.Path
	is := func(kind string) { r.kinds = append(r.kinds, kind) }
	readers := map[string]func(k, v *yaml.Node){
		"id": func(_, v *yaml.Node) {
			s.ID, s.IDPos = p.str(v, "id"), posOf(v)
			if v.Tag == "!!str" {
				p.named(v, "a step")
			}
		},
		"parallel":    func(_, v *yaml.Node) { is("parallel"); s.Parallel = p.steps(v, path+".parallel") },
		"with":        func(_, v *yaml.Node) { s.With = p.arguments(v, "`with`") },
		"if":          func(_, v *yaml.Node) { s.If = p.expr(v, "if") },
		"target":      func(_, v *yaml.Node) { s.Target = p.expr(v, "target") },
		"for":         func(k, v *yaml.Node) { s.ForPos = posOf(k); s.For = p.duration(v, "for") },
		"on_failure":  func(_, v *yaml.Node) { s.OnFailure = p.steps(v, path+".on_failure") },
		"on_denied":   func(_, v *yaml.Node) { s.OnDenied = p.steps(v, path+".on_denied") },
		"retry":       func(_, v *yaml.Node) { s.Retry = p.retry(v) },
		"timeout":     func(_, v *yaml.Node) { s.Timeout = p.duration(v, "timeout") },
		"approval":    func(_, v *yaml.Node) { is("approval"); r.approval.Title = p.str(v, "approval") },
		"ask":         func(_, v *yaml.Node) { r.approval.Ask = p.text(v) },
		"from":        func(_, v *yaml.Node) { p.from(v, &r.approval) },
		"steps":       func(_, v *yaml.Node) { r.inner = p.steps(v, path+".steps") },
		"foreach":     func(_, v *yaml.Node) { is("foreach"); r.each.List = p.expr(v, "foreach") },
		"as":          func(_, v *yaml.Node) { r.each.As, r.each.AsPos = p.str(v, "as"), posOf(v); p.named(v, "an element") },
		"concurrency": func(_, v *yaml.Node) { r.each.Concurrency = p.between(v, "concurrency", 1, 10) },
		"max":         func(_, v *yaml.Node) { r.each.Max = p.between(v, "max", 1, MaxItems) },
		"call":        func(_, v *yaml.Node) { is("call"); s.Call = &Call{Playbook: p.str(v, "call"), Pos: posOf(v)} },
		"wait":        func(_, v *yaml.Node) { is("wait"); s.Wait = p.wait(v) },
		"set":         func(_, v *yaml.Node) { is("set"); s.Set = p.set(v) },
		"stop":        func(_, v *yaml.Node) { is("stop"); s.Stop = p.stop(v) },
		"reason":      func(_, v *yaml.Node) { r.reason = p.text(v) },
		"on_timeout": func(_, v *yaml.Node) {
			if r.approval.OnTimeout = p.str(v, "on_timeout"); r.approval.OnTimeout != "deny" {
				p.errorf(posOf(v), "value", "write `on_timeout: deny`", "`on_timeout` can only be `deny`: silence permits nothing")
			}
		},
	}
	for _, verb := range Verbs {
		readers[string(verb)] = func(_, v *yaml.Node) {
			is(string(verb))
			s.Verb, s.Action, s.ActionPos = verb, p.str(v, string(verb)), posOf(v)
		}
	}
	return readers
}

// finish puts together what a kind's keys said, and reports what is missing.
func (r *stepReader) finish(kind string) {
	s := &r.s
	given := func(key string) bool { _, ok := s.keys[key]; return ok }
	switch kind {
	case "parallel":
		if len(s.Parallel) == 0 {
			s.Parallel = []Step{}
			r.errorf(s.keys["parallel"], "required", "put at least one step under it", "`parallel` runs nothing")
		}
	case "foreach":
		s.ForEach = &r.each
		if s.ForEach.Steps = r.inner; len(r.inner) == 0 {
			r.errorf(s.Pos, "required", "put what is done for each element under `steps`", "the loop does nothing")
		}
	case "stop":
		if s.Stop == nil {
			s.Stop = &Stop{}
		}
		s.Stop.Reason = r.reason
	case "approval":
		a := &r.approval
		s.Approval, a.Steps, a.Timeout = a, r.inner, s.Timeout
		if !given("from") {
			r.errorf(s.Pos, "required", "say who may approve: `from: {groups: [NAME], quorum: 1}`", "`from` is missing")
		}
		if !given("on_timeout") {
			r.errorf(s.Pos, "required", "write `on_timeout: deny`", "`on_timeout` is missing: the safe answer must be explicit")
		}
		if !given("timeout") {
			r.errorf(s.Pos, "required", "write for example `timeout: 15m`", "`timeout` is missing")
		}
		if e := a.Escalate; e != nil && a.Timeout > 0 && e.After >= a.Timeout {
			r.errorf(s.Pos, "range", "let it begin before the timeout", "`escalate` begins after %s, when the %s of the approval are over", duration.Format(e.After), duration.Format(a.Timeout))
		}
		if len(a.Steps) == 0 {
			r.errorf(s.Pos, "required", "put what it permits under `steps`", "the approval permits nothing")
		}
	}
}

func (p *parser) retry(n *yaml.Node) *Retry {
	r := &Retry{Attempts: 3, Backoff: time.Second}
	p.fields(n, "`retry`", map[string]func(k, v *yaml.Node){
		"attempts": func(_, v *yaml.Node) { r.Attempts = p.between(v, "attempts", 1, 20) },
		"backoff":  func(_, v *yaml.Node) { r.Backoff = p.duration(v, "backoff") },
	})
	return r
}

// wait reads `wait: 10m` or `wait: {until: …, timeout: 10m}`.
func (p *parser) wait(n *yaml.Node) *Wait {
	w := &Wait{}
	if n.Kind != yaml.MappingNode {
		w.For = p.duration(n, "wait")
		return w
	}
	p.fields(n, "`wait`", map[string]func(k, v *yaml.Node){
		"until":   func(_, v *yaml.Node) { w.Until = p.expr(v, "until") },
		"timeout": func(_, v *yaml.Node) { w.Timeout = p.duration(v, "timeout") },
	})
	if w.Until == nil {
		p.errorf(posOf(n), "required", "say `until: EXPRESSION`, or only a duration: `wait: 10m`", "`wait` has no `until`")
	}
	if w.Timeout == 0 {
		p.errorf(posOf(n), "required", "say how long at most: `timeout: 10m`", "`wait` has no `timeout`")
	}
	return w
}

func (p *parser) set(n *yaml.Node) []Argument {
	args := p.arguments(n, "`set`")
	if n.Kind == yaml.MappingNode && len(args) == 0 {
		p.errorf(posOf(n), "required", "write for example `set: {wide: \"${ctx.same_digest_pods > 1}\"}`", "`set` names nothing")
	}
	for _, a := range args {
		if !identifier.MatchString(a.Name) {
			p.errorf(a.Pos, "name", "use letters, digits and `_`, with a letter first", "`%s` is not the name of a value", clip(a.Name, 40))
		}
	}
	if args == nil {
		args = []Argument{}
	}
	return args
}

func (p *parser) stop(n *yaml.Node) *Stop {
	s := &Stop{Outcome: Outcome(p.str(n, "stop")), Pos: posOf(n)}
	if n.Tag == "!!str" && !slices.Contains(StopOutcomes, s.Outcome) {
		var known []string
		for _, o := range StopOutcomes {
			known = append(known, string(o))
		}
		p.errorf(posOf(n), "value", diagnostic.DidYouMean(n.Value, known), "a playbook cannot stop as `%s`", clip(n.Value, 40))
	}
	return s
}
