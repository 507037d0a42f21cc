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

// NodeTaskQueue is the task queue of one node: it is served by the gateway that holds the node's stream.
func NodeTaskQueue(node string) string { return "stanch-node/" + node }

// IncidentSearchAttribute is the search attribute that carries the incident's id on every workflow of it.
const IncidentSearchAttribute = "StanchIncident"

// The signals.
const (
	SignalDetections      = "detections"      // gateway to incident
	SignalPlaybookReport  = "playbook-report" // playbook to incident
	SignalLeaseReport     = "lease-report"    // lease to playbook and incident
	SignalVote            = "vote"            // gateway to playbook
	SignalTriage          = "triage"          // gateway to incident: assigned, or resolved with a disposition
	SignalSuspend         = "suspend"         // incident to playbook: a person decides from now on
	SignalWatchIncident   = "watch"           // playbook to incident: say how it is whenever it changes
	SignalUnwatchIncident = "unwatch"         // playbook to incident: nobody waits any more
	SignalIncidentState   = "incident-state"  // incident to playbook: how it is
	SignalSyncMessage     = "sync-message"    // incident and playbook to thread: something happened
	SignalJoinLease       = "join"            // playbook to lease
	SignalReleaseLease    = "release"         // gateway to lease
	SignalExtendLease     = "extend"          // gateway to lease
)

// The queries.
const (
	QueryIncident          = "incident"
	QueryPendingApprovals  = "pending-approvals"
	QuerySteps             = "steps"
	QueryAnsweredApprovals = "answered-approvals" // what became of a run's questions
	QueryLease             = "lease"
)

// IncidentWorkflowID is the workflow id of the incident of a workload: the grouping key.
func IncidentWorkflowID(key string) string { return "incident/" + key }

// ChatMessageWorkflowID is the workflow id of what keeps an incident's message.
func ChatMessageWorkflowID(incident string) string { return "chat-message/" + incident }

// LeaseWorkflowID is the workflow id of the lease of one facet of one target.
func LeaseWorkflowID(cluster string, target playbooks.Target, facet playbooks.Facet) string {
	return strings.Join([]string{"lease", cluster, target.ID(), string(facet)}, "/")
}

// NodeLeaseWorkflowID is the workflow id of the lease of a target that only its node speaks for: a container of a machine outside
// of a cluster, or a pod that the API server did not confirm. A lease that one node's word began is not joined by another's.
func NodeLeaseWorkflowID(cluster string, target playbooks.Target, facet playbooks.Facet) string {
	return strings.Join([]string{"lease", cluster, target.ID() + "@" + target.Node, string(facet)}, "/")
}
