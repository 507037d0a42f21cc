// Package workflows holds the names by which workflows reach each other: ids, task queues, signals and queries.
// Each workflow is a package below. They are deterministic code only: whatever reads a clock, a network or a random
// number is an activity.
package workflows

import (
	"strings"

	"stanch/playbooks"
)

// TaskQueue is where workflows and the activities that need no particular node run.
const TaskQueue = "stanch"

// NodeQueue is the task queue of one node: it is served by the gateway that holds the node's stream.
func NodeQueue(node string) string { return "stanch-node/" + node }

// IncidentAttribute is the search attribute that carries the incident's id on every workflow of it.
const IncidentAttribute = "StanchIncident"

// The signals.
const (
	SignalDetections     = "detections"      // gateway to incident
	SignalPlaybookReport = "playbook-report" // playbook to incident
	SignalLeaseReport    = "lease-report"    // lease to playbook and incident
	SignalVote           = "vote"            // gateway to playbook
	SignalMark           = "mark"            // gateway to incident: taken over, false positive
	SignalHalt           = "halt"            // incident to playbook: a person decides from now on
	SignalWatch          = "watch"           // playbook to incident: say how it is whenever it changes
	SignalUnwatch        = "unwatch"         // playbook to incident: nobody waits any more
	SignalLive           = "live"            // incident to playbook: how it is
	SignalLook           = "look"            // incident and playbook to thread: something happened
	SignalJoin           = "join"            // playbook to lease
	SignalRelease        = "release"         // gateway to lease
	SignalExtend         = "extend"          // gateway to lease
)

// The queries.
const (
	QueryIncident = "incident"
	QueryPending  = "pending"
	QuerySteps    = "steps"
	QueryAnswered = "answered" // what became of a run's questions
	QueryLease    = "lease"
)

// IncidentID is the workflow id of the incident of a workload: the grouping key.
func IncidentID(key string) string { return "incident/" + key }

// ThreadID is the workflow id of what keeps an incident's message.
func ThreadID(incident string) string { return "thread/" + incident }

// LeaseID is the workflow id of the lease of one facet of one target.
func LeaseID(cluster string, target playbooks.Target, facet playbooks.Facet) string {
	return strings.Join([]string{"lease", cluster, target.ID(), string(facet)}, "/")
}

// NodeLeaseID is the workflow id of the lease of a target that only its node speaks for: a container of a machine outside
// of a cluster, or a pod that the API server did not confirm. A lease that one node's word began is not joined by another's.
func NodeLeaseID(cluster string, target playbooks.Target, facet playbooks.Facet) string {
	return strings.Join([]string{"lease", cluster, target.ID() + "@" + target.Node, string(facet)}, "/")
}
