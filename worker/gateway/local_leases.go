package gateway

import (
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"stanch/playbooks"
	"stanch/sensors/proof"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// LeaseRequest names one lease, or all.
type LeaseRequest struct {
	Lease string        `json:"lease,omitempty"`
	All   bool          `json:"all,omitempty"`
	For   time.Duration `json:"for,omitempty"` // extend: from now
}

// releaseLife is how long a release may take to get through; a lease that is stuck is released anew.
const releaseLife = 24 * time.Hour

func (l *Local) grantFor(s speaker, operation proof.Operation, m *lease.Machine, until time.Time) (proof.Signed, error) {
	signed, err := l.Authority.Sign(proof.PurposeGrant, proof.Grant{
		Nonce: uuid.NewString(), Operation: operation, Lease: m.Lease, Until: until, Incident: m.Incident.ID,
		Targets: []string{m.Target.ID()}, People: []string{fmt.Sprintf("%s (%s)", s.Name, s.proved)}, Issued: time.Now(), Expires: time.Now().Add(releaseLife),
	})
	if err != nil {
		return proof.Signed{}, fmt.Errorf("sign the grant: %w", err)
	}
	return signed, nil
}

func (l *Local) each(r *http.Request, operation proof.Operation, do func(s speaker, id string, m *lease.Machine, q LeaseRequest) error) (any, error) {
	s, err := l.who(r)
	if err != nil {
		return nil, err
	}
	var q LeaseRequest
	if err := decodeBody(r, &q); err != nil {
		return nil, err
	}
	if !q.All && q.Lease == "" {
		return nil, &problem{http.StatusBadRequest, "name a lease, or all"}
	}
	machines, err := l.Reader.Machines(r.Context())
	if err != nil {
		return nil, err
	}
	var done []playbooks.LeaseReport
	for id, m := range machines {
		if !q.All && m.Lease != q.Lease && id != q.Lease {
			continue
		}
		if s.drill != "" && m.Incident.Scope != config.DrillScope {
			return nil, deny("a drill's key releases drills' leases only")
		}
		if err := do(s, id, m, q); err != nil {
			return nil, err
		}
		l.Log.Info("a lease was changed by a person", "operation", operation, "lease", m.Lease, "by", s.Name, "proved", s.proved)
		done = append(done, m.Report(time.Now()))
	}
	if len(done) == 0 && !q.All {
		return nil, missing("there is no lease %s in force; `stanch leases` lists them", clip(q.Lease))
	}
	return done, nil
}

func (l *Local) release(r *http.Request) (any, error) {
	return l.each(r, proof.OperationRelease, func(s speaker, id string, m *lease.Machine, _ LeaseRequest) error {
		grant, err := l.grantFor(s, proof.OperationRelease, m, time.Time{})
		if err != nil {
			return err
		}
		if err := l.Reader.Temporal.SignalWorkflow(r.Context(), id, "", workflows.SignalRelease, lease.ReleaseSignal{Grant: grant}); err != nil {
			return fmt.Errorf("release %s: %w", m.Lease, err)
		}
		return nil
	})
}

func (l *Local) extend(r *http.Request) (any, error) {
	return l.each(r, proof.OperationExtend, func(s speaker, id string, m *lease.Machine, q LeaseRequest) error {
		until := time.Now().Add(q.For)
		if q.For <= 0 || q.For > 7*24*time.Hour {
			return &problem{http.StatusBadRequest, "say how long from now: at most 168h"}
		}
		grant, err := l.grantFor(s, proof.OperationExtend, m, until)
		if err != nil {
			return err
		}
		if err := l.Reader.Temporal.SignalWorkflow(r.Context(), id, "", workflows.SignalExtend, lease.ExtendSignal{Until: until, Grant: grant}); err != nil {
			return fmt.Errorf("extend %s: %w", m.Lease, err)
		}
		return nil
	})
}
