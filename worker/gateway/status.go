package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"stanch/workflows/lease"
)

// InstallationInfo is what an installation is.
type InstallationInfo struct {
	Version   string
	StartedAt time.Time
	// PlaybookNames are the names of those in use; nil knows none.
	PlaybookNames func() []string
	// InvalidPlaybooks lists what is wrong with playbooks that were edited, each in a sentence; nil knows nothing.
	InvalidPlaybooks func() []string
}

// Status is how an installation stands, in what people look at first.
type Status struct {
	Version    string           `json:"version,omitempty"`
	Cluster    string           `json:"cluster"`
	Phase      int              `json:"phase"`
	StartedAt  time.Time        `json:"started,omitzero"`
	KillSwitch KillSwitchStatus `json:"kill_switch"`
	// Nodes are those whose sensor is connected, with their own report and what the gateway knows of them.
	Nodes           map[string]json.RawMessage `json:"nodes"`
	OpenIncidents   int                        `json:"open_incidents"`
	OpenApprovals   []IncidentApproval         `json:"open_approvals"`
	LeaseCount      int                        `json:"lease_count"`
	NextLeaseExpiry time.Time                  `json:"next_lease_expiry,omitzero"`
	Playbooks       []string                   `json:"playbooks"`
	// Problems are what needs somebody, each in a sentence.
	Problems []string `json:"problems"`
}

// IncidentApproval is an open question of an incident.
type IncidentApproval struct {
	IncidentID string `json:"incident"`
	OpenApproval
}

// status gathers how the installation stands. What cannot be read is a problem of its own and hides nothing else.
func (a *API) status(r *http.Request) (Status, error) {
	s := Status{Version: a.InstallationInfo.Version, StartedAt: a.InstallationInfo.StartedAt, KillSwitch: a.killSwitchStatus(r.Context()), Nodes: map[string]json.RawMessage{}, OpenApprovals: []IncidentApproval{}, Playbooks: []string{}, Problems: []string{}}
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	cfg, err := a.Roster.Current()
	if err != nil {
		problem("the configuration cannot be read: %v; nobody can answer until it is fixed", err)
		cfg = a.Roster.LastRead()
	}
	s.Cluster, s.Phase = cfg.Cluster, cfg.Phase
	if keys := a.Roster.RestartRequiredKeys(); len(keys) > 0 {
		problem("the configuration file was changed and not everything is in force: %s; restart Stanch (only people and groups are read anew)", strings.Join(keys, ", "))
	}
	if a.NodeServer != nil {
		s.Nodes = a.NodeServer.ConnectedNodes()
	}
	if len(s.Nodes) == 0 {
		problem("no sensor is connected: nothing is detected or contained on a node")
	}
	if a.InstallationInfo.InvalidPlaybooks != nil {
		for _, what := range a.InstallationInfo.InvalidPlaybooks() {
			problem("%s", what)
		}
	}
	if a.InstallationInfo.PlaybookNames != nil {
		s.Playbooks = append(s.Playbooks, a.InstallationInfo.PlaybookNames()...)
	}
	if len(s.Playbooks) == 0 {
		problem("no playbooks are in use: incidents are recorded and nothing is done about them")
	}
	if s.KillSwitch.Error != "" {
		problem("the kill switch cannot be read, which pauses new containments: %s", s.KillSwitch.Error)
	}
	list, err := a.viewIncidents(r)
	if err != nil {
		problem("incidents cannot be read: %v", err)
	}
	refused := 0
	for _, in := range list {
		if in.Status == "unreadable" {
			problem("an incident cannot be read: %s", truncateReason(in.Summary))
		}
		for _, w := range in.OpenApprovals { // also of an incident that a person has resolved: somebody asked since
			s.OpenApprovals = append(s.OpenApprovals, IncidentApproval{IncidentID: in.ID, OpenApproval: w})
		}
		if in.Status != "open" || in.Disposition != "" { // a person is done with it
			continue
		}
		s.OpenIncidents++
		refused += len(in.RefusedWhilePaused)
	}
	if refused > 0 {
		problem("containments of open incidents refused while paused: %d; `stanch incidents ID` shows how to contain them now", refused)
	}
	machines, err := a.QueryService.RunningLeases(r.Context(), "")
	if err != nil {
		problem("leases cannot be read: %v", err)
	}
	for _, id := range slices.Sorted(maps.Keys(machines)) {
		m := machines[id]
		if m.State == lease.StateEnded {
			continue
		}
		s.LeaseCount++
		if end := m.LastExpiry(); m.State == lease.StateHeld && (s.NextLeaseExpiry.IsZero() || end.Before(s.NextLeaseExpiry)) {
			s.NextLeaseExpiry = end
		}
		if m.State == lease.StateStuck {
			problem("lease %s cannot be undone: %s", m.LeaseID, truncateReason(m.Reason))
		}
	}
	return s, nil
}
