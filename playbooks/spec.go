package playbooks

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"
)

// Verb is the kind of step that calls an action.
type Verb string

// The verbs, as the keys of a step.
const (
	VerbEnrich   Verb = "enrich"
	VerbEvidence Verb = "evidence"
	VerbContain  Verb = "contain"
	VerbNotify   Verb = "notify"
	VerbTicket   Verb = "ticket"
)

// Verbs lists the verbs.
var Verbs = []Verb{VerbEnrich, VerbEvidence, VerbContain, VerbNotify, VerbTicket}

// Class is how much an action can hurt.
type Class string

// The classes, in rising order.
const (
	ClassObserve Class = "observe"
	ClassContain Class = "contain"
	ClassDisrupt Class = "disrupt"
)

// Facet is the aspect of a target that an action takes hold of; a lease holds one facet of one target.
type Facet string

// The facets.
const (
	FacetNone       Facet = ""
	FacetNetwork    Facet = "network"
	FacetExecution  Facet = "execution"
	FacetReplicas   Facet = "replicas"
	FacetScheduling Facet = "scheduling"
	FacetIdentity   Facet = "identity"
	FacetImage      Facet = "image"
	FacetLabels     Facet = "labels"
	FacetTrust      Facet = "trust" // who may become a role; its own, so that sessions can be revoked besides
)

// End says what ends a lease at its time although nothing asks for it.
type End string

// The ends.
const (
	EndKernel   End = "kernel"   // the node's kernel, by an end in the lock itself
	EndProvider End = "provider" // the cloud provider, by a date in the policy
	EndStanch   End = "stanch"   // the first Stanch process that runs after the end stamped on the object
)

// String is the end as plans, approvals and audits say it.
func (e End) String() string {
	switch e {
	case EndKernel:
		return "the kernel ends it, also when Stanch is dead"
	case EndProvider:
		return "the provider ends it by the date in the policy, also when Stanch is dead"
	case EndStanch:
		return "the first Stanch process that runs after its end undoes it"
	}
	return ""
}

// Spec is what an action declares. Catalogue, schema, documentation and the least permissions come from it.
type Spec struct {
	Name  string // "pod.isolate"; unique
	Verb  Verb
	Doc   string // one line
	Class Class
	Facet Facet
	// Targets are the kinds it works on, the default first.
	Targets []TargetKind
	// Reversible actions are leases and need `for`; others are acts and forbid it.
	Reversible bool
	// Ends says what ends a lease of a reversible action by itself.
	Ends End
	// MinFor is the shortest lease that makes sense: what it revokes lives at least so long.
	MinFor time.Duration
	// MaxFor is how long a lease makes sense at most; longer is warned of. 0 is any.
	MaxFor time.Duration
	// Params and Outputs are zero values of structs with json and jsonschema tags. Params implements Checker
	// where tags do not say enough.
	Params  any
	Outputs any
	// Timeout bounds one attempt; 0 means 30 s for containments and 10 s for evidence.
	Timeout time.Duration
	// Kubernetes rights, for planning (reads) and for applying.
	PlanRights  []Right
	ApplyRights []Right
	// PlanCloud and ApplyCloud are the IAM permissions for the same; apply includes verification and undo.
	PlanCloud  []CloudRight
	ApplyCloud []CloudRight
	D3FEND     string // technique id, "D3-NTF"
	// Combine joins the parameters of two holders of one lease into the strictest of both. Nil: only equal ones join.
	Combine func(a, b json.RawMessage) (json.RawMessage, error)
}

// Right is one Kubernetes permission, as in an RBAC rule.
type Right struct {
	Groups    []string `json:"groups"` // "" is the core group
	Resources []string `json:"resources"`
	Verbs     []string `json:"verbs"`
}

// CloudRight is one IAM permission, as in a statement of a policy.
type CloudRight struct {
	Actions   []string `json:"actions"`
	Resources []string `json:"resources"`
}

// Checker is implemented by Params that have rules of their own.
type Checker interface {
	// Check returns a problem in words for a person, and the JSON name of the parameter, or "".
	Check() (param, problem string)
}

// Catalogue is the actions by name.
type Catalogue map[string]Spec

// detected tells whether the action works on what detections are about: pods and containers.
func (s Spec) detected() bool {
	for _, kind := range s.Targets {
		if kind.Detected() {
			return true
		}
	}
	return len(s.Targets) == 0
}

// ParamType is the struct type of the parameters, or nil.
func (s Spec) ParamType() reflect.Type { return structType(s.Params) }

// OutputType is the struct type of the outputs, or nil.
func (s Spec) OutputType() reflect.Type { return structType(s.Outputs) }

func structType(v any) reflect.Type {
	t := reflect.TypeOf(v)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// Combiner gives the function that joins two holders' parameters into the strictest of both. An action without one
// takes only equal parameters.
func (s Spec) Combiner() func(a, b json.RawMessage) (json.RawMessage, error) {
	if s.Combine != nil {
		return s.Combine
	}
	return func(a, b json.RawMessage) (json.RawMessage, error) {
		if string(a) != string(b) {
			return nil, fmt.Errorf("%s is in force with other parameters (%s)", s.Name, a)
		}
		return a, nil
	}
}
