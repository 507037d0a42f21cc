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
	Nodes   activities.NodeClient
	Kube    kubernetes.Interface // nil without a cluster
	Account *aws.Account         // nil without an account
	Desk    activities.Notifier    // nil without a chat
	Outside Outside              // the zero value tells nobody
	Log     *slog.Logger         // nil is the default
}

// Actions gives every action.
func Actions(p Parts) []activities.Action {
	return append(append(append(kube.Actions(p.Kube), aws.Actions(p.Account, p.Kube)...), p.Outside.actions()...),
		&node.IsolateAction{NodeClient: p.Nodes, KubeClient: p.Kube},
		&node.FreezeAction{NodeClient: p.Nodes},
		&node.SnapshotAction{NodeClient: p.Nodes},
		&notify.LogAction{Logger: cmp.Or(p.Log, slog.Default())},
		&view.NotifyAction{Notifier: p.Desk},
	)
}

// Catalogue is the specs of every action.
func Catalogue() playbooks.Catalog {
	return ActionSet().Catalog()
}

// ActionSet is every action without anything to act on: for documentation.
func ActionSet() *activities.Activities { return activities.NewActivities(Actions(Parts{})...) }
