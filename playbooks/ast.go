package playbooks

import (
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

// LanguageVersion is part of a playbook workflow's input, so that a language change never affects a run in progress.
// Version 2 has every construct, gives `parallel` the worst outcome of its branches, and makes reading missing outputs
// an error.
const LanguageVersion = 2

// Playbook is a parsed file. Its expressions are text until CheckPlaybook compiles them.
type Playbook struct {
	File           string
	SourceText     []byte
	Hash           string // SHA-256, hex, as HashWithCallees returns it
	Name           string
	NamePos        Pos
	Description    string
	ResponderGuide string // for the responder
	// Shipped is set for a playbook of Stanch's library.
	Shipped bool
	// Replaces is the shipped playbook that this one replaces in selection. The zero value replaces none.
	Replaces Identifier
	// Match is nil for a playbook that runs only by `call`.
	Match    *Match
	MaxPhase int // highest phase that the playbook uses; 3 by default
	Inputs   []Input
	Outputs  []Output
	Steps    []Step
	// Finally runs at the end, whatever the outcome.
	Finally []Step
}

// Match selects the incidents that a playbook handles: all given conditions must be true.
type Match struct {
	Objectives []Identifier
	Severity   Identifier // minimum severity
	When       *Expr
	// Priority decides between playbooks that match and contain: the highest runs. Nil means not given.
	Priority *int
	// Exclusive prevents the start of other matching playbooks of the same or a lower priority.
	Exclusive bool
}

// Identifier is a name in the file and its position.
type Identifier struct {
	Text string
	Pos  Pos
}

// Input is a typed input of a playbook.
type Input struct {
	Name        string
	Pos         Pos
	Type        string // one of InputTypes
	TypePos     Pos
	Default     *Value // nil if the input is required
	Enum        []string
	Minimum     *float64
	Maximum     *float64
	Description string
}

// Output is a value that a playbook returns to its caller.
type Output struct {
	Name string
	Pos  Pos
	Expr *Expr
}

// Step is one step. Exactly one of Action, Parallel, Approval, ForEach, Call, Wait, Set and Stop is set.
type Step struct {
	Pos              Pos
	Path             string // "steps[2].parallel[0]"
	ID               string
	IDPos            Pos
	Verb             Verb
	Action           string
	ActionPos        Pos
	Parallel         []Step
	Approval         *Approval
	ForEach          *ForEach
	Call             *PlaybookCall
	Wait             *Wait
	Assignments      []Argument
	Stop             *Stop
	Arguments        []Argument
	If               *Expr
	Target           *Expr
	LeaseDuration    time.Duration
	LeaseDurationPos Pos
	Timeout          time.Duration
	Retry            *Retry
	OnFailure        []Step
	OnDenied         []Step
	// keyPositions contains the keys that are present, with their positions.
	keyPositions map[string]Pos
}

// Name returns the step's id, or its path if it has none.
func (s *Step) Name() string {
	if s.ID != "" {
		return s.ID
	}
	return s.Path
}

// Kind returns the key that defines the step: a verb, "parallel", "approval", "foreach", "call", "wait", "set" or
// "stop".
func (s *Step) Kind() string {
	switch {
	case s.Parallel != nil:
		return "parallel"
	case s.Approval != nil:
		return "approval"
	case s.ForEach != nil:
		return "foreach"
	case s.Call != nil:
		return "call"
	case s.Wait != nil:
		return "wait"
	case s.Assignments != nil:
		return "set"
	case s.Stop != nil:
		return "stop"
	}
	return string(s.Verb)
}

// StepBlock is a sequence of steps inside a step, with the key that contains it.
type StepBlock struct {
	Kind  string // "parallel", "steps", "on_failure", "on_denied"
	Steps []Step
}

// Blocks returns the non-empty sequences inside the step, in the order of StepBlock.Kind's values.
func (s *Step) Blocks() []StepBlock {
	all := []StepBlock{
		{"parallel", s.Parallel},
		{"steps", s.nestedSteps()},
		{"on_failure", s.OnFailure},
		{"on_denied", s.OnDenied},
	}
	var out []StepBlock
	for _, b := range all {
		if len(b.Steps) > 0 {
			out = append(out, b)
		}
	}
	return out
}

// nestedSteps returns the steps under `steps`.
func (s *Step) nestedSteps() []Step {
	switch {
	case s.Approval != nil:
		return s.Approval.Steps
	case s.ForEach != nil:
		return s.ForEach.Steps
	}
	return nil
}

// Approval is the content of an approval step: the question, its approvers and timeout, and the steps that it permits.
type Approval struct {
	Title     string
	Question  *Template
	OnTimeout string // "deny"
	Approvers
	Steps []Step
}

// ForEach runs its steps for each element of a list.
type ForEach struct {
	List        *Expr
	Variable    string // name of the element inside the loop; "item" by default
	VariablePos Pos
	Concurrency int // iterations that run at the same time; 1 by default
	MaxItems    int // a longer list fails the step; the constant MaxItems by default
	Steps       []Step
}

// MaxItems is the maximum number of elements of a `foreach`.
const MaxItems = 50

// PlaybookCall runs another playbook.
type PlaybookCall struct {
	Playbook string
	Pos      Pos
}

// Wait waits for a duration, or until an expression is true.
type Wait struct {
	Duration time.Duration // 0 if Until is set
	Until    *Expr
	Timeout  time.Duration // maximum wait for Until
}

// Stop ends the playbook.
type Stop struct {
	Outcome Outcome
	Pos     Pos
	Reason  *Template
}

// Retry limits how often a failed step is retried.
type Retry struct {
	Attempts int
	Backoff  time.Duration
}

// Argument is one entry of `with` or `set`.
type Argument struct {
	Name  string
	Pos   Pos
	Value Value
}

// Pos is a position in the file; lines and columns start at 1.
type Pos = yamlnode.Position

func nodePos(n *yaml.Node) Pos { return yamlnode.PositionOf(n) }

// Expr is one expression and the position of its first character.
type Expr struct {
	Source string
	Pos    Pos
}

// Template is a string with `${…}` in it, split into text and expressions.
type Template struct {
	Parts []TemplatePart
	Pos   Pos
}

// TemplatePart is literal text or an expression.
type TemplatePart struct {
	Literal string
	Expr    *Expr
}

// Value is a parameter's value. At most one field is set; none is set for null.
type Value struct {
	Pos      Pos
	Literal  any       // string, int, float64, bool
	Template *Template // a string with expressions
	Expr     *Expr     // a string that is exactly one expression keeps the expression's type
	List     []Value
	Map      []Argument
	IsList   bool
	IsMap    bool
}

// WalkSteps calls visit for every step, in the order of the file.
func (p *Program) WalkSteps(visit func(*Step)) {
	walkSteps(p.Steps, visit)
	walkSteps(p.Finally, visit)
}

func walkSteps(steps []Step, visit func(*Step)) {
	for i := range steps {
		visit(&steps[i])
		for _, b := range steps[i].Blocks() {
			walkSteps(b.Steps, visit)
		}
	}
}
