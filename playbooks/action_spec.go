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

// EndMechanism says what ends a lease at its time although nothing asks for it.
type EndMechanism string

// The ends.
const (
	EndByKernel   EndMechanism = "kernel"   // the node's kernel, by an end in the lock itself
	EndByProvider EndMechanism = "provider" // the cloud provider, by a date in the policy
	EndByStanch   EndMechanism = "stanch"   // the first Stanch process that runs after the end stamped on the object
)

// String is the end as plans, approvals and audits say it.
func (e EndMechanism) String() string {
	switch e {
	case EndByKernel:
		return "the kernel ends it, also when Stanch is dead"
	case EndByProvider:
		return "the provider ends it by the date in the policy, also when Stanch is dead"
	case EndByStanch:
		return "the first Stanch process that runs after its end undoes it"
	}
	return ""
}

// ActionSpec is what an action declares. Catalogue, schema, documentation and the least permissions come from it.
type ActionSpec struct {
	Name  string // "pod.isolate"; unique
	Verb  Verb
	Doc   string // one line
	Class Class
	Facet Facet
	// Targets are the kinds it works on, the default first.
	Targets []TargetKind
	// Reversible actions are leases and need `for`; others are acts and forbid it.
	Reversible bool
	// EndMechanism says what ends a lease of a reversible action by itself.
	EndMechanism EndMechanism
	// MinDuration is the shortest lease that makes sense: what it revokes lives at least so long.
	MinDuration time.Duration
	// MaxDuration is how long a lease makes sense at most; longer is warned of. 0 is any.
	MaxDuration time.Duration
	// Params and Outputs are zero values of structs with json and jsonschema tags. Params implements Checker
	// where tags do not say enough.
	Params  any
	Outputs any
	// AttemptTimeout bounds one attempt; 0 means 30 s for containments and 10 s for evidence.
	AttemptTimeout time.Duration
	// Kubernetes rights, for planning (reads) and for applying.
	PlanPermissions  []KubernetesPermission
	ApplyPermissions []KubernetesPermission
	// PlanIAMPermissions and ApplyCloud are the IAM permissions for the same; apply includes verification and undo.
	PlanIAMPermissions  []IAMPermission
	ApplyIAMPermissions []IAMPermission
	D3FENDTechnique     string // technique id, "D3-NTF"
	// CombineParams joins the parameters of two holders of one lease into the strictest of both. Nil: only equal ones join.
	CombineParams func(a, b json.RawMessage) (json.RawMessage, error)
}

// KubernetesPermission is one Kubernetes permission, as in an RBAC rule.
type KubernetesPermission struct {
	Groups    []string `json:"groups"` // "" is the core group
	Resources []string `json:"resources"`
	Verbs     []string `json:"verbs"`
}

// IAMPermission is one IAM permission, as in a statement of a policy.
type IAMPermission struct {
	Actions   []string `json:"actions"`
	Resources []string `json:"resources"`
}

// ParamsChecker is implemented by Params that have rules of their own.
type ParamsChecker interface {
	// Check returns a problem in words for a person, and the JSON name of the parameter, or "".
	Check() (param, problem string)
}

// Catalog is the actions by name.
type Catalog map[string]ActionSpec

// worksOnDetectedTargets tells whether the action works on what detections are about: pods and containers.
func (s ActionSpec) worksOnDetectedTargets() bool {
	for _, kind := range s.Targets {
		if kind.IsDetectable() {
			return true
		}
	}
	return len(s.Targets) == 0
}

// ParamType is the struct type of the parameters, or nil.
func (s ActionSpec) ParamType() reflect.Type { return structTypeOf(s.Params) }

// OutputType is the struct type of the outputs, or nil.
func (s ActionSpec) OutputType() reflect.Type { return structTypeOf(s.Outputs) }

func structTypeOf(v any) reflect.Type {
	t := reflect.TypeOf(v)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// ParamsCombiner gives the function that joins two holders' parameters into the strictest of both. An action without one
// takes only equal parameters.
func (s ActionSpec) ParamsCombiner() func(a, b json.RawMessage) (json.RawMessage, error) {
	if s.CombineParams != nil {
		return s.CombineParams
	}
	return func(a, b json.RawMessage) (json.RawMessage, error) {
		if string(a) != string(b) {
			return nil, fmt.Errorf("%s is in force with other parameters (%s)", s.Name, a)
		}
		return a, nil
	}
}
