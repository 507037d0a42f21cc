package activities

import (
	"context"
	"time"

	"stanch/playbooks"
)

// Orphan is a contained object whose stamped end has passed. Its lease normally undoes it; an orphan that nobody undoes
// was left by a workflow that was terminated.
type Orphan struct {
	ObjectName string // for people: "Node worker-1"
	// Target and Facet identify the lease whose workflow undoes the object while it runs.
	Target playbooks.Target
	Facet  playbooks.Facet
	Lease  LeaseStamp // as read from the object
	// Undo restores the saved state. It reads the object again, and returns a Drift if someone else changed it. It is
	// an error if the saved state cannot be read.
	Undo func(ctx context.Context) (*Drift, error)
}

// OrphanFinder is implemented by a Containment whose changes stay if its lease is lost.
type OrphanFinder interface {
	// FindOrphans returns the objects that this action contained and whose stamped end is not after a time. It only
	// reads. With an error, it may return those that it found before.
	FindOrphans(ctx context.Context, before time.Time) ([]Orphan, error)
}
