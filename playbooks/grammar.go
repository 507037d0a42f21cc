package playbooks

import "slices"

// GrammarKey is a key of a step, a playbook or a part of one. The parser, the schema and the reference page use it.
type GrammarKey struct {
	Name     string
	Type     string // type of the value, in the words of the reference page
	Doc      string
	Required bool
}

// StepKind is a kind of step: its description and the keys that it accepts besides its own.
type StepKind struct {
	Name string
	Type string // type of the value of its own key
	Doc  string
	Keys []GrammarKey
}

// Keys that several kinds accept.
var (
	keyID = GrammarKey{
		Name: "id",
		Type: "name",
		Doc:  "the name by which later steps refer to this one: `NAME.outcome`, `NAME.targets` (the number of targets), `NAME.failed` (the targets that failed or were refused), and its outputs",
	}
	keyIf = GrammarKey{
		Name: "if", Type: "expression",
		Doc: "the step runs only if this is true; otherwise its outcome is `skipped`",
	}
	keyTarget = GrammarKey{
		Name: "target", Type: "expression",
		Doc: "one target or a list; by default, each pod or container that has its own detection",
	}
	keyWith    = GrammarKey{Name: "with", Type: "mapping", Doc: "the parameters; a value may be `${expression}`"}
	keyTimeout = GrammarKey{
		Name: "timeout", Type: "duration",
		Doc: "the maximum duration; targets that are not done by then have the outcome `failed`",
	}
	keyRetry = GrammarKey{
		Name: "retry", Type: "mapping",
		Doc: "`attempts` (1 to 20) and `backoff` (doubles each time): retries while the outcome is `failed`",
	}
	keyOnFailure = GrammarKey{Name: "on_failure", Type: "steps", Doc: "run if the outcome is `failed` or `refused`"}
	keyOnDenied  = GrammarKey{Name: "on_denied", Type: "steps", Doc: "run if the outcome is `denied`"}
)

// PlaybookKeys are the keys of a playbook.
var PlaybookKeys = []GrammarKey{
	{Name: "playbook", Type: "name", Doc: "the name: letters, digits, and `-`", Required: true},
	{Name: "description", Type: "text", Doc: "what the playbook does, for the responder"},
	{
		Name: "guide",
		Type: "text",
		Doc:  "a paragraph for the responder on call: what was done so far, what to check first, and when it is a false positive",
	},
	{
		Name: "match",
		Type: "mapping",
		Doc:  "which incidents the playbook handles; if it is omitted (and `inputs` or `outputs` is given), the playbook runs only through `call`",
	},
	{
		Name: "replaces",
		Type: "name",
		Doc:  "the shipped playbook that this one replaces; a playbook with the same name replaces it without this key",
	},
	{Name: "max_phase", Type: "1, 2 or 3", Doc: "the maximum phase of this playbook, even if the scope allows more"},
	{Name: "inputs", Type: "mapping", Doc: "typed input values, read as `inputs.NAME`"},
	{Name: "outputs", Type: "mapping", Doc: "expressions whose values the calling playbook can read"},
	{Name: "steps", Type: "steps", Doc: "the steps, in order", Required: true},
	{Name: "finally", Type: "steps", Doc: "steps that always run at the end; only `observe` actions are allowed"},
}

// MatchKeys are the keys of `match`; all given conditions must be true.
var MatchKeys = []GrammarKey{
	{Name: "objective", Type: "word or list", Doc: "the incident's suspected objective is one of these"},
	{Name: "severity", Type: "severity", Doc: "the incident has at least this severity"},
	{Name: "when", Type: "expression", Doc: "a condition on `incident`"},
	{
		Name: "priority",
		Type: "0 to 1000",
		Doc:  "if several matching playbooks include containments, only the one with the highest priority runs; the next one runs only if the first was refused or failed before it contained anything. Default: 100 for yours, 0 for a shipped one; in a tie, yours comes first",
	},
	{
		Name: "exclusive", Type: "true or false",
		Doc: "if it matches, no playbook with a lower priority starts, not even one without containment steps",
	},
}

// InputKeys are the keys of one input.
var InputKeys = []GrammarKey{
	{
		Name: "type", Type: "type", Doc: "`string`, `integer`, `number`, `boolean`, `strings`, `target` or `targets`",
		Required: true,
	},
	{Name: "default", Type: "value", Doc: "the value if the caller passes none"},
	{Name: "enum", Type: "list", Doc: "the allowed values of a string"},
	{Name: "minimum", Type: "number", Doc: "the minimum of a number"},
	{Name: "maximum", Type: "number", Doc: "the maximum of a number"},
	{Name: "description", Type: "text", Doc: "the meaning of the input"},
}

// InputTypes are the types of inputs.
var InputTypes = []string{"string", "integer", "number", "boolean", "strings", "target", "targets"}

// ApproverKeys are the keys of `from`.
var ApproverKeys = []GrammarKey{
	{Name: "groups", Type: "word or list", Doc: "groups from the configuration"},
	{Name: "users", Type: "word or list", Doc: "people from the configuration"},
	{Name: "quorum", Type: "1 to 10", Doc: "the number of approvals that are required; default 1"},
	{
		Name: "escalate",
		Type: "mapping",
		Doc:  "additional approvers (`groups`, `users`) who are asked if there is no decision `after` this duration",
	},
}

// StepKinds returns the kinds of steps, in the order of the reference page.
func StepKinds() []StepKind {
	observing := []GrammarKey{keyID, keyIf, keyTarget, keyWith, keyTimeout, keyRetry, keyOnFailure}
	return []StepKind{
		{Name: "enrich", Type: "action", Doc: "Looks up context. Later steps read its outputs.", Keys: observing},
		{
			Name: "evidence",
			Type: "action",
			Doc:  "Captures evidence before it is lost. On every path to a containment, evidence of the same target is required first.",
			Keys: observing,
		},
		{
			Name: "contain",
			Type: "action",
			Doc:  "Contains a target. A reversible containment is a lease: it requires `for`, is verified, and is undone automatically.",
			Keys: []GrammarKey{
				keyID,
				keyIf,
				keyTarget,
				keyWith,
				{
					Name: "for",
					Type: "duration",
					Doc:  "the duration of the lease: 5s to 168h; required for reversible actions, not allowed for others",
				},
				keyTimeout,
				keyRetry,
				keyOnFailure,
				keyOnDenied,
			},
		},
		{Name: "notify", Type: "action", Doc: "Sends a message.", Keys: observing},
		{Name: "ticket", Type: "action", Doc: "Creates or updates a ticket.", Keys: observing},
		{
			Name: "approval",
			Type: "title",
			Doc:  "Requests an approval, and runs its steps if it is granted. The approval covers only the exact plan that was shown.",
			Keys: []GrammarKey{
				keyID,
				keyIf,
				{Name: "ask", Type: "text", Doc: "the text of the request; `${expression}` is evaluated"},
				{Name: "from", Type: "mapping", Doc: "the approvers: `groups`, `users`, `quorum`, `escalate`", Required: true},
				{Name: "timeout", Type: "duration", Doc: "how long to wait for the decision", Required: true},
				{
					Name:     "on_timeout",
					Type:     "deny",
					Doc:      "the decision after the timeout; `deny` is the only allowed value, and it is required",
					Required: true,
				},
				{Name: "steps", Type: "steps", Doc: "the steps that the approval permits", Required: true},
				keyOnFailure,
				keyOnDenied,
			},
		},
		{
			Name: "parallel",
			Type: "steps",
			Doc:  "Runs its steps concurrently, each isolated from the others, and waits for all of them. Its outcome is the worst outcome among its steps.",
			Keys: []GrammarKey{keyID, keyIf, keyTimeout, keyOnFailure, keyOnDenied},
		},
		{
			Name: "foreach",
			Type: "expression",
			Doc:  "Runs its steps for each element of a list. Its outcome is the worst outcome among its steps.",
			Keys: []GrammarKey{
				keyID, keyIf,
				{Name: "as", Type: "name", Doc: "the name of the element inside the loop; default `item`"},
				{Name: "concurrency", Type: "1 to 10", Doc: "how many elements are processed at once; default 1"},
				{Name: "max", Type: "1 to 50", Doc: "if the list is longer, the step's outcome is `refused` before anything runs; default 50"},
				{Name: "steps", Type: "steps", Doc: "the steps for each element", Required: true},
				keyTimeout, keyOnFailure, keyOnDenied,
			},
		},
		{
			Name: "call",
			Type: "playbook",
			Doc:  "Runs another playbook inside this one, with typed inputs. Its outputs are the outputs of this step.",
			Keys: []GrammarKey{
				keyID,
				keyIf,
				{Name: "with", Type: "mapping", Doc: "the inputs of the called playbook"},
				keyTimeout,
				keyOnFailure,
				keyOnDenied,
			},
		},
		{
			Name: "wait",
			Type: "duration or mapping",
			Doc:  "Waits for a duration, or `until` an expression on `live` (the current incident) is true; if it is not true by `timeout`, the outcome is `failed`.",
			Keys: []GrammarKey{keyID, keyIf, keyOnFailure},
		},
		{Name: "set", Type: "mapping", Doc: "Assigns values to names that later steps read.", Keys: []GrammarKey{keyIf}},
		{
			Name: "stop",
			Type: "outcome",
			Doc:  "Ends the playbook, with `changed`, `unchanged`, `skipped`, `refused` or `failed` as its outcome; `finally` still runs. In a called playbook it ends only that playbook.",
			Keys: []GrammarKey{
				keyIf, {Name: "reason", Type: "text", Doc: "the reason; `${expression}` is evaluated"},
			},
		},
	}
}

// StopOutcomes are the outcomes that `stop` accepts.
var StopOutcomes = []Outcome{
	OutcomeSucceeded, OutcomeChanged, OutcomeUnchanged, OutcomeSkipped, OutcomeRefused,
	OutcomeFailed,
}

func stepKindNames() []string {
	var names []string
	for _, k := range StepKinds() {
		names = append(names, k.Name)
	}
	return names
}

// kindAcceptsKey reports whether steps of a kind accept a key, and returns the kinds that do.
func kindAcceptsKey(kind, key string) (bool, []string) {
	var kinds []string
	for _, k := range StepKinds() {
		if slices.ContainsFunc(k.Keys, func(o GrammarKey) bool { return o.Name == key }) {
			kinds = append(kinds, k.Name)
		}
	}
	return slices.Contains(kinds, kind), kinds
}
