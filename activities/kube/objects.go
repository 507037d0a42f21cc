// Package kube implements the Kubernetes side of actions: reads and writes at the API server for plan, apply, verify
// and undo.
//
// It contains no Temporal, lease, guard or grant logic: its callers wrap it as actions and decide. It keeps no state
// between calls; what an undo needs is returned as data and also stamped on the object, so that the orphan sweep finds
// objects whose lease is lost. It never changes an object or a field that it does not own without saving the prior
// state, creates only objects that do not exist, and identifies every target by UID, so that it never affects a newer
// pod of the same name.
//
// A refusal is a value (Refusal), a failure is an error. Strings from pods are attacker-controlled; this package only
// passes them on.
package kube

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Labels and annotations that Stanch writes. Objects are listed by the labels. The annotations contain the lease and
// its end, per facet, because one object may have leases on several facets: "network.stanch.dev/lease",
// "replicas.stanch.dev/expires".
const (
	// IsolateLabel marks an isolated pod; its value is ShortLeaseID of the lease, which the policy selects.
	IsolateLabel = "stanch.dev/isolate"
	// ScaleLabel marks a scaled workload; its value is ShortLeaseID of the lease.
	ScaleLabel = "stanch.dev/scale"
	// CordonLabel marks a cordoned node; its value is ShortLeaseID of the lease.
	CordonLabel = "stanch.dev/cordon"
	// ManagedByLabel, with the value ManagedBy, marks objects that Stanch created.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "stanch"
)

// Facet is the aspect of an object that a lease covers, as annotations name it.
type Facet string

// The facets of this package's actions.
const (
	FacetNetwork    Facet = "network"
	FacetReplicas   Facet = "replicas"
	FacetScheduling Facet = "scheduling"
)

// LeaseAnnotation returns the annotation with the lease's id. IncidentAnnotation contains the incident's id,
// ExpiresAnnotation the end as RFC 3339 in UTC, after which the orphan sweep may undo, and PriorStateAnnotation what
// undo restores.
func (f Facet) LeaseAnnotation() string { return string(f) + ".stanch.dev/lease" }

// IncidentAnnotation returns the annotation with the incident's id.
func (f Facet) IncidentAnnotation() string { return string(f) + ".stanch.dev/incident" }

// ExpiresAnnotation returns the annotation with the lease's end.
func (f Facet) ExpiresAnnotation() string { return string(f) + ".stanch.dev/expires" }

// PriorStateAnnotation returns the annotation with the state that undo restores.
func (f Facet) PriorStateAnnotation() string { return string(f) + ".stanch.dev/prior" }

// PodRef identifies one pod. UID is required, because names are reused and UIDs never.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// String returns NAMESPACE/NAME.
func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

// Lease is the lease that is stamped on a contained object, with its incident and end.
type Lease struct {
	ID         string    `json:"id"`
	IncidentID string    `json:"incident"`
	ExpiresAt  time.Time `json:"expires"`
}

// FieldManager returns the field manager of changes for this incident.
func (l Lease) FieldManager() string { return "stanch/" + l.IncidentID }

// leaseAnnotations returns the annotations of this lease.
func (l Lease) leaseAnnotations(f Facet) map[string]string {
	return map[string]string{
		f.LeaseAnnotation(): l.ID, f.IncidentAnnotation(): l.IncidentID,
		f.ExpiresAnnotation(): l.ExpiresAt.UTC().Format(time.RFC3339),
	}
}

// ShortLeaseID returns a short hash of a lease id that is valid in labels and names.
func ShortLeaseID(lease string) string {
	sum := sha256.Sum256([]byte(lease))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// RefusalReason is the machine-readable reason of a refusal. The values are stable.
type RefusalReason string

// The reasons.
const (
	ReasonNotFound     RefusalReason = "gone"  // the object does not exist, or another one has its name now
	ReasonPodCompleted RefusalReason = "ended" // the pod has completed
	// the pod uses the node's network, so isolating it would isolate the node
	ReasonHostNetwork   RefusalReason = "host-network"
	ReasonStaticPod     RefusalReason = "static-pod" // the kubelet owns the pod, and the API server only mirrors it
	ReasonForeignObject RefusalReason = "foreign"    // an object or field in the way belongs to someone else
	// a controller would revert the change: contain the controller instead
	ReasonControllerOwned  RefusalReason = "owned"
	ReasonUnsupported      RefusalReason = "unsupported"       // the kind is not supported
	ReasonNoController     RefusalReason = "no-controller"     // no controller would start the pod again
	ReasonDisruptionBudget RefusalReason = "disruption-budget" // a PodDisruptionBudget forbids it
	ReasonLastNode         RefusalReason = "last-node"         // no schedulable node would be left
)

// Refusal says why an action is refused. It is not a failure: retrying does not help.
type Refusal struct {
	Reason RefusalReason `json:"reason"`
	Detail string        `json:"detail"` // a sentence, with the alternative if there is one
}

// String returns the reason and the detail.
func (r *Refusal) String() string { return string(r.Reason) + ": " + r.Detail }

func newRefusal(reason RefusalReason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Difference is one field that was changed since Stanch wrote it.
type Difference struct {
	Object    string    `json:"object"` // "NetworkPolicy shop/stanch-isolate-…"
	Field     string    `json:"field"`
	Want      string    `json:"want"`
	Have      string    `json:"have"`
	ChangedBy string    `json:"changed_by,omitempty"` // field manager of the last write, as recorded by the API server
	ChangedAt time.Time `json:"changed_at,omitzero"`  // time of the last write
}

// String returns the difference in one sentence.
func (d Difference) String() string {
	s := fmt.Sprintf("%s: %s is %s, expected %s", d.Object, d.Field, d.Have, d.Want)
	if d.ChangedBy != "" {
		s += fmt.Sprintf(" (last written by %s at %s)", d.ChangedBy, d.ChangedAt.Format(time.RFC3339))
	}
	return s
}

// Drift means that undo changed nothing because someone changed the objects since. The lease is then stuck and a
// person decides: undo with force removes Stanch's parts whatever was changed.
type Drift struct {
	Differences []Difference `json:"differences"`
}

// Verification is the observed state of an effect.
type Verification struct {
	// InForce reports whether every object is as Stanch wrote it.
	InForce     bool         `json:"in_force"`
	Differences []Difference `json:"differences,omitempty"`
	// Limitations are sentences about what this observation cannot prove.
	Limitations []string `json:"limitations,omitempty"`
}

// Permissions are the exact RBAC rules of a function: plan rules for planning, apply rules for the effect, its
// verification and its undo. The apply rules include the plan rules.
type Permissions struct {
	PlanRules  []rbacv1.PolicyRule `json:"plan_rules"`
	ApplyRules []rbacv1.PolicyRule `json:"apply_rules"`
}

func newPolicyRule(group, resource string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
}

// NewClient returns a client without client-go's default limit of five requests per second.
func NewClient(config *rest.Config) (*kubernetes.Clientset, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create a Kubernetes client: %w", err)
	}
	return client, nil
}

// getPod returns the pod, or a refusal if it is gone.
func getPod(ctx context.Context, client kubernetes.Interface, ref PodRef) (*corev1.Pod, *Refusal, error) {
	if ref.UID == "" {
		return nil, nil, fmt.Errorf("read pod %s: the reference has no UID", ref)
	}
	pod, err := client.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, newRefusal(ReasonNotFound, "pod %s is gone", ref), nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read pod %s: %w", ref, err)
	}
	if string(pod.UID) != ref.UID {
		return nil, newRefusal(ReasonNotFound, "pod %s with UID %s is gone; a different object with the same name has UID %s",
				ref, ref.UID, pod.UID),
			nil
	}
	return pod, nil, nil
}

// lastWriter returns who wrote an object last, ignoring the given manager and status updates.
func lastWriter(o metav1.Object, except string) (by string, when time.Time) {
	return lastFieldWriter(o, except)
}

// lastFieldWriter returns who wrote a field last, ignoring the given manager. The API server records fields as a tree
// of "f:name". Without a path, it returns who wrote any field.
func lastFieldWriter(o metav1.Object, except string, path ...string) (by string, when time.Time) {
	for _, f := range o.GetManagedFields() {
		if f.Manager == except || f.Subresource == "status" || f.Time == nil || !managesField(f.FieldsV1, path) {
			continue
		}
		if by == "" || f.Time.After(when) {
			by, when = f.Manager, f.Time.Time
		}
	}
	return by, when
}

func managesField(fields *metav1.FieldsV1, path []string) bool {
	if len(path) == 0 {
		return true
	}
	if fields == nil {
		return false
	}
	tree := json.RawMessage(fields.GetRawBytes())
	for _, name := range path {
		var level map[string]json.RawMessage
		if err := json.Unmarshal(tree, &level); err != nil {
			return false
		}
		next, ok := level["f:"+name]
		if !ok {
			return false
		}
		tree = next
	}
	return true
}
