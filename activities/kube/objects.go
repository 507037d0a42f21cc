// Package kube holds the Kubernetes half of the actions: what is read from and written to the API server for a
// plan, an effect, its verification and its undo.
//
// It refuses to know Temporal, leases' logic, guards and grants: its callers wrap it as actions and decide. It
// keeps nothing between calls; what an undo needs is returned as data and stamped on the object as well, so that
// a sweeper finds what lost its lease. It never edits an object or a field that it does not own without saving
// the prior state, creates only what is not found, and names every target by UID, so that a pod of the same name
// that came later is never hit.
//
// A refusal is a value (Refusal), a failure is an error. Strings that come out of pods belong to an attacker:
// here they are only carried.
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

// What Stanch writes on objects. The labels exist so that objects can be listed by them; the annotations say
// whose they are and until when. Annotations are per facet, because leases on several facets of one object may
// hold at once: "network.stanch.dev/lease", "replicas.stanch.dev/expires".
const (
	// IsolateLabel marks an isolated pod; its value is ShortLeaseID of the lease, which the policy selects.
	IsolateLabel = "stanch.dev/isolate"
	// ScaleLabel marks a scaled workload; its value is ShortLeaseID of the lease.
	ScaleLabel = "stanch.dev/scale"
	// CordonLabel marks a cordoned node; its value is ShortLeaseID of the lease.
	CordonLabel = "stanch.dev/cordon"
	// ManagedByLabel, with the value ManagedBy, marks objects that Stanch made.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "stanch"
)

// Facet is the aspect of an object that a lease takes hold of, as it stands in annotations.
type Facet string

// The facets of this package's actions.
const (
	FacetNetwork    Facet = "network"
	FacetReplicas   Facet = "replicas"
	FacetScheduling Facet = "scheduling"
)

// LeaseAnnotation is the annotation with the lease's whole id, IncidentKey that with the incident's, ExpiresKey that with the
// end as RFC 3339 in UTC, from which on a sweeper may undo, and PriorKey that with what undo restores.
func (f Facet) LeaseAnnotation() string      { return string(f) + ".stanch.dev/lease" }
func (f Facet) IncidentAnnotation() string   { return string(f) + ".stanch.dev/incident" } //nolint:revive // see LeaseKey
func (f Facet) ExpiresAnnotation() string    { return string(f) + ".stanch.dev/expires" }  //nolint:revive // see LeaseKey
func (f Facet) PriorStateAnnotation() string { return string(f) + ".stanch.dev/prior" }    //nolint:revive // see LeaseKey

// PodRef names one pod. UID is required: a name is reused, a UID never.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

// Lease says for whom something is contained and until when; it is stamped on what is contained.
type Lease struct {
	ID         string    `json:"id"`
	IncidentID string    `json:"incident"`
	ExpiresAt  time.Time `json:"expires"`
}

// FieldManager is the name under which the API server records what was changed for this incident.
func (l Lease) FieldManager() string { return "stanch/" + l.IncidentID }

// leaseAnnotations are what is stamped on an object for this lease.
func (l Lease) leaseAnnotations(f Facet) map[string]string {
	return map[string]string{
		f.LeaseAnnotation(): l.ID, f.IncidentAnnotation(): l.IncidentID, f.ExpiresAnnotation(): l.ExpiresAt.UTC().Format(time.RFC3339),
	}
}

// ShortLeaseID makes of a lease's id, which may be long and hold anything, a value for labels and names.
func ShortLeaseID(lease string) string {
	sum := sha256.Sum256([]byte(lease))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// RefusalReason says in one word why something is refused; the words are stable.
type RefusalReason string

// The reasons.
const (
	ReasonNotFound         RefusalReason = "gone"              // no such object, or another one has its name now
	ReasonPodCompleted     RefusalReason = "ended"             // the pod has run to its end
	ReasonHostNetwork      RefusalReason = "host-network"      // the pod has the node's network: isolating it would isolate the node
	ReasonStaticPod        RefusalReason = "static-pod"        // the kubelet owns the pod; the API server only mirrors it
	ReasonForeignObject    RefusalReason = "foreign"           // an object or field in the way is not ours
	ReasonControllerOwned  RefusalReason = "owned"             // a controller above would put it back: take hold of that one
	ReasonUnsupported      RefusalReason = "unsupported"       // this kind cannot be worked on
	ReasonNoController     RefusalReason = "no-controller"     // nothing would start the pod again
	ReasonDisruptionBudget RefusalReason = "disruption-budget" // a PodDisruptionBudget forbids it
	ReasonLastNode         RefusalReason = "last-node"         // nothing could be scheduled any more
)

// Refusal says why an action will not be done. It is an answer and not a failure: trying again changes nothing.
type Refusal struct {
	Reason RefusalReason `json:"reason"`
	Detail string        `json:"detail"` // a sentence, with what to do instead where there is something
}

func (r *Refusal) String() string { return string(r.Reason) + ": " + r.Detail }

func newRefusal(reason RefusalReason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Difference is one field that is not as it was left.
type Difference struct {
	Object    string    `json:"object"` // "NetworkPolicy shop/stanch-isolate-…"
	Field     string    `json:"field"`
	Want      string    `json:"want"`
	Have      string    `json:"have"`
	ChangedBy string    `json:"changed_by,omitempty"` // the field manager that wrote it last, as the API server recorded it
	ChangedAt time.Time `json:"changed_at,omitzero"`  // and when
}

func (d Difference) String() string {
	s := fmt.Sprintf("%s: %s is %s, want %s", d.Object, d.Field, d.Have, d.Want)
	if d.ChangedBy != "" {
		s += fmt.Sprintf(" (last written by %s at %s)", d.ChangedBy, d.ChangedAt.Format(time.RFC3339))
	}
	return s
}

// Drift says that undo left things as they are because somebody changed them since. The lease is then stuck and
// a person decides; undoing with force then removes what is ours whatever was changed in it.
type Drift struct {
	Differences []Difference `json:"differences"`
}

// Verification is what was observed of an effect.
type Verification struct {
	// InForce: every object is as it was left.
	InForce     bool         `json:"in_force"`
	Differences []Difference `json:"differences,omitempty"`
	// Limitations are sentences about what this observation cannot prove.
	Limitations []string `json:"limitations,omitempty"`
}

// Permissions are the exact RBAC rules that a function needs: Plan to see what would change, Apply for the
// effect, its verification and its undo as well. Apply includes Plan.
type Permissions struct {
	PlanRules  []rbacv1.PolicyRule `json:"plan_rules"`
	ApplyRules []rbacv1.PolicyRule `json:"apply_rules"`
}

func newPolicyRule(group, resource string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
}

// NewClient makes a client that does not wait for client-go's default of five requests a second.
func NewClient(config *rest.Config) (*kubernetes.Clientset, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	return client, nil
}

// getPod reads the pod, or says that it is gone.
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
		return nil, newRefusal(ReasonNotFound, "pod %s with UID %s is gone; the pod of that name now has UID %s", ref, ref.UID, pod.UID), nil
	}
	return pod, nil, nil
}

// lastWriter tells who wrote an object last, apart from the manager given and from status updates.
func lastWriter(o metav1.Object, except string) (by string, when time.Time) {
	return lastFieldWriter(o, except)
}

// lastFieldWriter tells who wrote a field last, apart from the manager given: the API server records that as a tree of
// "f:name". Without a path it is whoever wrote anything.
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
