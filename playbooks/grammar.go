package playbooks

import "slices"

// GrammarKey is a key of a step, a playbook or a part of one. Parser, schema and reference page read it from here.
type GrammarKey struct {
	Name     string
	Type     string // what stands there, in words of the reference page
	Doc      string
	Required bool
}

// StepKind is a kind of step: what it does and the keys that it takes besides its own.
type StepKind struct {
	Name string
	Type string // what stands behind the key
	Doc  string
	Keys []GrammarKey
}

// The keys that several kinds take.
var (
	keyID        = GrammarKey{Name: "id", Type: "name", Doc: "the name by which later steps read this one: `NAME.outcome`, `NAME.targets` (how many), `NAME.failed` (those that failed or were refused) and its outputs"}
	keyIf        = GrammarKey{Name: "if", Type: "expression", Doc: "the step runs only where it is true; else its outcome is `skipped`"}
	keyTarget    = GrammarKey{Name: "target", Type: "expression", Doc: "one target or a list; each pod or container with a detection of its own unless said"}
	keyWith      = GrammarKey{Name: "with", Type: "mapping", Doc: "the parameters; a value may be `${expression}`"}
	keyTimeout   = GrammarKey{Name: "timeout", Type: "duration", Doc: "how long it may take; what is not done then has `failed`"}
	keyRetry     = GrammarKey{Name: "retry", Type: "mapping", Doc: "`attempts` (1 to 20) and `backoff`, which doubles: tried again while the outcome is `failed`"}
	keyOnFailure = GrammarKey{Name: "on_failure", Type: "steps", Doc: "run where the outcome is `failed` or `refused`"}
	keyOnDenied  = GrammarKey{Name: "on_denied", Type: "steps", Doc: "run where the outcome is `denied`"}
)

// PlaybookKeys are the keys of a playbook.
var PlaybookKeys = []GrammarKey{
	{Name: "playbook", Type: "name", Doc: "its name: letters, digits and `-`", Required: true},
	{Name: "description", Type: "text", Doc: "what it does, for the responder"},
	{Name: "guide", Type: "text", Doc: "a paragraph for who is woken by it: what has been done by now, what to look at first, when it is a false alarm"},
	{Name: "match", Type: "mapping", Doc: "which incidents it handles; without it (and with `inputs` or `outputs`) only `call` runs it"},
	{Name: "replaces", Type: "name", Doc: "the shipped playbook that is no longer selected, since this one handles its incidents; one of the same name replaces it without this key"},
	{Name: "max_phase", Type: "1, 2 or 3", Doc: "it never goes beyond this phase, whatever the scope allows"},
	{Name: "inputs", Type: "mapping", Doc: "typed values that it takes, read as `inputs.NAME`"},
	{Name: "outputs", Type: "mapping", Doc: "expressions whose values its caller reads"},
	{Name: "steps", Type: "steps", Doc: "what it does, in order", Required: true},
	{Name: "finally", Type: "steps", Doc: "run at the end, whatever happened; they only observe"},
}

// MatchKeys are the keys of `match`: all that is given must hold.
var MatchKeys = []GrammarKey{
	{Name: "objective", Type: "word or list", Doc: "the incident's suspected objective is one of these"},
	{Name: "severity", Type: "severity", Doc: "at least this severe"},
	{Name: "when", Type: "expression", Doc: "true of `incident`"},
	{Name: "priority", Type: "0 to 1000", Doc: "of several that match and contain, only the one with the highest priority runs, and the next only if that one was refused or failed before it contained anything; default 100 for your own, 0 for a shipped one; among equals your own comes first"},
	{Name: "exclusive", Type: "true or false", Doc: "where it matches, none that comes after it starts, not even one that contains nothing"},
}

// InputKeys are the keys of one input.
var InputKeys = []GrammarKey{
	{Name: "type", Type: "type", Doc: "`string`, `integer`, `number`, `boolean`, `strings`, `target` or `targets`", Required: true},
	{Name: "default", Type: "value", Doc: "what it is where nobody gives it"},
	{Name: "enum", Type: "list", Doc: "the only values of a string"},
	{Name: "minimum", Type: "number", Doc: "the least value of a number"},
	{Name: "maximum", Type: "number", Doc: "the greatest value of a number"},
	{Name: "description", Type: "text", Doc: "what it is"},
}

// InputTypes are the types of inputs.
var InputTypes = []string{"string", "integer", "number", "boolean", "strings", "target", "targets"}

// ApproverKeys are the keys of `from`.
var ApproverKeys = []GrammarKey{
	{Name: "groups", Type: "word or list", Doc: "groups of the configuration"},
	{Name: "users", Type: "word or list", Doc: "people of the configuration"},
	{Name: "quorum", Type: "1 to 10", Doc: "how many must say yes; 1 unless said"},
	{Name: "escalate", Type: "mapping", Doc: "who is asked too (`groups`, `users`) when nobody has decided `after` a while"},
}

// StepKinds are the kinds of steps, in the order in which a reader wants to know them.
func StepKinds() []StepKind {
	observing := []GrammarKey{keyID, keyIf, keyTarget, keyWith, keyTimeout, keyRetry, keyOnFailure}
	return []StepKind{
		{Name: "enrich", Type: "action", Doc: "Finds something out. Later steps read its outputs.", Keys: observing},
		{Name: "evidence", Type: "action", Doc: "Captures something before it is gone. On every path to a containment, evidence of the same target comes first.", Keys: observing},
		{Name: "contain", Type: "action", Doc: "Holds an aspect of a target. A reversible containment is a lease: it needs `for`, is verified, and undoes itself.", Keys: []GrammarKey{
			keyID, keyIf, keyTarget, keyWith,
			{Name: "for", Type: "duration", Doc: "how long the lease holds: 5s to 168h; required on reversible actions, forbidden on others"},
			keyTimeout, keyRetry, keyOnFailure, keyOnDenied,
		}},
		{Name: "notify", Type: "action", Doc: "Tells people.", Keys: observing},
		{Name: "ticket", Type: "action", Doc: "Writes a ticket.", Keys: observing},
		{Name: "approval", Type: "title", Doc: "Asks people, and runs the steps that it wraps if they say yes. What they approve is exactly the plan that they were shown.", Keys: []GrammarKey{
			keyID, keyIf,
			{Name: "ask", Type: "text", Doc: "the question; `${expression}` is evaluated"},
			{Name: "from", Type: "mapping", Doc: "who may answer: `groups`, `users`, `quorum`, `escalate`", Required: true},
			{Name: "timeout", Type: "duration", Doc: "how long an answer may take", Required: true},
			{Name: "on_timeout", Type: "deny", Doc: "what silence means; only `deny` can be said, and it must be", Required: true},
			{Name: "steps", Type: "steps", Doc: "what a yes permits", Required: true},
			keyOnFailure, keyOnDenied,
		}},
		{Name: "parallel", Type: "steps", Doc: "Runs its steps at once, each isolated from the others, and waits for all. Its outcome is the worst of theirs.", Keys: []GrammarKey{keyID, keyIf, keyTimeout, keyOnFailure, keyOnDenied}},
		{Name: "foreach", Type: "expression", Doc: "Runs its steps for each element of a list. Its outcome is the worst of theirs.", Keys: []GrammarKey{
			keyID, keyIf,
			{Name: "as", Type: "name", Doc: "the element's name inside; `item` unless said"},
			{Name: "concurrency", Type: "1 to 10", Doc: "how many elements at once; 1 unless said"},
			{Name: "max", Type: "1 to 50", Doc: "more elements than this are `refused` before anything runs; 50 unless said"},
			{Name: "steps", Type: "steps", Doc: "what is done for each", Required: true},
			keyTimeout, keyOnFailure, keyOnDenied,
		}},
		{Name: "call", Type: "playbook", Doc: "Runs another playbook in this one, with typed inputs; its outputs are this step's.", Keys: []GrammarKey{keyID, keyIf, {Name: "with", Type: "mapping", Doc: "its inputs"}, keyTimeout, keyOnFailure, keyOnDenied}},
		{Name: "wait", Type: "duration or mapping", Doc: "Waits for a time; or `until` an expression over `live` (the incident as it is now) holds, at most `timeout`: then the outcome is `failed`.", Keys: []GrammarKey{keyID, keyIf, keyOnFailure}},
		{Name: "set", Type: "mapping", Doc: "Gives values names, which later steps read.", Keys: []GrammarKey{keyIf}},
		{Name: "stop", Type: "outcome", Doc: "Ends the playbook, with `changed`, `unchanged`, `skipped`, `refused` or `failed` as its outcome; `finally` still runs. In a called playbook it ends that one.", Keys: []GrammarKey{
			keyIf, {Name: "reason", Type: "text", Doc: "why; `${expression}` is evaluated"},
		}},
	}
}

// StopOutcomes are the outcomes that `stop` may give.
var StopOutcomes = []Outcome{OutcomeSucceeded, OutcomeChanged, OutcomeUnchanged, OutcomeSkipped, OutcomeRefused, OutcomeFailed}

func stepKindNames() []string {
	var names []string
	for _, k := range StepKinds() {
		names = append(names, k.Name)
	}
	return names
}

// kindAcceptsKey tells whether steps of a kind take a key, and which kinds do.
func kindAcceptsKey(kind, key string) (bool, []string) {
	var kinds []string
	for _, k := range StepKinds() {
		if slices.ContainsFunc(k.Keys, func(o GrammarKey) bool { return o.Name == key }) {
			kinds = append(kinds, k.Name)
		}
	}
	return slices.Contains(kinds, kind), kinds
}
