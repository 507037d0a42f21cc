package activities

import (
	"time"

	"stanch/sensors/attestation"
)

// LeaseStamp is what a containment writes on the object that it changes: the lease, its incident and its end. A request
// can come from anybody who can reach Temporal, a stamp only from someone who may write to the object. Therefore an end
// without a grant depends on the stamp.
type LeaseStamp struct {
	ID         string
	IncidentID string
	ExpiresAt  time.Time // zero if the stamp on the object cannot be parsed
}

// LeaseStamp returns the stamp of the request's lease.
func (r Request) LeaseStamp() LeaseStamp {
	return LeaseStamp{ID: r.LeaseID, IncidentID: r.IncidentRef.ID, ExpiresAt: r.ExpiresAt}
}

// RefuseEarlyEnd returns a refusal if a request would move the end on the object forward without a release grant. The
// zero time as stamped permits every end.
func RefuseEarlyEnd(r Request, stamped, wanted time.Time) error {
	if r.ReleaseGrant == nil && wanted.Before(stamped) { // the grant was verified when the request was authorized
		return Refusef("ending it at %s instead of the recorded %s requires a grant", wanted.Format(time.RFC3339),
			stamped.Format(time.RFC3339))
	}
	return nil
}

// RefuseEarlyUndo returns a refusal for an undo before the end on the object without a grant. The zero time as stamped
// permits the undo.
func RefuseEarlyUndo(stamped time.Time, grant *attestation.Envelope) error {
	if grant == nil && time.Now().Before(stamped) {
		return Refusef("its recorded end (%s) has not passed, and no grant was given", stamped.Format(time.RFC3339))
	}
	return nil
}
