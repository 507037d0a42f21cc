package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"stanch/sensors/truncate"
	"stanch/workflows/lease"
)

// InstallationInfo describes a running installation.
type InstallationInfo struct {
	Version   string
	StartedAt time.Time
	// PlaybookNames returns the names of the playbooks in use; nil for none.
	PlaybookNames func() []string
	// InvalidPlaybooks returns the errors of playbooks that were edited, each as a sentence; nil for none.
	InvalidPlaybooks func() []string
}

// Status is the state of an installation, as `stanch status` shows it.
type Status struct {
	Version    string           `json:"version,omitempty"`
	Cluster    string           `json:"cluster"`
	Phase      int              `json:"phase"`
	StartedAt  time.Time        `json:"started,omitzero"`
	KillSwitch KillSwitchStatus `json:"kill_switch"`
	// Nodes maps each node whose sensor is connected to its report and to what the gateway measured.
	Nodes           map[string]json.RawMessage `json:"nodes"`
	OpenIncidents   int                        `json:"open_incidents"`
	OpenApprovals   []IncidentApproval         `json:"open_approvals"`
	LeaseCount      int                        `json:"lease_count"`
	NextLeaseExpiry time.Time                  `json:"next_lease_expiry,omitzero"`
	Playbooks       []string                   `json:"playbooks"`
	// Problems lists what needs someone, each as a sentence.
	Problems []string `json:"problems"`
}

// IncidentApproval is a pending approval request of an incident.
type IncidentApproval struct {
	IncidentID string `json:"incident"`
	OpenApproval
}

// status collects the state of the installation. Anything that cannot be read is a problem of its own, and hides
// nothing else.
func (a *API) status(r *http.Request) (Status, error) {
	s := Status{
		Version: a.InstallationInfo.Version, StartedAt: a.InstallationInfo.StartedAt,
		KillSwitch: a.killSwitchStatus(r.Context()), Nodes: map[string]json.RawMessage{}, OpenApprovals: []IncidentApproval{},
		Playbooks: []string{}, Problems: []string{},
	}
	cfg, err := a.Roster.Current()
	if err != nil {
		s.addProblem("the configuration cannot be read: %v; nobody can approve until it is fixed", err)
		cfg = a.Roster.LastRead()
	}
	s.Cluster, s.Phase = cfg.Cluster, cfg.Phase
	if keys := a.Roster.RestartRequiredKeys(); len(keys) > 0 {
		s.addProblem("the configuration file was changed, and these keys are not in effect: %s; restart Stanch (only "+
			"people and groups are reloaded)", strings.Join(keys, ", "))
	}
	if a.NodeServer != nil {
		s.Nodes = a.NodeServer.ConnectedNodes()
	}
	if len(s.Nodes) == 0 {
		s.addProblem("no sensor is connected: nothing is detected or contained on any node")
	}
	if a.InstallationInfo.InvalidPlaybooks != nil {
		for _, what := range a.InstallationInfo.InvalidPlaybooks() {
			s.addProblem("%s", what)
		}
	}
	if a.InstallationInfo.PlaybookNames != nil {
		s.Playbooks = append(s.Playbooks, a.InstallationInfo.PlaybookNames()...)
	}
	if len(s.Playbooks) == 0 {
		s.addProblem("no playbook is in use: incidents are recorded without a response")
	}
	if s.KillSwitch.Error != "" {
		s.addProblem("the kill switch cannot be read, which pauses new containments: %s", s.KillSwitch.Error)
	}
	a.addIncidents(r, &s)
	a.addLeases(r, &s)
	return s, nil
}

func (s *Status) addProblem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

// addIncidents adds the open incidents and the pending approval requests.
func (a *API) addIncidents(r *http.Request, s *Status) {
	list, err := a.viewIncidents(r)
	if err != nil {
		s.addProblem("incidents cannot be read: %v", err)
	}
	refused := 0
	for _, in := range list {
		if in.Status == "unreadable" {
			s.addProblem("an incident cannot be read: %s", truncate.Reason(in.Summary))
		}
		for _, w := range in.OpenApprovals { // also of resolved incidents: a running playbook or a person may ask
			s.OpenApprovals = append(s.OpenApprovals, IncidentApproval{IncidentID: in.ID, OpenApproval: w})
		}
		if in.Status != "open" || in.Disposition != "" { // resolved
			continue
		}
		s.OpenIncidents++
		refused += len(in.RefusedWhilePaused)
	}
	if refused > 0 {
		s.addProblem("containments of open incidents refused while paused: %d; `stanch incidents ID` shows the commands "+
			"to contain them now", refused)
	}
}

// addLeases adds the leases in force.
func (a *API) addLeases(r *http.Request, s *Status) {
	machines, err := a.Queries.RunningLeases(r.Context(), "")
	if err != nil {
		s.addProblem("leases cannot be read: %v", err)
	}
	for _, id := range slices.Sorted(maps.Keys(machines)) {
		m := machines[id]
		if m.State == lease.StateEnded {
			continue
		}
		s.LeaseCount++
		if end := m.LastExpiry(); m.State == lease.StateHeld && (s.NextLeaseExpiry.IsZero() ||
			end.Before(s.NextLeaseExpiry)) {
			s.NextLeaseExpiry = end
		}
		if m.State == lease.StateStuck {
			s.addProblem("lease %s cannot be undone: %s", m.LeaseID, truncate.Reason(m.Reason))
		}
	}
}
