package testspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// SplitWorkload splits "NAMESPACE/KIND/NAME", or "KIND/NAME" outside Kubernetes. ok is false for other forms.
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

// nonActionStepWords are the values of StepRun.Action for steps that call no action.
var nonActionStepWords = []string{"approval", "parallel", "foreach", "call", "wait", "set", "stop"}

// withCallees returns the programs and those that they call, each once.
func withCallees(programs []*playbooks.Program) []*playbooks.Program {
	var out []*playbooks.Program
	for _, p := range programs {
		for _, one := range append([]*playbooks.Program{p}, p.TransitiveCallees()...) {
			if !slices.ContainsFunc(out, func(o *playbooks.Program) bool { return o.File == one.File && o.Name == one.Name }) {
				out = append(out, one)
			}
		}
	}
	return out
}

type checker struct {
	yamlnode.Reader
	catalog        playbooks.Catalog
	playbookNames  []string
	stepNames      map[string]bool   // names in the form of reports
	stepIDsByPath  map[string]string // id of each step that has one, by path
	approvalTitles []string
}

// CheckTestFile checks tests against the playbooks under test. Unknown names are errors with a hint.
func CheckTestFile(f *TestFile, programs []*playbooks.Program, catalog playbooks.Catalog) diagnostic.Diagnostics {
	c := &checker{
		Reader: yamlnode.Reader{File: f.File}, catalog: catalog, stepNames: map[string]bool{},
		stepIDsByPath: map[string]string{},
	}
	for _, p := range withCallees(programs) {
		c.playbookNames = append(c.playbookNames, p.Name)
		p.WalkSteps(func(s *playbooks.Step) {
			c.stepNames[s.Name()] = true
			if s.ID != "" {
				c.stepIDsByPath[s.Path] = s.ID
			}
			if s.Approval != nil {
				c.approvalTitles = append(c.approvalTitles, s.Approval.Title)
			}
		})
	}
	for _, t := range f.Tests {
		c.checkTest(t)
	}
	return c.Problems.Sorted()
}

func (c *checker) checkTest(t *TestCase) {
	for _, f := range t.FakeResults {
		spec, ok := c.catalog[f.Action]
		if !ok {
			c.reportUnknownAction(f.Pos, f.Action)
			continue
		}
		c.checkFakeResult(f, spec)
	}
	for _, a := range t.ApprovalAnswers {
		if known := slices.Concat(c.approvalTitles, slices.Collect(maps.Keys(c.stepNames))); a.RequestName != "" &&
			!slices.Contains(known, a.RequestName) && !c.isContainment(a.RequestName) {
			c.Errorf(a.positions["to"], "unknown-question",
				diagnostic.DidYouMean(a.RequestName, slices.Concat(known, c.actionNames(playbooks.VerbContain))),
				"unknown approval request, step or containment `%s`", truncate.Text(a.RequestName, 60))
		}
	}
	for _, s := range t.ExpectedSteps {
		c.checkExpectedStep(s)
	}
	for _, n := range t.ForbiddenActions {
		if _, ok := c.catalog[n.Name]; !ok && !c.stepNames[n.Name] {
			c.Errorf(n.Pos, "unknown-action",
				diagnostic.DidYouMean(n.Name, slices.Concat(c.actionNames(""), slices.Collect(maps.Keys(c.stepNames)))),
				"unknown action or step `%s`", truncate.Text(n.Name, 60))
		}
	}
	if t.ExpectedContainments != nil {
		for _, e := range *t.ExpectedContainments {
			c.checkContainmentName(e.positions["action"], e.Action)
			c.checkParams(e.Params, e.Action)
		}
	}
	if t.ExpectedLeases != nil {
		for _, l := range *t.ExpectedLeases {
			c.checkContainmentName(l.positions["action"], l.Action)
		}
	}
}

func (c *checker) checkFakeResult(f *FakeResult, spec playbooks.ActionSpec) {
	contain := spec.Verb == playbooks.VerbContain
	switch {
	case f.Outcome == playbooks.OutcomeUnverified && !contain:
		c.Errorf(f.positions["outcome"], "value", "use changed, unchanged, refused or failed",
			"`%s` cannot be unverified, because it changes nothing", f.Action)
	case f.PlannedChanges != nil && !contain:
		c.Errorf(f.positions["changes"], "conflict", "remove it", "`%s` plans no changes", f.Action)
	case f.Outputs.Node != nil && spec.OutputType() == nil:
		c.Errorf(f.positions["outputs"], "conflict", "remove it", "`%s` has no outputs", f.Action)
	case f.Outputs.Node != nil:
		c.CheckType(f.Outputs.Node, spec.OutputType(), "`outputs` of "+f.Action)
	}
}

func (c *checker) checkExpectedStep(s *ExpectedStep) {
	if name := LastStepName(s.StepName); name != "" && !c.stepNames[name] {
		hint := diagnostic.DidYouMean(name, slices.Collect(maps.Keys(c.stepNames)))
		if id, ok := c.stepIDsByPath[name]; ok {
			hint = fmt.Sprintf("use its ID `%s`", id)
		}
		c.Errorf(s.positions["step"], "unknown-step", hint, "unknown step `%s`", truncate.Text(name, 60))
	}
	if s.Playbook != "" && !slices.Contains(c.playbookNames, s.Playbook) {
		c.Errorf(s.positions["playbook"], "unknown-playbook", diagnostic.DidYouMean(s.Playbook, c.playbookNames),
			"unknown playbook `%s`; it is not under test here", truncate.Text(s.Playbook, 60))
	}
	if _, ok := c.catalog[s.Action]; s.Action != "" && !ok && !slices.Contains(nonActionStepWords, s.Action) {
		c.reportUnknownAction(s.positions["action"], s.Action)
	}
	c.checkParams(s.Params, s.Action)
}

// checkParams checks parameters whose action is known.
func (c *checker) checkParams(v yamlnode.Value, action string) {
	spec, ok := c.catalog[action]
	switch {
	case v.Node == nil || !ok:
	case spec.ParamType() == nil:
		c.Errorf(yamlnode.PositionOf(v.Node), "conflict", "remove it", "`%s` has no parameters", action)
	default:
		c.CheckType(v.Node, spec.ParamType(), "`with` of "+action)
	}
}

func (c *checker) isContainment(action string) bool {
	return c.catalog[action].Verb == playbooks.VerbContain
}

func (c *checker) checkContainmentName(at Pos, action string) {
	if action != "" && !c.isContainment(action) {
		c.Errorf(at, "unknown-action", diagnostic.DidYouMean(action, c.actionNames(playbooks.VerbContain)),
			"unknown containment `%s`", truncate.Text(action, 60))
	}
}

func (c *checker) reportUnknownAction(at Pos, action string) {
	c.Errorf(at, "unknown-action", diagnostic.DidYouMean(action, c.actionNames("")), "unknown action `%s`",
		truncate.Text(action, 60))
}

// actionNames returns the actions of a verb, or all actions for "".
func (c *checker) actionNames(verb playbooks.Verb) []string {
	var out []string
	for name, spec := range c.catalog {
		if verb == "" || spec.Verb == verb {
			out = append(out, name)
		}
	}
	return out
}
