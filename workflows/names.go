// Package workflows defines the names by which workflows reach each other: ids, task queues, signals and queries. Each
// workflow is a package below it. Workflow code is deterministic: everything that reads a clock, a network or a random
// number is an activity.
package workflows

import (
	"strings"

	"stanch/playbooks"
)

// TaskQueue is the task queue of workflows, and of activities that need no particular node.
const TaskQueue = "stanch"

// NodeTaskQueue returns the task queue of one node. The gateway with the node's stream serves it.
func NodeTaskQueue(node string) string { return "stanch-node/" + node }

// IncidentSearchAttribute is the search attribute with the incident's id on each of its workflows.
const IncidentSearchAttribute = "StanchIncident"

// The signals.
const (
	SignalDetections      = "detections"      // gateway to incident
	SignalPlaybookReport  = "playbook-report" // playbook to incident
	SignalLeaseReport     = "lease-report"    // lease to playbook and incident
	SignalVote            = "vote"            // gateway to playbook
	SignalTriage          = "triage"          // gateway to incident: assigned, or resolved with a disposition
	SignalSuspend         = "suspend"         // incident to playbook: stop containing; a person decides
	SignalWatchIncident   = "watch"           // playbook to incident: send the state at every change
	SignalUnwatchIncident = "unwatch"         // playbook to incident: stop sending it
	SignalIncidentState   = "incident-state"  // incident to playbook: the current state
	SignalSyncMessage     = "sync-message"    // incident and playbook to chat message: something happened
	SignalJoinLease       = "join"            // playbook to lease
	SignalReleaseLease    = "release"         // gateway to lease
	SignalExtendLease     = "extend"          // gateway to lease
)

// The queries.
const (
	QueryIncident          = "incident"
	QueryPendingApprovals  = "pending-approvals"
	QuerySteps             = "steps"
	QueryAnsweredApprovals = "answered-approvals" // results of a run's closed approval requests
	QueryLease             = "lease"
)

// IncidentWorkflowID returns the workflow id of the incident with a grouping key.
func IncidentWorkflowID(key string) string { return "incident/" + key }

// ChatMessageWorkflowID returns the workflow id of an incident's chat message.
func ChatMessageWorkflowID(incident string) string { return "chat-message/" + incident }

// LeaseWorkflowID returns the workflow id of the lease of one facet of one target.
func LeaseWorkflowID(cluster string, target playbooks.Target, facet playbooks.Facet) string {
	return strings.Join([]string{"lease", cluster, target.ID(), string(facet)}, "/")
}

// NodeLeaseWorkflowID returns the workflow id of the lease of a target that only its node reports: a container on a
// machine outside the cluster, or a pod that the API server did not confirm. A lease that started with one node's
// report cannot be joined with another's.
func NodeLeaseWorkflowID(cluster string, target playbooks.Target, facet playbooks.Facet) string {
	return strings.Join([]string{"lease", cluster, target.ID() + "@" + target.Node, string(facet)}, "/")
}
