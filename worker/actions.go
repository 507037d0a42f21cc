package worker

import (
	"cmp"
	"log/slog"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/activities/kube"
	"stanch/activities/node"
	"stanch/activities/notify"
	view "stanch/activities/slack"
	"stanch/playbooks"
)

// Parts are what actions act on. The zero value acts on nothing: its actions still tell their specs.
type Parts struct {
	Nodes   activities.Nodes
	Kube    kubernetes.Interface // nil without a cluster
	Account *aws.Account         // nil without an account
	Desk    activities.Teller    // nil without a chat
	Outside Outside              // the zero value tells nobody
	Log     *slog.Logger         // nil is the default
}

// Actions gives every action.
func Actions(p Parts) []activities.Action {
	return append(append(append(kube.Actions(p.Kube), aws.Actions(p.Account, p.Kube)...), p.Outside.actions()...),
		&node.Isolate{Nodes: p.Nodes, Kube: p.Kube},
		&node.Freeze{Nodes: p.Nodes},
		&node.Snapshot{Nodes: p.Nodes},
		&notify.Log{Logger: cmp.Or(p.Log, slog.Default())},
		&view.Say{Desk: p.Desk},
	)
}

// Catalogue is the specs of every action.
func Catalogue() playbooks.Catalog {
	return ActionSet().Catalogue()
}

// ActionSet is every action without anything to act on: for documentation.
func ActionSet() *activities.Set { return activities.NewSet(Actions(Parts{})...) }
