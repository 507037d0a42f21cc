package playbooks

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
)

var identifierPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

func (p *parser) parsePlaybook(n *yaml.Node, book *Playbook) {
	named := false
	ok := p.parseFields(n, "a playbook", map[string]func(k, v *yaml.Node){
		"playbook": func(_, v *yaml.Node) {
			named = true
			book.Name, book.NamePos = p.parseString(v, "playbook"), nodePos(v)
			if !identifierPattern.MatchString(strings.ReplaceAll(book.Name, "-", "_")) && v.Tag == "!!str" {
				p.errorf(nodePos(v), "name", "use letters, digits and `-`, with a letter first", "invalid playbook name `%s`",
					truncate.Text(book.Name, 40))
			}
		},
		"description": func(_, v *yaml.Node) { book.Description = p.parseString(v, "description") },
		"guide":       func(_, v *yaml.Node) { book.ResponderGuide = p.parseGuide(v) },
		"match":       func(_, v *yaml.Node) { book.Match = p.parseMatch(v) },
		"replaces":    func(_, v *yaml.Node) { book.Replaces = Identifier{p.parseString(v, "replaces"), nodePos(v)} },
		"max_phase":   func(_, v *yaml.Node) { book.MaxPhase = p.parseIntInRange(v, "max_phase", 1, 3) },
		"inputs":      func(_, v *yaml.Node) { book.Inputs = p.parseInputs(v) },
		"outputs":     func(_, v *yaml.Node) { book.Outputs = p.parseOutputs(v) },
		"steps":       func(_, v *yaml.Node) { book.Steps = p.parseSteps(v, "steps") },
		"finally":     func(_, v *yaml.Node) { book.Finally = p.parseSteps(v, "finally") },
	})
	if !ok {
		return
	}
	if !named {
		p.errorf(nodePos(n), "required", "begin with `playbook: NAME`", "`playbook` (its name) is missing")
	}
	if book.Match == nil && book.Inputs == nil && book.Outputs == nil {
		p.errorf(nodePos(n), "required", "add `match: {objective: …}`, or `inputs` or `outputs` if only `call` runs it",
			"`match` is missing")
	}
	if len(book.Steps) == 0 {
		p.errorf(nodePos(n), "required", "", "`steps` is missing or empty")
	}
}

// MaxGuideBytes is the maximum size of a guide in bytes. The guide is part of each run's input.
const MaxGuideBytes = 2000

func (p *parser) parseGuide(n *yaml.Node) string {
	text := p.parseString(n, "guide")
	if len(text) > MaxGuideBytes {
		p.errorf(nodePos(n), "too-large", "move the rest to other documentation",
			"the guide is %d bytes; the maximum is %d", len(text), MaxGuideBytes)
	}
	return strings.TrimSpace(text)
}

func (p *parser) parseMatch(n *yaml.Node) *Match {
	m := &Match{}
	given := p.parseFields(n, "`match`", map[string]func(k, v *yaml.Node){
		"objective": func(_, v *yaml.Node) { m.Objectives = p.parseIdentifiers(v, "objective") },
		"severity":  func(_, v *yaml.Node) { m.Severity = Identifier{p.parseString(v, "severity"), nodePos(v)} },
		"when":      func(_, v *yaml.Node) { m.When = p.parseExpr(v, "when") },
		"priority": func(_, v *yaml.Node) {
			n := p.parseIntInRange(v, "priority", 0, 1000)
			m.Priority = &n
		},
		"exclusive": func(_, v *yaml.Node) { m.Exclusive = p.parseBool(v, "exclusive") },
	})
	if given && len(m.Objectives) == 0 && m.Severity.Text == "" && m.When == nil && len(p.Problems) == 0 {
		p.errorf(nodePos(n), "required", "add `objective`, `severity` or `when`; `when: \"true\"` matches every incident",
			"`match` is empty")
	}
	return m
}

func (p *parser) parseInputs(n *yaml.Node) []Input {
	inputs := []Input{}
	p.parseEntries(n, "`inputs`", func(k, v *yaml.Node) {
		in := Input{Name: k.Value, Pos: nodePos(k), TypePos: nodePos(v)}
		p.checkIdentifier(k, "an input")
		ok := p.parseFields(v, "an input", map[string]func(k, v *yaml.Node){
			"type": func(_, v *yaml.Node) { in.Type, in.TypePos = p.parseString(v, "type"), nodePos(v) },
			"default": func(_, v *yaml.Node) {
				value := p.parseValue(v)
				in.Default = &value
			},
			"enum":        func(_, v *yaml.Node) { in.Enum = p.parseStrings(v, "enum") },
			"minimum":     func(_, v *yaml.Node) { in.Minimum = p.parseNumber(v, "minimum") },
			"maximum":     func(_, v *yaml.Node) { in.Maximum = p.parseNumber(v, "maximum") },
			"description": func(_, v *yaml.Node) { in.Description = p.parseString(v, "description") },
		})
		switch {
		case !ok:
		case in.Type == "":
			p.errorf(nodePos(k), "required", "for example, write `type: string`", "the input `%s` has no `type`", k.Value)
		case !slices.Contains(InputTypes, in.Type):
			p.errorf(in.TypePos, "value", diagnostic.DidYouMean(in.Type, InputTypes), "unknown input type `%s`",
				truncate.Text(in.Type, 40))
			in.Type = ""
		}
		inputs = append(inputs, in)
	})
	return inputs
}

func (p *parser) parseOutputs(n *yaml.Node) []Output {
	outputs := []Output{}
	p.parseEntries(n, "`outputs`", func(k, v *yaml.Node) {
		p.checkIdentifier(k, "an output")
		outputs = append(outputs, Output{Name: k.Value, Pos: nodePos(k), Expr: p.parseExpr(v, k.Value)})
	})
	return outputs
}

// checkIdentifier checks a name that expressions use.
func (p *parser) checkIdentifier(k *yaml.Node, what string) {
	if !identifierPattern.MatchString(k.Value) {
		p.errorf(nodePos(k), "name", "use letters, digits and `_`, with a letter first", "invalid name `%s` for %s",
			truncate.Text(k.Value, 40), what)
	}
}

func (p *parser) parseApprovers(n *yaml.Node, a *Approval) {
	ok := p.parseFields(n, "`from`", map[string]func(k, v *yaml.Node){
		"groups":   func(_, v *yaml.Node) { a.Groups = p.parseStrings(v, "groups") },
		"users":    func(_, v *yaml.Node) { a.Users = p.parseStrings(v, "users") },
		"quorum":   func(_, v *yaml.Node) { a.Quorum = p.parseIntInRange(v, "quorum", 1, 10) },
		"escalate": func(_, v *yaml.Node) { a.Escalate = p.parseEscalation(v) },
	})
	if ok && len(a.Groups)+len(a.Users) == 0 {
		p.errorf(nodePos(n), "required", "add `groups` or `users`", "`from` has no approvers")
	}
}

func (p *parser) parseEscalation(n *yaml.Node) *Escalation {
	e := &Escalation{}
	ok := p.parseFields(n, "`escalate`", map[string]func(k, v *yaml.Node){
		"after":  func(_, v *yaml.Node) { e.After = p.parseDuration(v, "after") },
		"groups": func(_, v *yaml.Node) { e.Groups = p.parseStrings(v, "groups") },
		"users":  func(_, v *yaml.Node) { e.Users = p.parseStrings(v, "users") },
	})
	if ok && e.After <= 0 {
		p.errorf(nodePos(n), "required", "add a duration: `after: 5m`", "`escalate` has no `after`")
	}
	if ok && len(e.Groups)+len(e.Users) == 0 {
		p.errorf(nodePos(n), "required", "add `groups` or `users`", "`escalate` has no approvers")
	}
	return e
}
