package playbooks

import (
	"regexp"
	"slices"
	"strings"

	"stanch/sensors/diagnostic"

	"go.yaml.in/yaml/v3"
)

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

func (p *parser) playbook(n *yaml.Node, book *Playbook) {
	named := false
	ok := p.fields(n, "a playbook", map[string]func(k, v *yaml.Node){
		"playbook": func(_, v *yaml.Node) {
			named = true
			book.Name, book.NamePos = p.str(v, "playbook"), posOf(v)
			if !identifier.MatchString(strings.ReplaceAll(book.Name, "-", "_")) && v.Tag == "!!str" {
				p.errorf(posOf(v), "name", "use letters, digits and `-`, with a letter first", "`%s` is not a playbook's name", clip(book.Name, 40))
			}
		},
		"description": func(_, v *yaml.Node) { book.Description = p.str(v, "description") },
		"guide":       func(_, v *yaml.Node) { book.Guide = p.guide(v) },
		"match":       func(_, v *yaml.Node) { book.Match = p.match(v) },
		"replaces":    func(_, v *yaml.Node) { book.Replaces = Word{p.str(v, "replaces"), posOf(v)} },
		"max_phase":   func(_, v *yaml.Node) { book.MaxPhase = p.between(v, "max_phase", 1, 3) },
		"inputs":      func(_, v *yaml.Node) { book.Inputs = p.inputs(v) },
		"outputs":     func(_, v *yaml.Node) { book.Outputs = p.outputs(v) },
		"steps":       func(_, v *yaml.Node) { book.Steps = p.steps(v, "steps") },
		"finally":     func(_, v *yaml.Node) { book.Finally = p.steps(v, "finally") },
	})
	if !ok {
		return
	}
	if !named {
		p.errorf(posOf(n), "required", "begin with `playbook: NAME`", "`playbook` (its name) is missing")
	}
	if book.Match == nil && book.Inputs == nil && book.Outputs == nil {
		p.errorf(posOf(n), "required", "say `match: {objective: …}`; or give it `inputs` or `outputs` if only `call` is to run it", "`match` is missing")
	}
	if len(book.Steps) == 0 {
		p.errorf(posOf(n), "required", "", "`steps` is missing or empty")
	}
}

// MaxGuide bounds a guide, in bytes: it travels with each run and is read by night.
const MaxGuide = 2000

func (p *parser) guide(n *yaml.Node) string {
	text := p.str(n, "guide")
	if len(text) > MaxGuide {
		p.errorf(posOf(n), "too-large", "say the rest where it is read by day", "the guide has %d bytes, at most %d are shown", len(text), MaxGuide)
	}
	return strings.TrimSpace(text)
}

func (p *parser) match(n *yaml.Node) *Match {
	m := &Match{}
	given := p.fields(n, "`match`", map[string]func(k, v *yaml.Node){
		"objective": func(_, v *yaml.Node) { m.Objectives = p.words(v, "objective") },
		"severity":  func(_, v *yaml.Node) { m.Severity = Word{p.str(v, "severity"), posOf(v)} },
		"when":      func(_, v *yaml.Node) { m.When = p.expr(v, "when") },
		"priority": func(_, v *yaml.Node) {
			n := p.between(v, "priority", 0, 1000)
			m.Priority = &n
		},
		"exclusive": func(_, v *yaml.Node) { m.Exclusive = p.boolean(v, "exclusive") },
	})
	if given && len(m.Objectives) == 0 && m.Severity.Text == "" && m.When == nil && len(p.Problems) == 0 {
		p.errorf(posOf(n), "required", "say `objective`, `severity` or `when`; `when: \"true\"` for every incident", "`match` says nothing")
	}
	return m
}

func (p *parser) inputs(n *yaml.Node) []Input {
	inputs := []Input{}
	p.entries(n, "`inputs`", func(k, v *yaml.Node) {
		in := Input{Name: k.Value, Pos: posOf(k), TypePos: posOf(v)}
		p.named(k, "an input")
		ok := p.fields(v, "an input", map[string]func(k, v *yaml.Node){
			"type": func(_, v *yaml.Node) { in.Type, in.TypePos = p.str(v, "type"), posOf(v) },
			"default": func(_, v *yaml.Node) {
				value := p.value(v)
				in.Default = &value
			},
			"enum":        func(_, v *yaml.Node) { in.Enum = p.strings(v, "enum") },
			"minimum":     func(_, v *yaml.Node) { in.Minimum = p.number(v, "minimum") },
			"maximum":     func(_, v *yaml.Node) { in.Maximum = p.number(v, "maximum") },
			"description": func(_, v *yaml.Node) { in.Description = p.str(v, "description") },
		})
		switch {
		case !ok:
		case in.Type == "":
			p.errorf(posOf(k), "required", "say for example `type: string`", "the input `%s` has no `type`", k.Value)
		case !slices.Contains(InputTypes, in.Type):
			p.errorf(in.TypePos, "value", diagnostic.DidYouMean(in.Type, InputTypes), "`%s` is not a type of inputs", clip(in.Type, 40))
			in.Type = ""
		}
		inputs = append(inputs, in)
	})
	return inputs
}

func (p *parser) outputs(n *yaml.Node) []Output {
	outputs := []Output{}
	p.entries(n, "`outputs`", func(k, v *yaml.Node) {
		p.named(k, "an output")
		outputs = append(outputs, Output{Name: k.Value, Pos: posOf(k), Expr: p.expr(v, k.Value)})
	})
	return outputs
}

// named checks a name that expressions will use.
func (p *parser) named(k *yaml.Node, what string) {
	if !identifier.MatchString(k.Value) {
		p.errorf(posOf(k), "name", "use letters, digits and `_`, with a letter first", "`%s` is not the name of %s", clip(k.Value, 40), what)
	}
}

func (p *parser) from(n *yaml.Node, a *Approval) {
	ok := p.fields(n, "`from`", map[string]func(k, v *yaml.Node){
		"groups":   func(_, v *yaml.Node) { a.Groups = p.strings(v, "groups") },
		"users":    func(_, v *yaml.Node) { a.Users = p.strings(v, "users") },
		"quorum":   func(_, v *yaml.Node) { a.Quorum = p.between(v, "quorum", 1, 10) },
		"escalate": func(_, v *yaml.Node) { a.Escalate = p.escalate(v) },
	})
	if ok && len(a.Groups)+len(a.Users) == 0 {
		p.errorf(posOf(n), "required", "name `groups` or `users`", "`from` names nobody")
	}
}

func (p *parser) escalate(n *yaml.Node) *Escalation {
	e := &Escalation{}
	ok := p.fields(n, "`escalate`", map[string]func(k, v *yaml.Node){
		"after":  func(_, v *yaml.Node) { e.After = p.duration(v, "after") },
		"groups": func(_, v *yaml.Node) { e.Groups = p.strings(v, "groups") },
		"users":  func(_, v *yaml.Node) { e.Users = p.strings(v, "users") },
	})
	if ok && e.After <= 0 {
		p.errorf(posOf(n), "required", "say from when on: `after: 5m`", "`escalate` has no `after`")
	}
	if ok && len(e.Groups)+len(e.Users) == 0 {
		p.errorf(posOf(n), "required", "name `groups` or `users`", "`escalate` names nobody")
	}
	return e
}
