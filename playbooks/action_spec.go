package playbooks

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"
)

// Verb is the key of a step that calls an action.
type Verb string

// The verbs.
const (
	VerbEnrich   Verb = "enrich"
	VerbEvidence Verb = "evidence"
	VerbContain  Verb = "contain"
	VerbNotify   Verb = "notify"
	VerbTicket   Verb = "ticket"
)

// Verbs lists every verb.
var Verbs = []Verb{VerbEnrich, VerbEvidence, VerbContain, VerbNotify, VerbTicket}

// Class is the impact of an action. Phase 1 permits observe, phase 2 contain, and phase 3 disrupt with approval.
type Class string

// The classes, lowest impact first.
const (
	ClassObserve Class = "observe"
	ClassContain Class = "contain"
	ClassDisrupt Class = "disrupt"
)

// Facet is the aspect of a target that an action changes; "" for an action that changes nothing. A lease covers one
// facet of one target.
type Facet string

// The facets.
const (
	FacetNetwork    Facet = "network"
	FacetExecution  Facet = "execution"
	FacetReplicas   Facet = "replicas"
	FacetScheduling Facet = "scheduling"
	FacetIdentity   Facet = "identity"
	FacetImage      Facet = "image"
	FacetLabels     Facet = "labels"
	// who may assume a role; separate from permissions, so that sessions can be revoked as well
	FacetTrust Facet = "trust"
)

// EndMechanism is what ends a lease when its time is over, even if no workflow requests it.
type EndMechanism string

// The end mechanisms.
const (
	EndByKernel   EndMechanism = "kernel"   // the node's kernel, by the expiry in the BPF map entry
	EndByProvider EndMechanism = "provider" // the cloud provider, by a date in the policy
	EndByStanch   EndMechanism = "stanch"   // the first Stanch process that runs after the end on the object
)

// String returns the mechanism as plans, approvals and the audit show it.
func (e EndMechanism) String() string {
	switch e {
	case EndByKernel:
		return "the kernel ends it, even if Stanch is down"
	case EndByProvider:
		return "the provider ends it at the date in the policy, even if Stanch is down"
	case EndByStanch:
		return "the first Stanch process that runs after its expiry undoes it"
	}
	return ""
}

// ActionSpec is the declaration of an action. The catalog, the schema, the reference pages and the least permissions
// are generated from it.
type ActionSpec struct {
	Name  string // "pod.isolate"; unique
	Verb  Verb
	Doc   string // one line
	Class Class
	Facet Facet
	// Targets lists the kinds of target that the action accepts, the default first.
	Targets []TargetKind
	// Reversible actions create leases and require `for`; other actions forbid it.
	Reversible bool
	// EndMechanism is what ends the lease of a reversible action by itself.
	EndMechanism EndMechanism
	// MinDuration is the shortest useful lease: access that the action revokes stays valid at least this long.
	MinDuration time.Duration
	// MaxDuration is the longest recommended lease; a longer one is a warning. 0 means no limit.
	MaxDuration time.Duration
	// Params and Outputs are zero values of structs with json and jsonschema tags, or nil. Params implements
	// ParamsChecker for rules that tags cannot express.
	Params  any
	Outputs any
	// AttemptTimeout limits one attempt. 0 means 30 s for containments and 10 s for evidence.
	AttemptTimeout time.Duration
	// PlanPermissions and ApplyPermissions are the Kubernetes permissions for planning (reads) and for applying.
	PlanPermissions  []KubernetesPermission
	ApplyPermissions []KubernetesPermission
	// OrphanPermissions are the Kubernetes permissions for finding objects whose lease is lost. They are granted in
	// every phase.
	OrphanPermissions []KubernetesPermission
	// PlanIAMPermissions and ApplyIAMPermissions are the IAM permissions for planning and for applying; applying
	// includes verification and undo.
	PlanIAMPermissions  []IAMPermission
	ApplyIAMPermissions []IAMPermission
	D3FENDTechnique     string // technique id, "D3-NTF"
	// CombineParams combines the parameters of two holders of one lease into the stricter of both. With nil, only
	// holders with equal parameters share a lease.
	CombineParams func(a, b json.RawMessage) (json.RawMessage, error)
}

// KubernetesPermission is one rule of a Kubernetes RBAC role.
type KubernetesPermission struct {
	Groups    []string `json:"groups"` // "" is the core group
	Resources []string `json:"resources"`
	Verbs     []string `json:"verbs"`
}

// IAMPermission is one statement of an IAM policy.
type IAMPermission struct {
	Actions   []string `json:"actions"`
	Resources []string `json:"resources"`
}

// ParamsChecker is implemented by parameters with rules that struct tags cannot express.
type ParamsChecker interface {
	// Check returns the problem, for a person, and the JSON name of the parameter; "" and "" if the parameters are
	// valid.
	Check() (param, problem string)
}

// Catalog contains the actions by name.
type Catalog map[string]ActionSpec

// worksOnDetectedTargets reports whether the action accepts pods or containers, the targets of detections.
func (s ActionSpec) worksOnDetectedTargets() bool {
	for _, kind := range s.Targets {
		if kind.IsDetectable() {
			return true
		}
	}
	return len(s.Targets) == 0
}

// ParamType returns the struct type of the parameters, or nil if the action has none.
func (s ActionSpec) ParamType() reflect.Type { return structTypeOf(s.Params) }

// OutputType returns the struct type of the outputs, or nil if the action has none.
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

// ParamsCombiner returns the function that combines two holders' parameters into the stricter of both. For an action
// without one, it returns a function that accepts only equal parameters.
func (s ActionSpec) ParamsCombiner() func(a, b json.RawMessage) (json.RawMessage, error) {
	if s.CombineParams != nil {
		return s.CombineParams
	}
	return func(a, b json.RawMessage) (json.RawMessage, error) {
		if string(a) != string(b) {
			return nil, fmt.Errorf("%s is already active with different parameters (%s)", s.Name, a)
		}
		return a, nil
	}
}
