package proof

import (
	"fmt"
	"slices"
	"time"

	"stanch/sensors/duration"
)

// Attestation is the gateway's word that it accepted a detection: without one for its target, nothing is
// contained unless a person granted it.
type Attestation struct {
	Detection  string  `json:"detection"` // Detection.ID
	Hash       string  `json:"hash"`      // of the whole detection
	Target     string  `json:"target"`    // "pod:<uid>" or "container:<id>"
	Rule       string  `json:"rule"`
	Objective  string  `json:"objective"`
	Severity   string  `json:"severity"`
	Confidence float64 `json:"confidence"`
	Node       string  `json:"node"`
	Namespace  string  `json:"namespace,omitempty"` // of the pod, as the gateway knows it
	Workload   string  `json:"workload,omitempty"`  // "namespace/Kind/name", as the gateway knows it
	Scope      string  `json:"scope,omitempty"`     // "drill" for a drill's own target
	Drill      *Drill  `json:"drill,omitempty"`     // the registration that covers the target; nil outside of drills
	// Confirmed: the API server said so of the pod, its node, namespace and workload. Without it they are the sender's words.
	Confirmed bool      `json:"confirmed,omitempty"`
	Accepted  time.Time `json:"accepted"`
	// Requested: nothing was detected, a person asked. It permits what they asked for and nothing else.
	Requested *Requested `json:"requested,omitempty"`
}

// Requested is what a person asked for, and what it takes.
type Requested struct {
	Person string `json:"person"`
	Proved string `json:"proved"` // how: "uid 1000 on the local socket"
	Reason string `json:"reason"`
	// Actions are the containments that the request is for, and For is how long the longest of them holds.
	Actions []string      `json:"actions"`
	For     time.Duration `json:"for"`
}

// Counts reports whether an attestation speaks for a containment that holds so long: a detection for every one, a request
// for those that were asked for.
func (a Attestation) Counts(action string, holds time.Duration) bool {
	r := a.Requested
	return r == nil || slices.Contains(r.Actions, action) && holds <= r.For
}

// OpenAttestation verifies s and that it is about target and was accepted within maxAge before now.
func (r Keyring) OpenAttestation(s Signed, target string, now time.Time, maxAge time.Duration) (Attestation, error) {
	var a Attestation
	if err := r.Open(s, PurposeAttestation, &a); err != nil {
		return Attestation{}, err
	}
	if a.Target != target {
		return Attestation{}, fmt.Errorf("%w: the attested detection %s is about %s, not %s", ErrUnproved, a.Detection, a.Target, target)
	}
	if age := now.Sub(a.Accepted); age > maxAge || age < -clockSkew {
		return Attestation{}, fmt.Errorf("%w: the attested detection %s is %s old, at most %s is fresh", ErrUnproved, a.Detection, duration.About(age), duration.Format(maxAge))
	}
	return a, nil
}

// Operation is what a grant permits.
type Operation string

// The operations.
const (
	OperationApply   Operation = "apply"
	OperationRelease Operation = "release"
	OperationExtend  Operation = "extend"
	// OperationRollback takes back what an apply of Stanch's own did before it failed. People gave no word.
	OperationRollback Operation = "rollback"
	// OperationMark says something about an incident: who takes it over, or that it is a false positive.
	OperationMark Operation = "mark"
)

// Grant is a permission that people gave for exactly one thing.
type Grant struct {
	Nonce     string    `json:"nonce"`
	Operation Operation `json:"operation"`
	// PlanHash and Targets bind OperationApply to the plan that was shown; Lease binds the others.
	PlanHash string    `json:"plan_hash,omitempty"`
	Targets  []string  `json:"targets,omitempty"`
	Lease    string    `json:"lease,omitempty"`
	Holder   string    `json:"holder,omitempty"` // "" means every holder
	Until    time.Time `json:"until,omitzero"`   // OperationExtend: the new end
	Incident string    `json:"incident,omitempty"`
	Step     string    `json:"step,omitempty"`
	// Namespace is the target's, in whose scope the people have the right. Of a host's container it is "".
	Namespace string `json:"namespace,omitempty"`
	// Drill: it was given with a drill's key and permits nothing outside of a drill.
	Drill bool `json:"drill,omitempty"`
	// BreakGlass: one person took the right of the quorum, and answers for it.
	BreakGlass bool      `json:"break_glass,omitempty"`
	Note       string    `json:"note,omitempty"` // a reason in a person's words
	People     []string  `json:"people"`         // who, and how it was proved: "uid:0 (local socket)"
	Issued     time.Time `json:"issued"`
	Expires    time.Time `json:"expires"`
}

// OpenGrant verifies s, its operation and its expiry. The caller compares plan, targets and lease.
func (r Keyring) OpenGrant(s Signed, operation Operation, now time.Time) (Grant, error) {
	var g Grant
	if err := r.Open(s, PurposeGrant, &g); err != nil {
		return Grant{}, err
	}
	if g.Operation != operation {
		return Grant{}, fmt.Errorf("%w: the grant permits %q, not %q", ErrUnproved, g.Operation, operation)
	}
	if now.After(g.Expires) || now.Before(g.Issued.Add(-clockSkew)) {
		return Grant{}, fmt.Errorf("%w: the grant was valid from %s to %s", ErrUnproved, g.Issued.Format(time.RFC3339), g.Expires.Format(time.RFC3339))
	}
	return g, nil
}

// Permits tells whether the grant covers this plan on this target.
func (g Grant) Permits(planHash, target string) error {
	if g.PlanHash != planHash {
		return fmt.Errorf("%w: the plan changed since it was approved", ErrUnproved)
	}
	if !slices.Contains(g.Targets, target) {
		return fmt.Errorf("%w: %s is not among the approved targets", ErrUnproved, target)
	}
	return nil
}

// Token is what the authority issues once every guard let a containment through: re-applying it while the lease
// holds, and the node itself, need nothing else. It ends with the lease.
type Token struct {
	Nonce    string `json:"nonce"`
	Lease    string `json:"lease"`
	Action   string `json:"action"`
	Target   string `json:"target"`
	Params   string `json:"params"` // hash of the parameters
	Incident string `json:"incident"`
	Basis    string `json:"basis"` // what it rests on: an attestation's detection id or a grant's nonce
	// Namespace is the target's as it was verified when the effect was permitted: in whose scope a release is given.
	Namespace string `json:"namespace,omitempty"`
	Drill     bool   `json:"drill,omitempty"`
	// DrillTarget is what the drill registered; the node compares it with what it finds. Nil outside of drills.
	DrillTarget *DrillTarget `json:"drill_target,omitempty"`
	// Since is when the newest detection that it rests on was accepted, or when the last of the people whose grant it rests
	// on agreed. What people released later is not contained on older grounds.
	Since  time.Time `json:"since,omitzero"`
	Issued time.Time `json:"issued"`
	Until  time.Time `json:"until"`
}

// OpenToken verifies s for one action on one target.
func (r Keyring) OpenToken(s Signed, action, target string, now time.Time) (Token, error) {
	var t Token
	if err := r.Open(s, PurposeToken, &t); err != nil {
		return Token{}, err
	}
	if t.Action != action || t.Target != target {
		return Token{}, fmt.Errorf("%w: the lease token is for %s on %s, not %s on %s", ErrUnproved, t.Action, t.Target, action, target)
	}
	if now.After(t.Until) {
		return Token{}, fmt.Errorf("%w: the lease token ended at %s", ErrUnproved, t.Until.Format(time.RFC3339))
	}
	return t, nil
}

// Receipt says that evidence of a target was attempted for an incident, well or badly: no containment comes before.
type Receipt struct {
	Incident string    `json:"incident"`
	Target   string    `json:"target"`
	Action   string    `json:"action"`
	OK       bool      `json:"ok"`
	At       time.Time `json:"at"`
}

// Vote is one person's answer to one question, as the gateway proved it.
type Vote struct {
	Incident string    `json:"incident"`
	Run      string    `json:"run"` // the playbook's workflow id
	Step     string    `json:"step"`
	PlanHash string    `json:"plan_hash"`
	Person   string    `json:"person"`
	Proved   string    `json:"proved"` // how: "uid 0 on the local socket"
	Approve  bool      `json:"approve"`
	Reason   string    `json:"reason,omitempty"`
	Groups   []string  `json:"groups"` // of the person, when they voted
	At       time.Time `json:"at"`
	// Drill: it was given with a drill's key. BreakGlass: it counts as the whole quorum.
	Drill      bool `json:"drill,omitempty"`
	BreakGlass bool `json:"break_glass,omitempty"`
	// Withdraws: the person asked for what the question is about. Their no counts, whoever is asked.
	Withdraws bool `json:"withdraws,omitempty"`
	// Refused says why it does not count: it is kept for the record.
	Refused string `json:"refused,omitempty"`
}

// Selection is the worker's word that a playbook is one of this installation's: whom it asks is then not for a workflow
// to claim.
type Selection struct {
	Playbook string    `json:"playbook"`
	Hash     string    `json:"hash"`           // of its source
	Asks     []string  `json:"asks,omitempty"` // hashes of whom its approvals ask
	At       time.Time `json:"at"`
}

// SwitchState is the state of the kill switch. The highest Seq is the one in force.
type SwitchState struct {
	Seq     int64     `json:"seq"`
	Stopped bool      `json:"stopped"`
	By      string    `json:"by"` // who, and how it was proved
	At      time.Time `json:"at"`
	Reason  string    `json:"reason,omitempty"`
}
