package playbooks

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/duration"
	"stanch/sensors/truncate"
)

// MaxSteps is the maximum number of steps of one playbook.
const MaxSteps = 500

func (p *parser) parseSteps(n *yaml.Node, path string) []Step {
	if n.Kind != yaml.SequenceNode {
		p.errorf(nodePos(n), "type", "begin each step with `- `", "`%s` must be a list of steps, not %s",
			lastPathElement(path), nodeKindName(n))
		return nil
	}
	steps := make([]Step, 0, len(n.Content))
	for i, item := range n.Content {
		if p.stepCount++; p.stepCount > MaxSteps {
			if p.stepCount == MaxSteps+1 {
				p.errorf(nodePos(item), "too-large", "move some to another playbook and `call` it",
					"more than %d steps in one playbook", MaxSteps)
			}
			break
		}
		steps = append(steps, p.parseStep(item, fmt.Sprintf("%s[%d]", path, i)))
	}
	return steps
}

func lastPathElement(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// stepParser parses one step. Parts that several keys share are assembled after all keys are read.
type stepParser struct {
	*parser
	parsedStep  Step
	kindKeys    []string
	approval    Approval
	forEach     ForEach
	nestedSteps []Step
	stopReason  *Template
}

func (p *parser) parseStep(n *yaml.Node, path string) Step {
	r := &stepParser{
		parser: p, parsedStep: Step{Pos: nodePos(n), Path: path, keyPositions: map[string]Pos{}},
		approval: Approval{Approvers: Approvers{Quorum: 1}}, forEach: ForEach{
			Variable: "item", Concurrency: 1,
			MaxItems: MaxItems,
		},
	}
	readers := r.keyParsers()
	for key, read := range readers {
		readers[key] = func(k, v *yaml.Node) { r.parsedStep.keyPositions[key] = nodePos(k); read(k, v) }
	}
	if !p.parseFields(n, "a step", readers) {
		return r.parsedStep
	}
	switch len(r.kindKeys) {
	case 0:
		p.errorf(r.parsedStep.Pos, "required", "add one of "+strings.Join(stepKindNames(), ", "),
			"the step has no action or keyword")
		return r.parsedStep
	case 1:
	default:
		p.errorf(r.parsedStep.Pos, "conflict", "write separate steps", "one step cannot have more than one of `%s`",
			strings.Join(r.kindKeys, "` and `"))
		return r.parsedStep
	}
	kind := r.kindKeys[0]
	for _, key := range slices.Sorted(maps.Keys(r.parsedStep.keyPositions)) {
		if ok, kinds := kindAcceptsKey(kind, key); key != kind && !ok {
			hint := "it is a key of " + strings.Join(kinds, ", ")
			if len(r.parsedStep.Parallel)+len(r.nestedSteps) > 0 && slices.Contains([]string{"for", "with", "target", "retry"},
				key) {
				hint = "set it on the steps inside"
			}
			p.errorf(r.parsedStep.keyPositions[key], "conflict", hint, "`%s` is not allowed on `%s`", key, kind)
		}
	}
	r.finishStep(kind)
	return r.parsedStep
}

// keyParsers returns the parser of each key's value.
func (r *stepParser) keyParsers() map[string]func(k, v *yaml.Node) {
	p, s, path := r.parser, &r.parsedStep, r.parsedStep.Path
	is := func(kind string) { r.kindKeys = append(r.kindKeys, kind) }
	readers := map[string]func(k, v *yaml.Node){
		"id": func(_, v *yaml.Node) {
			s.ID, s.IDPos = p.parseString(v, "id"), nodePos(v)
			if v.Tag == "!!str" {
				p.checkIdentifier(v, "a step")
			}
		},
		"parallel":   func(_, v *yaml.Node) { is("parallel"); s.Parallel = p.parseSteps(v, path+".parallel") },
		"with":       func(_, v *yaml.Node) { s.Arguments = p.parseArguments(v, "`with`") },
		"if":         func(_, v *yaml.Node) { s.If = p.parseExpr(v, "if") },
		"target":     func(_, v *yaml.Node) { s.Target = p.parseExpr(v, "target") },
		"for":        func(k, v *yaml.Node) { s.LeaseDurationPos = nodePos(k); s.LeaseDuration = p.parseDuration(v, "for") },
		"on_failure": func(_, v *yaml.Node) { s.OnFailure = p.parseSteps(v, path+".on_failure") },
		"on_denied":  func(_, v *yaml.Node) { s.OnDenied = p.parseSteps(v, path+".on_denied") },
		"retry":      func(_, v *yaml.Node) { s.Retry = p.parseRetry(v) },
		"timeout":    func(_, v *yaml.Node) { s.Timeout = p.parseDuration(v, "timeout") },
		"approval":   func(_, v *yaml.Node) { is("approval"); r.approval.Title = p.parseString(v, "approval") },
		"ask":        func(_, v *yaml.Node) { r.approval.Question = p.parseTemplate(v) },
		"from":       func(_, v *yaml.Node) { p.parseApprovers(v, &r.approval) },
		"steps":      func(_, v *yaml.Node) { r.nestedSteps = p.parseSteps(v, path+".steps") },
		"foreach":    func(_, v *yaml.Node) { is("foreach"); r.forEach.List = p.parseExpr(v, "foreach") },
		"as": func(_, v *yaml.Node) {
			r.forEach.Variable, r.forEach.VariablePos = p.parseString(v, "as"), nodePos(v)
			p.checkIdentifier(v, "an element")
		},
		"concurrency": func(_, v *yaml.Node) { r.forEach.Concurrency = p.parseIntInRange(v, "concurrency", 1, 10) },
		"max":         func(_, v *yaml.Node) { r.forEach.MaxItems = p.parseIntInRange(v, "max", 1, MaxItems) },
		"call": func(_, v *yaml.Node) {
			is("call")
			s.Call = &PlaybookCall{Playbook: p.parseString(v, "call"), Pos: nodePos(v)}
		},
		"wait":   func(_, v *yaml.Node) { is("wait"); s.Wait = p.parseWait(v) },
		"set":    func(_, v *yaml.Node) { is("set"); s.Assignments = p.parseAssignments(v) },
		"stop":   func(_, v *yaml.Node) { is("stop"); s.Stop = p.parseStop(v) },
		"reason": func(_, v *yaml.Node) { r.stopReason = p.parseTemplate(v) },
		"on_timeout": func(_, v *yaml.Node) {
			if r.approval.OnTimeout = p.parseString(v, "on_timeout"); r.approval.OnTimeout != "deny" {
				p.errorf(nodePos(v), "value", "write `on_timeout: deny`",
					"`on_timeout` must be `deny`: a timeout never approves anything")
			}
		},
	}
	for _, verb := range Verbs {
		readers[string(verb)] = func(_, v *yaml.Node) {
			is(string(verb))
			s.Verb, s.Action, s.ActionPos = verb, p.parseString(v, string(verb)), nodePos(v)
		}
	}
	return readers
}

// finishStep assembles the step from the keys of its kind, and reports missing keys.
func (r *stepParser) finishStep(kind string) {
	s := &r.parsedStep
	given := func(key string) bool { _, ok := s.keyPositions[key]; return ok }
	switch kind {
	case "parallel":
		if len(s.Parallel) == 0 {
			s.Parallel = []Step{}
			r.errorf(s.keyPositions["parallel"], "required", "add at least one step", "`parallel` has no steps")
		}
	case "foreach":
		s.ForEach = &r.forEach
		if s.ForEach.Steps = r.nestedSteps; len(r.nestedSteps) == 0 {
			r.errorf(s.Pos, "required", "add the steps for each element under `steps`", "the loop has no steps")
		}
	case "stop":
		if s.Stop == nil {
			s.Stop = &Stop{}
		}
		s.Stop.Reason = r.stopReason
	case "approval":
		a := &r.approval
		s.Approval, a.Steps, a.Timeout = a, r.nestedSteps, s.Timeout
		if !given("from") {
			r.errorf(s.Pos, "required", "add the approvers: `from: {groups: [NAME], quorum: 1}`", "`from` is missing")
		}
		if !given("on_timeout") {
			r.errorf(s.Pos, "required", "write `on_timeout: deny`", "`on_timeout` is missing: the denial must be explicit")
		}
		if !given("timeout") {
			r.errorf(s.Pos, "required", "for example, write `timeout: 15m`", "`timeout` is missing")
		}
		if e := a.Escalate; e != nil && a.Timeout > 0 && e.After >= a.Timeout {
			r.errorf(s.Pos, "range", "use a shorter `after`", "`escalate` starts after %s, but the approval times out after %s",
				duration.Format(e.After), duration.Format(a.Timeout))
		}
		if len(a.Steps) == 0 {
			r.errorf(s.Pos, "required", "add the steps that it permits under `steps`", "the approval has no steps")
		}
	}
}

func (p *parser) parseRetry(n *yaml.Node) *Retry {
	r := &Retry{Attempts: 3, Backoff: time.Second}
	p.parseFields(n, "`retry`", map[string]func(k, v *yaml.Node){
		"attempts": func(_, v *yaml.Node) { r.Attempts = p.parseIntInRange(v, "attempts", 1, 20) },
		"backoff":  func(_, v *yaml.Node) { r.Backoff = p.parseDuration(v, "backoff") },
	})
	return r
}

// parseWait parses `wait: 10m` or `wait: {until: …, timeout: 10m}`.
func (p *parser) parseWait(n *yaml.Node) *Wait {
	w := &Wait{}
	if n.Kind != yaml.MappingNode {
		w.Duration = p.parseDuration(n, "wait")
		return w
	}
	p.parseFields(n, "`wait`", map[string]func(k, v *yaml.Node){
		"until":   func(_, v *yaml.Node) { w.Until = p.parseExpr(v, "until") },
		"timeout": func(_, v *yaml.Node) { w.Timeout = p.parseDuration(v, "timeout") },
	})
	if w.Until == nil {
		p.errorf(nodePos(n), "required", "add `until: EXPRESSION`, or use only a duration: `wait: 10m`",
			"`wait` has no `until`")
	}
	if w.Timeout == 0 {
		p.errorf(nodePos(n), "required", "add a maximum duration: `timeout: 10m`", "`wait` has no `timeout`")
	}
	return w
}

func (p *parser) parseAssignments(n *yaml.Node) []Argument {
	args := p.parseArguments(n, "`set`")
	if n.Kind == yaml.MappingNode && len(args) == 0 {
		p.errorf(nodePos(n), "required", "for example, write `set: {wide: \"${ctx.same_digest_pod_count > 1}\"}`",
			"`set` is empty")
	}
	for _, a := range args {
		if !identifierPattern.MatchString(a.Name) {
			p.errorf(a.Pos, "name", "use letters, digits and `_`, with a letter first", "invalid value name `%s`",
				truncate.Text(a.Name, 40))
		}
	}
	if args == nil {
		args = []Argument{}
	}
	return args
}

func (p *parser) parseStop(n *yaml.Node) *Stop {
	s := &Stop{Outcome: Outcome(p.parseString(n, "stop")), Pos: nodePos(n)}
	if n.Tag == "!!str" && !slices.Contains(StopOutcomes, s.Outcome) {
		var known []string
		for _, o := range StopOutcomes {
			known = append(known, string(o))
		}
		p.errorf(nodePos(n), "value", diagnostic.DidYouMean(n.Value, known), "a playbook cannot stop with the outcome `%s`",
			truncate.Text(n.Value, 40))
	}
	return s
}
