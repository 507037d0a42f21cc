package scenario

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// SplitWorkload reads "namespace/Kind/name", or "Kind/name" outside of Kubernetes.
func SplitWorkload(s string) (namespace, kind, name string, ok bool) {
	parts := strings.Split(s, "/")
	if slices.Contains(parts, "") {
		return "", "", "", false
	}
	switch len(parts) {
	case 2:
		return "", parts[0], parts[1], true
	case 3:
		return parts[0], parts[1], parts[2], true
	}
	return "", "", "", false
}

// reported are words that stand for an action in the report of a step that calls none.
var reported = []string{"approval", "parallel", "foreach", "call", "wait", "set", "stop"}

// family are programs with those that they call, each once.
func family(programs []*playbooks.Program) []*playbooks.Program {
	var out []*playbooks.Program
	for _, p := range programs {
		for _, one := range append([]*playbooks.Program{p}, p.Called()...) {
			if !slices.ContainsFunc(out, func(o *playbooks.Program) bool { return o.File == one.File && o.Name == one.Name }) {
				out = append(out, one)
			}
		}
	}
	return out
}

type checker struct {
	yamlnode.Reader
	catalogue playbooks.Catalogue
	books     []string
	steps     map[string]bool   // names as reports have them
	paths     map[string]string // of steps that have an id, to the id
	titles    []string
}

// Check checks the tests against the playbooks that they test: what does not exist is an error with a hint.
func Check(f *File, programs []*playbooks.Program, catalogue playbooks.Catalogue) diagnostic.Diagnostics {
	c := &checker{Reader: yamlnode.Reader{File: f.File}, catalogue: catalogue, steps: map[string]bool{}, paths: map[string]string{}}
	for _, p := range family(programs) {
		c.books = append(c.books, p.Name)
		p.Walk(func(s *playbooks.Step) {
			c.steps[s.Name()] = true
			if s.ID != "" {
				c.paths[s.Path] = s.ID
			}
			if s.Approval != nil {
				c.titles = append(c.titles, s.Approval.Title)
			}
		})
	}
	for _, t := range f.Tests {
		c.test(t)
	}
	return c.Problems.Sorted()
}

func (c *checker) test(t *Test) {
	for _, f := range t.Fakes {
		spec, ok := c.catalogue[f.Action]
		if !ok {
			c.unknownAction(f.Pos, f.Action)
			continue
		}
		c.fake(f, spec)
	}
	for _, a := range t.Answers {
		if known := slices.Concat(c.titles, slices.Collect(maps.Keys(c.steps))); a.To != "" && !slices.Contains(known, a.To) && !c.contains(a.To) {
			c.Errorf(a.at["to"], "unknown-question", diagnostic.DidYouMean(a.To, slices.Concat(known, c.names(playbooks.VerbContain))), "no question, step or containment is called `%s`", yamlnode.Truncate(a.To, 60))
		}
	}
	for _, s := range t.Expect {
		c.step(s)
	}
	for _, n := range t.Never {
		if _, ok := c.catalogue[n.Path]; !ok && !c.steps[n.Path] {
			c.Errorf(n.Pos, "unknown-action", diagnostic.DidYouMean(n.Path, slices.Concat(c.names(""), slices.Collect(maps.Keys(c.steps)))), "there is no action and no step `%s`", yamlnode.Truncate(n.Path, 60))
		}
	}
	if t.Effects != nil {
		for _, e := range *t.Effects {
			c.containment(e.at["action"], e.Action)
			c.with(e.With, e.Action)
		}
	}
	if t.Leases != nil {
		for _, l := range *t.Leases {
			c.containment(l.at["action"], l.Action)
		}
	}
}

func (c *checker) fake(f *Fake, spec playbooks.Spec) {
	contain := spec.Verb == playbooks.VerbContain
	switch {
	case f.Outcome == playbooks.OutcomeUnverified && !contain:
		c.Errorf(f.at["outcome"], "value", "changed, unchanged, refused or failed", "`%s` changes nothing that could be unverified", f.Action)
	case f.Changes != nil && !contain:
		c.Errorf(f.at["changes"], "conflict", "remove it", "`%s` plans no changes", f.Action)
	case f.Outputs.Node != nil && spec.OutputType() == nil:
		c.Errorf(f.at["outputs"], "conflict", "remove it", "`%s` has no outputs", f.Action)
	case f.Outputs.Node != nil:
		c.CheckType(f.Outputs.Node, spec.OutputType(), "`outputs` of "+f.Action)
	}
}

func (c *checker) step(s *Step) {
	if name := Last(s.Step); name != "" && !c.steps[name] {
		hint := diagnostic.DidYouMean(name, slices.Collect(maps.Keys(c.steps)))
		if id, ok := c.paths[name]; ok {
			hint = fmt.Sprintf("it is called `%s`", id)
		}
		c.Errorf(s.at["step"], "unknown-step", hint, "no step is called `%s`", yamlnode.Truncate(name, 60))
	}
	if s.Playbook != "" && !slices.Contains(c.books, s.Playbook) {
		c.Errorf(s.at["playbook"], "unknown-playbook", diagnostic.DidYouMean(s.Playbook, c.books), "no playbook that is tested here is called `%s`", yamlnode.Truncate(s.Playbook, 60))
	}
	if _, ok := c.catalogue[s.Action]; s.Action != "" && !ok && !slices.Contains(reported, s.Action) {
		c.unknownAction(s.at["action"], s.Action)
	}
	c.with(s.With, s.Action)
}

// with checks parameters where it is known whose they are.
func (c *checker) with(v yamlnode.Value, action string) {
	spec, ok := c.catalogue[action]
	switch {
	case v.Node == nil || !ok:
	case spec.ParamType() == nil:
		c.Errorf(yamlnode.PositionOf(v.Node), "conflict", "remove it", "`%s` has no parameters", action)
	default:
		c.CheckType(v.Node, spec.ParamType(), "`with` of "+action)
	}
}

func (c *checker) contains(action string) bool {
	return c.catalogue[action].Verb == playbooks.VerbContain
}

func (c *checker) containment(at Pos, action string) {
	if action != "" && !c.contains(action) {
		c.Errorf(at, "unknown-action", diagnostic.DidYouMean(action, c.names(playbooks.VerbContain)), "there is no containment `%s`", yamlnode.Truncate(action, 60))
	}
}

func (c *checker) unknownAction(at Pos, action string) {
	c.Errorf(at, "unknown-action", diagnostic.DidYouMean(action, c.names("")), "there is no action `%s`", yamlnode.Truncate(action, 60))
}

// names are the actions of a verb, or all of them.
func (c *checker) names(verb playbooks.Verb) []string {
	var out []string
	for name, spec := range c.catalogue {
		if verb == "" || spec.Verb == verb {
			out = append(out, name)
		}
	}
	return out
}
