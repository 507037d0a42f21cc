package playbooks

import (
	"time"

	"go.yaml.in/yaml/v3"
)

// LanguageVersion travels in a playbook workflow's input, so that an edit of the language never changes a run
// that is under way.
const LanguageVersion = 1

// Playbook is a parsed file. Its expressions are text until Check compiles them.
type Playbook struct {
	File        string
	Source      []byte
	Hash        string // SHA-256 of Source, hex
	Name        string
	Description string
	Match       Match
	MaxPhase    int // ceiling on the phase; 3 unless the file says less
	Steps       []Step
}

// Match says which incidents a playbook handles: all that is given must hold.
type Match struct {
	Objectives []string
	Severity   string // at least this
	When       *Expr
}

// Step is one step. Exactly one of Action, Parallel and Approval is set.
type Step struct {
	Pos       Pos
	Path      string // "steps[2].parallel[0]"
	ID        string
	Verb      Verb
	Action    string
	ActionPos Pos
	Parallel  []Step
	Approval  *Approval
	With      []Argument
	If        *Expr
	Target    *Expr
	For       time.Duration
	ForPos    Pos
	Timeout   time.Duration
	Retry     *Retry
	OnFailure []Step
	OnDenied  []Step
}

// Name is the step's id, or its path where it has none.
func (s *Step) Name() string {
	if s.ID != "" {
		return s.ID
	}
	return s.Path
}

// Approval is what an approval step asks, of whom, and what it permits.
type Approval struct {
	Title     string
	Ask       *Text
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

// Retry says how often a failed step is tried again.
type Retry struct {
	Attempts int
	Backoff  time.Duration
}

// Argument is one entry of `with`.
type Argument struct {
	Name  string
	Pos   Pos
	Value Value
}

// Pos is a place in the file, from 1.
type Pos struct{ Line, Column int }

func posOf(n *yaml.Node) Pos { return Pos{n.Line, n.Column} }

// Expr is one expression, with where its first character stands.
type Expr struct {
	Source string
	Pos    Pos
}

// Text is a string with `${…}` in it: parts in turn, text and expression.
type Text struct {
	Parts []TextPart
	Pos   Pos
}

// TextPart is literal text or an expression.
type TextPart struct {
	Literal string
	Expr    *Expr
}

// Value is a parameter's value: one of the fields is set, or none for null.
type Value struct {
	Pos     Pos
	Literal any   // string, int, float64, bool
	Text    *Text // a string with expressions
	Expr    *Expr // a string that is one expression and nothing else keeps the expression's type
	List    []Value
	Map     []Argument
	IsList  bool
	IsMap   bool
}
