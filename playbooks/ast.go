package playbooks

import (
	"time"

	"stanch/sensors/yamlnode"

	"go.yaml.in/yaml/v3"
)

// LanguageVersion travels in a playbook workflow's input, so that an edit of the language never changes a run
// that is under way. Version 2 has every construct, gives `parallel` the worst outcome of its branches, and does not
// read outputs that are not there.
const LanguageVersion = 2

// Playbook is a parsed file. Its expressions are text until Check compiles them.
type Playbook struct {
	File           string
	SourceText     []byte
	Hash           string // SHA-256, hex: of Source, and of the playbooks that it calls where it calls any
	Name           string
	NamePos        Pos
	Description    string
	ResponderGuide string // for the responder
	// Shipped: it is one of the library's and not of a user.
	Shipped bool
	// Replaces is the shipped playbook that is not selected beside this one; the zero value replaces none.
	Replaces Identifier
	// Match is nil where only `call` runs the playbook.
	Match    *Match
	MaxPhase int // ceiling on the phase; 3 unless the file says less
	Inputs   []Input
	Outputs  []Output
	Steps    []Step
	// Finally runs at the end, whatever happened.
	Finally []Step
}

// Match says which incidents a playbook handles: all that is given must hold.
type Match struct {
	Objectives []Identifier
	Severity   Identifier // at least this
	When       *Expr
	// Priority: of several playbooks that match and contain, the highest runs. Nil is not given.
	Priority *int
	// Exclusive: where it matches, none of the same or a lower priority is started.
	Exclusive bool
}

// Identifier is a word of the file and where it stands.
type Identifier struct {
	Text string
	Pos  Pos
}

// Input is a value that a playbook takes, typed.
type Input struct {
	Name        string
	Pos         Pos
	Type        string // one of InputTypes
	TypePos     Pos
	Default     *Value // nil: it must be given
	Enum        []string
	Minimum     *float64
	Maximum     *float64
	Description string
}

// Output is a value that a playbook gives to its caller.
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
	// keyPositions are the keys that were given and where they stand.
	keyPositions map[string]Pos
}

// Name is the step's id, or its path where it has none.
func (s *Step) Name() string {
	if s.ID != "" {
		return s.ID
	}
	return s.Path
}

// Kind is the key that says what the step is: a verb, "parallel", "approval", "foreach", "call", "wait", "set" or "stop".
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

// StepBlock is a sequence of steps inside of a step, under the key that holds it.
type StepBlock struct {
	Kind  string // "parallel", "steps", "on_failure", "on_denied"
	Steps []Step
}

// Blocks are the sequences inside of the step that are not empty, in the order of their keys above.
func (s *Step) Blocks() []StepBlock {
	all := []StepBlock{{"parallel", s.Parallel}, {"steps", s.nestedSteps()}, {"on_failure", s.OnFailure}, {"on_denied", s.OnDenied}}
	var out []StepBlock
	for _, b := range all {
		if len(b.Steps) > 0 {
			out = append(out, b)
		}
	}
	return out
}

// nestedSteps is what stands under `steps`.
func (s *Step) nestedSteps() []Step {
	switch {
	case s.Approval != nil:
		return s.Approval.Steps
	case s.ForEach != nil:
		return s.ForEach.Steps
	}
	return nil
}

// Approval is what an approval step asks, of whom, and what it permits.
type Approval struct {
	Title     string
	Question  *Template
	Groups    []string
	Users     []string
	Quorum    int
	Escalate  *Escalation // nil: nobody else is asked
	Timeout   time.Duration
	OnTimeout string // "deny"
	Steps     []Step
}

// Escalation says who is asked too when nobody has decided for a while.
type Escalation struct {
	After  time.Duration
	Groups []string
	Users  []string
}

// ForEach runs its steps for each element of a list.
type ForEach struct {
	List        *Expr
	Variable    string // the element's name inside; "item" unless said
	VariablePos Pos
	Concurrency int // how many at once; 1 unless said
	MaxItems    int // more elements than this fail the step; MaxItems unless said
	Steps       []Step
}

// MaxItems bounds the elements of a `foreach`.
const MaxItems = 50

// PlaybookCall runs another playbook.
type PlaybookCall struct {
	Playbook string
	Pos      Pos
}

// Wait waits for a time, or until an expression holds.
type Wait struct {
	Duration time.Duration // 0 where Until is set
	Until    *Expr
	Timeout  time.Duration // of Until
}

// Stop ends the playbook.
type Stop struct {
	Outcome Outcome
	Pos     Pos
	Reason  *Template
}

// Retry says how often a failed step is tried again.
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

// Pos is a place in the file, from 1.
type Pos = yamlnode.Position

func nodePos(n *yaml.Node) Pos { return yamlnode.PositionOf(n) }

// Expr is one expression, with where its first character stands.
type Expr struct {
	Source string
	Pos    Pos
}

// Template is a string with `${…}` in it: parts in turn, text and expression.
type Template struct {
	Parts []TemplatePart
	Pos   Pos
}

// TemplatePart is literal text or an expression.
type TemplatePart struct {
	Literal string
	Expr    *Expr
}

// Value is a parameter's value: one of the fields is set, or none for null.
type Value struct {
	Pos      Pos
	Literal  any       // string, int, float64, bool
	Template *Template // a string with expressions
	Expr     *Expr     // a string that is one expression and nothing else keeps the expression's type
	List     []Value
	Map      []Argument
	IsList   bool
	IsMap    bool
}
