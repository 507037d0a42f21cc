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

// About is what an installation is.
type About struct {
	Version string
	Started time.Time
	// Playbooks are the names of those in use; nil knows none.
	Playbooks func() []string
	// Invalid lists what is wrong with playbooks that were edited, each in a sentence; nil knows nothing.
	Invalid func() []string
}

// Status is how an installation stands, in what people look at first.
type Status struct {
	Version string    `json:"version,omitempty"`
	Cluster string    `json:"cluster"`
	Phase   int       `json:"phase"`
	Started time.Time `json:"started,omitzero"`
	Switch  Pause     `json:"switch"`
	// Nodes are those whose sensor is connected, with their own report and what the gateway knows of them.
	Nodes     map[string]json.RawMessage `json:"nodes"`
	Open      int                        `json:"open_incidents"`
	Waiting   []StatusWaiting            `json:"waiting"`
	Leases    int                        `json:"leases"`
	NextEnd   time.Time                  `json:"next_lease_end,omitzero"`
	Playbooks []string                   `json:"playbooks"`
	// Problems are what needs somebody, each in a sentence.
	Problems []string `json:"problems"`
}

// StatusWaiting is an open question of an incident.
type StatusWaiting struct {
	Incident string `json:"incident"`
	Waiting
}

// status gathers how the installation stands. What cannot be read is a problem of its own and hides nothing else.
func (a *API) status(r *http.Request) (Status, error) {
	s := Status{Version: a.About.Version, Started: a.About.Started, Switch: a.switchState(r.Context()), Nodes: map[string]json.RawMessage{}, Waiting: []StatusWaiting{}, Playbooks: []string{}, Problems: []string{}}
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	cfg, err := a.Roster.Current()
	if err != nil {
		problem("the configuration cannot be read: %v; nobody can answer until it is fixed", err)
		cfg = a.Roster.Last()
	}
	s.Cluster, s.Phase = cfg.Cluster, cfg.Phase
	if keys := a.Roster.Pending(); len(keys) > 0 {
		problem("the configuration file was changed and not everything is in force: %s; restart Stanch (only people and groups are read anew)", strings.Join(keys, ", "))
	}
	if a.Hub != nil {
		s.Nodes = a.Hub.Nodes()
	}
	if len(s.Nodes) == 0 {
		problem("no sensor is connected: nothing is detected or contained on a node")
	}
	if a.About.Invalid != nil {
		for _, what := range a.About.Invalid() {
			problem("%s", what)
		}
	}
	if a.About.Playbooks != nil {
		s.Playbooks = append(s.Playbooks, a.About.Playbooks()...)
	}
	if len(s.Playbooks) == 0 {
		problem("no playbooks are in use: incidents are recorded and nothing is done about them")
	}
	if s.Switch.Error != "" {
		problem("the kill switch cannot be read, which pauses new containments: %s", s.Switch.Error)
	}
	list, err := a.views(r)
	if err != nil {
		problem("incidents cannot be read: %v", err)
	}
	refused := 0
	for _, in := range list {
		if in.Status == "unreadable" {
			problem("an incident cannot be read: %s", clipReason(in.Summary))
		}
		for _, w := range in.Waiting { // also of an incident that a person has resolved: somebody asked since
			s.Waiting = append(s.Waiting, StatusWaiting{Incident: in.ID, Waiting: w})
		}
		if in.Status != "open" || in.Disposition != "" { // a person is done with it
			continue
		}
		s.Open++
		refused += len(in.Paused)
	}
	if refused > 0 {
		problem("containments of open incidents refused while paused: %d; `stanch incidents ID` shows how to contain them now", refused)
	}
	machines, err := a.Reader.Machines(r.Context(), "")
	if err != nil {
		problem("leases cannot be read: %v", err)
	}
	for _, id := range slices.Sorted(maps.Keys(machines)) {
		m := machines[id]
		if m.State == lease.StateEnded {
			continue
		}
		s.Leases++
		if end := m.LastExpiry(); m.State == lease.StateHeld && (s.NextEnd.IsZero() || end.Before(s.NextEnd)) {
			s.NextEnd = end
		}
		if m.State == lease.StateStuck {
			problem("lease %s cannot be undone: %s", m.LeaseID, clipReason(m.Reason))
		}
	}
	return s, nil
}
