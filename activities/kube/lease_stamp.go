package kube

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/activities"
	"stanch/playbooks"
)

// Labels that Stanch writes, by which its objects are listed. Annotations contain the lease and its end, per facet,
// because one object may have leases on several facets: "network.stanch.dev/lease", "replicas.stanch.dev/expires".
const (
	// IsolateLabel marks an isolated pod; its value is ShortLeaseID of the lease, which the policy selects.
	IsolateLabel = "stanch.dev/isolate"
	// ManagedByLabel, with the value ManagedBy, marks objects that Stanch created.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "stanch"
)

// ShortLeaseID returns a short hash of a lease id that is valid in labels and names.
func ShortLeaseID(lease string) string {
	sum := sha256.Sum256([]byte(lease))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// fieldManager returns the field manager of changes for a lease's incident.
func fieldManager(s activities.LeaseStamp) string { return "stanch/" + s.IncidentID }

// leaseAnnotation is the annotation with the lease's id, incidentAnnotation that with the incident's id,
// expiresAnnotation that with the end as RFC 3339 in UTC, and priorAnnotation that with the state that undo restores.
func leaseAnnotation(f playbooks.Facet) string    { return string(f) + ".stanch.dev/lease" }
func incidentAnnotation(f playbooks.Facet) string { return string(f) + ".stanch.dev/incident" }
func expiresAnnotation(f playbooks.Facet) string  { return string(f) + ".stanch.dev/expires" }
func priorAnnotation(f playbooks.Facet) string    { return string(f) + ".stanch.dev/prior" }

// stampAnnotations returns the annotations of a stamp, without the prior state.
func stampAnnotations(f playbooks.Facet, s activities.LeaseStamp) map[string]string {
	return map[string]string{
		leaseAnnotation(f): s.ID, incidentAnnotation(f): s.IncidentID,
		expiresAnnotation(f): s.ExpiresAt.UTC().Format(time.RFC3339),
	}
}

// stampPatch returns the annotations of a stamp with the prior state, for a merge patch.
func stampPatch(f playbooks.Facet, s activities.LeaseStamp, prior string) map[string]any {
	patch := map[string]any{priorAnnotation(f): prior}
	for k, v := range stampAnnotations(f, s) {
		patch[k] = v
	}
	return patch
}

// unstampPatch removes the annotations of a stamp, for a merge patch.
func unstampPatch(f playbooks.Facet) map[string]any {
	return map[string]any{
		leaseAnnotation(f): nil, incidentAnnotation(f): nil, expiresAnnotation(f): nil, priorAnnotation(f): nil,
	}
}

// readStamp reads the stamp of a facet from an object; the zero value if it has none.
func readStamp(o metav1.Object, f playbooks.Facet) activities.LeaseStamp {
	a := o.GetAnnotations()
	s := activities.LeaseStamp{ID: a[leaseAnnotation(f)], IncidentID: a[incidentAnnotation(f)]}
	if until, err := time.Parse(time.RFC3339, a[expiresAnnotation(f)]); err == nil {
		s.ExpiresAt = until
	}
	return s
}

// readOwnStamp reads the stamp of a lease; the zero value if the object has none or that of another lease.
func readOwnStamp(o metav1.Object, f playbooks.Facet, lease string) activities.LeaseStamp {
	if s := readStamp(o, f); s.ID == lease {
		return s
	}
	return activities.LeaseStamp{}
}

// readExpiredStamp reads the stamp of an object if it has ended. An end that cannot be parsed was tampered with and
// counts as passed.
func readExpiredStamp(o metav1.Object, f playbooks.Facet, now time.Time) (activities.LeaseStamp, bool) {
	s := readStamp(o, f)
	return s, s.ID != "" && !now.Before(s.ExpiresAt)
}

// refuseEarlyEnd refuses an end before the stamped one. It does not read the stamp if a grant permits every end.
func refuseEarlyEnd(r activities.Request, read func() (activities.LeaseStamp, error)) error {
	if r.ReleaseGrant != nil {
		return nil
	}
	s, err := read()
	if err != nil {
		return err
	}
	return activities.RefuseEarlyEnd(r, s.ExpiresAt, r.ExpiresAt)
}

// unreadablePriorError is the error of an orphan whose prior state was changed.
func unreadablePriorError(object string, cause error) error {
	return fmt.Errorf("undo %s: its prior state cannot be read; undo it manually: %w", object, cause)
}
