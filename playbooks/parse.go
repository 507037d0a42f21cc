package playbooks

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"stanch/sensors/diagnostic"

	"go.yaml.in/yaml/v3"
)

// Limits of a file: past any of them it is refused before it is read further.
const (
	MaxFileBytes = 256 << 10
	MaxNodes     = 20_000
	MaxDepth     = 24
)

// Parse reads one playbook. It never returns a playbook without having read the whole of it; the diagnostics hold
// every problem of syntax, unknown key and malformed value.
func Parse(file string, source []byte) (*Playbook, diagnostic.Diagnostics) {
	p := &parser{file: file}
	sum := sha256.Sum256(source)
	book := &Playbook{File: file, Source: source, Hash: hex.EncodeToString(sum[:]), MaxPhase: 3}
	root := p.document(source)
	if root != nil {
		p.playbook(root, book)
	}
	return book, p.problems.Sorted()
}

type parser struct {
	file     string
	problems diagnostic.Diagnostics
}

func (p *parser) errorf(pos Pos, code, hint, format string, args ...any) {
	if len(p.problems) < 100 {
		p.problems = append(p.problems, diagnostic.Diagnostic{
			File: p.file, Line: max(pos.Line, 1), Column: max(pos.Column, 1),
			Severity: "error", Code: code, Message: fmt.Sprintf(format, args...), Hint: hint,
		})
	}
}

var yamlErrorLine = regexp.MustCompile(`line (\d+):\s*`)

// document decodes the one YAML document of a file and refuses what is too large, too deep or aliased.
func (p *parser) document(source []byte) *yaml.Node {
	if len(source) > MaxFileBytes {
		p.errorf(Pos{1, 1}, "too-large", "split the file", "the file has %d bytes, at most %d are read", len(source), MaxFileBytes)
		return nil
	}
	if !utf8.Valid(source) {
		p.errorf(Pos{1, 1}, "encoding", "save the file as UTF-8", "the file is not UTF-8 text")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			p.errorf(Pos{1, 1}, "empty", "begin with `playbook: NAME`", "the file is empty")
			return nil
		}
		line, text := 1, strings.TrimPrefix(err.Error(), "yaml: ")
		if m := yamlErrorLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = strings.Replace(text, m[0], "", 1)
		}
		p.errorf(Pos{line, 1}, "yaml", "", "not YAML: %s", text)
		return nil
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		p.errorf(posOf(&second), "documents", "put each playbook into a file of its own", "a second document in one file")
	}
	nodes := 0
	if !p.bounded(&doc, 0, &nodes) {
		return nil
	}
	if len(doc.Content) != 1 {
		p.errorf(Pos{1, 1}, "empty", "begin with `playbook: NAME`", "the file holds nothing")
		return nil
	}
	return doc.Content[0]
}

func (p *parser) bounded(n *yaml.Node, depth int, nodes *int) bool {
	*nodes++
	switch {
	case depth > MaxDepth:
		p.errorf(posOf(n), "too-deep", "", "nested more than %d levels deep", MaxDepth)
		return false
	case *nodes > MaxNodes:
		p.errorf(posOf(n), "too-large", "split the file", "more than %d values in one file", MaxNodes)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		p.errorf(posOf(n), "alias", "write the value out", "anchors and aliases are not allowed in a playbook")
		return false
	}
	for _, child := range n.Content {
		if !p.bounded(child, depth+1, nodes) {
			return false
		}
	}
	return true
}

// fields walks a mapping and hands each value to the reader of its key. Unknown and duplicate keys are errors at
// the key.
func (p *parser) fields(n *yaml.Node, what string, readers map[string]func(key, value *yaml.Node)) bool {
	if n.Kind != yaml.MappingNode {
		p.errorf(posOf(n), "type", "", "%s must be a mapping, not %s", what, kindName(n))
		return false
	}
	known := make([]string, 0, len(readers))
	for name := range readers {
		known = append(known, name)
	}
	seen := map[string]Pos{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if first, ok := seen[key.Value]; ok {
			p.errorf(posOf(key), "duplicate-key", "remove one of them", "`%s` is given twice; the first is at line %d", key.Value, first.Line)
			continue
		}
		seen[key.Value] = posOf(key)
		read, ok := readers[key.Value]
		if !ok {
			if later, isLater := laterKeys[key.Value]; isLater {
				p.errorf(posOf(key), "not-implemented", later, "`%s` is not implemented yet", key.Value)
				continue
			}
			p.errorf(posOf(key), "unknown-key", diagnostic.DidYouMean(key.Value, known), "%s has no key `%s`", what, key.Value)
			continue
		}
		read(key, value)
	}
	return true
}

// laterKeys are words of the language that this version does not run. They are errors and never ignored.
var laterKeys = map[string]string{
	"foreach": "give the step a `target` with several targets", "call": "write the steps out",
	"wait": "", "set": "", "stop": "", "finally": "", "inputs": "", "priority": "", "exclusive": "",
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "empty"
		}
		return fmt.Sprintf("`%s`", clip(n.Value, 40))
	default:
		return "this"
	}
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func (p *parser) playbook(n *yaml.Node, book *Playbook) {
	hasMatch := false
	ok := p.fields(n, "a playbook", map[string]func(k, v *yaml.Node){
		"playbook": func(_, v *yaml.Node) {
			book.Name = p.str(v, "playbook")
			if book.Name != "" && !identifier.MatchString(strings.ReplaceAll(book.Name, "-", "_")) {
				p.errorf(posOf(v), "name", "use letters, digits and `-`", "`%s` is not a playbook's name", clip(book.Name, 40))
			}
		},
		"description": func(_, v *yaml.Node) { book.Description = p.str(v, "description") },
		"match":       func(_, v *yaml.Node) { hasMatch = true; p.match(v, &book.Match) },
		"max_phase": func(_, v *yaml.Node) {
			if book.MaxPhase = p.integer(v, "max_phase"); book.MaxPhase < 1 || book.MaxPhase > 3 {
				p.errorf(posOf(v), "range", "", "`max_phase` must be 1, 2 or 3")
			}
		},
		"steps": func(_, v *yaml.Node) { book.Steps = p.steps(v, "steps") },
	})
	if !ok {
		return
	}
	if book.Name == "" {
		p.errorf(posOf(n), "required", "begin with `playbook: NAME`", "`playbook` (its name) is missing")
	}
	if !hasMatch {
		p.errorf(posOf(n), "required", "say `match: {objective: …}`, or `match: {when: \"true\"}` for every incident", "`match` is missing")
	}
	if len(book.Steps) == 0 {
		p.errorf(posOf(n), "required", "", "`steps` is missing or empty")
	}
}

func (p *parser) match(n *yaml.Node, m *Match) {
	p.fields(n, "`match`", map[string]func(k, v *yaml.Node){
		"objective": func(_, v *yaml.Node) { m.Objectives = p.strings(v, "objective") },
		"severity":  func(_, v *yaml.Node) { m.Severity = p.str(v, "severity") },
		"when":      func(_, v *yaml.Node) { m.When = p.expr(v, "when") },
	})
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

func (p *parser) steps(n *yaml.Node, path string) []Step {
	if n.Kind != yaml.SequenceNode {
		p.errorf(posOf(n), "type", "begin each step with `- `", "`%s` must be a list of steps, not %s", lastElement(path), kindName(n))
		return nil
	}
	steps := make([]Step, 0, len(n.Content))
	for i, item := range n.Content {
		steps = append(steps, p.step(item, fmt.Sprintf("%s[%d]", path, i)))
	}
	return steps
}

func lastElement(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

func (p *parser) step(n *yaml.Node, path string) Step {
	s := Step{Pos: posOf(n), Path: path}
	var kinds []string
	approvalKeys := map[string]Pos{}
	approval := &Approval{Quorum: 1}
	hasFrom := false
	readers := map[string]func(k, v *yaml.Node){
		"id": func(_, v *yaml.Node) {
			if s.ID = p.str(v, "id"); s.ID != "" && !identifier.MatchString(s.ID) {
				p.errorf(posOf(v), "name", "use letters, digits and `_`, with a letter first", "`%s` is not an id", clip(s.ID, 40))
			}
		},
		"parallel":   func(_, v *yaml.Node) { kinds = append(kinds, "parallel"); s.Parallel = p.steps(v, path+".parallel") },
		"with":       func(_, v *yaml.Node) { s.With = p.arguments(v, "`with`") },
		"if":         func(_, v *yaml.Node) { s.If = p.expr(v, "if") },
		"target":     func(_, v *yaml.Node) { s.Target = p.expr(v, "target") },
		"for":        func(k, v *yaml.Node) { s.ForPos = posOf(k); s.For = p.duration(v, "for") },
		"on_failure": func(_, v *yaml.Node) { s.OnFailure = p.steps(v, path+".on_failure") },
		"on_denied":  func(_, v *yaml.Node) { s.OnDenied = p.steps(v, path+".on_denied") },
		"retry":      func(_, v *yaml.Node) { s.Retry = p.retry(v) },
		"timeout":    func(_, v *yaml.Node) { s.Timeout = p.duration(v, "timeout"); approval.Timeout = s.Timeout },
		"approval": func(_, v *yaml.Node) {
			kinds = append(kinds, "approval")
			s.Approval, approval.Title = approval, p.str(v, "approval")
		},
		"ask": func(k, v *yaml.Node) { approvalKeys["ask"] = posOf(k); approval.Ask = p.text(v) },
		"from": func(k, v *yaml.Node) {
			approvalKeys["from"], hasFrom = posOf(k), true
			p.from(v, approval)
		},
		"on_timeout": func(k, v *yaml.Node) {
			approvalKeys["on_timeout"] = posOf(k)
			if approval.OnTimeout = p.str(v, "on_timeout"); approval.OnTimeout != "deny" {
				p.errorf(posOf(v), "value", "write `on_timeout: deny`", "`on_timeout` can only be `deny`: silence permits nothing")
			}
		},
		"steps": func(k, v *yaml.Node) { approvalKeys["steps"] = posOf(k); approval.Steps = p.steps(v, path+".steps") },
	}
	for _, verb := range Verbs {
		readers[string(verb)] = func(_, v *yaml.Node) {
			kinds = append(kinds, string(verb))
			s.Verb, s.Action, s.ActionPos = verb, p.str(v, string(verb)), posOf(v)
		}
	}
	if !p.fields(n, "a step", readers) {
		return s
	}
	switch {
	case len(kinds) == 0:
		p.errorf(s.Pos, "required", "give it one of enrich, evidence, contain, approval, notify, ticket, parallel", "the step does nothing")
	case len(kinds) > 1:
		p.errorf(s.Pos, "conflict", "make them steps of their own", "one step cannot be `%s` at once", strings.Join(kinds, "` and `"))
	}
	if s.Approval == nil {
		for key, pos := range approvalKeys {
			p.errorf(pos, "conflict", "begin the step with `approval: TITLE`", "`%s` belongs to an approval step", key)
		}
		return s
	}
	if !hasFrom {
		p.errorf(s.Pos, "required", "say who may approve: `from: {groups: [NAME], quorum: 1}`", "`from` is missing")
	}
	if approval.OnTimeout == "" && approvalKeys["on_timeout"] == (Pos{}) {
		p.errorf(s.Pos, "required", "write `on_timeout: deny`", "`on_timeout` is missing: the safe answer must be explicit")
	}
	if approval.Timeout == 0 {
		p.errorf(s.Pos, "required", "write for example `timeout: 15m`", "`timeout` is missing")
	}
	if e := approval.Escalate; e != nil && approval.Timeout > 0 && e.After >= approval.Timeout {
		p.errorf(s.Pos, "range", "let it begin before the timeout", "`escalate` begins after %s, when the %s of the approval are over", e.After, approval.Timeout)
	}
	if len(approval.Steps) == 0 {
		p.errorf(s.Pos, "required", "put what it permits under `steps`", "the approval permits nothing")
	}
	return s
}

func (p *parser) from(n *yaml.Node, a *Approval) {
	p.fields(n, "`from`", map[string]func(k, v *yaml.Node){
		"groups": func(_, v *yaml.Node) { a.Groups = p.strings(v, "groups") },
		"users":  func(_, v *yaml.Node) { a.Users = p.strings(v, "users") },
		"quorum": func(_, v *yaml.Node) {
			if a.Quorum = p.integer(v, "quorum"); a.Quorum < 1 || a.Quorum > 10 {
				p.errorf(posOf(v), "range", "", "`quorum` must be from 1 to 10")
			}
		},
		"escalate": func(_, v *yaml.Node) { a.Escalate = p.escalate(v) },
	})
	if len(a.Groups)+len(a.Users) == 0 {
		p.errorf(posOf(n), "required", "name `groups` or `users`", "`from` names nobody")
	}
}

func (p *parser) escalate(n *yaml.Node) *Escalation {
	e := &Escalation{}
	p.fields(n, "`escalate`", map[string]func(k, v *yaml.Node){
		"after":  func(_, v *yaml.Node) { e.After = p.duration(v, "after") },
		"groups": func(_, v *yaml.Node) { e.Groups = p.strings(v, "groups") },
		"users":  func(_, v *yaml.Node) { e.Users = p.strings(v, "users") },
	})
	if e.After <= 0 {
		p.errorf(posOf(n), "required", "say from when on: `after: 5m`", "`escalate` has no `after`")
	}
	if len(e.Groups)+len(e.Users) == 0 {
		p.errorf(posOf(n), "required", "name `groups` or `users`", "`escalate` names nobody")
	}
	return e
}

func (p *parser) retry(n *yaml.Node) *Retry {
	r := &Retry{Attempts: 3, Backoff: time.Second}
	p.fields(n, "`retry`", map[string]func(k, v *yaml.Node){
		"attempts": func(_, v *yaml.Node) {
			if r.Attempts = p.integer(v, "attempts"); r.Attempts < 1 || r.Attempts > 20 {
				p.errorf(posOf(v), "range", "", "`attempts` must be from 1 to 20")
			}
		},
		"backoff": func(_, v *yaml.Node) { r.Backoff = p.duration(v, "backoff") },
	})
	return r
}
