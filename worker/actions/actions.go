// Package actions is the table of every action: a new action is one line here. It opens the services outside of the
// cluster that actions send to. It runs nothing; package activities does.
package actions

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

// Deps are the dependencies of actions. With the zero value, actions have specs but no effects.
type Deps struct {
	NodeClient       activities.NodeClient
	KubeClient       kubernetes.Interface // nil without a cluster
	Account          *aws.Account         // nil without an AWS account
	Notifier         activities.Notifier  // nil without a chat
	ExternalServices ExternalServices     // the zero value sends nothing
	Log              *slog.Logger         // nil means slog.Default
}

// All returns every action.
func All(p Deps) []activities.Action {
	return append(append(append(kube.Actions(p.KubeClient), aws.Actions(p.Account, p.KubeClient)...),
		p.ExternalServices.newActions()...),
		&node.IsolateAction{NodeClient: p.NodeClient, KubeClient: p.KubeClient},
		&node.FreezeAction{NodeClient: p.NodeClient},
		&node.SnapshotAction{NodeClient: p.NodeClient},
		&notify.LogAction{Logger: cmp.Or(p.Log, slog.Default())},
		&view.NotifyAction{Notifier: p.Notifier},
	)
}

// Catalog returns the specs of every action.
func Catalog() playbooks.Catalog {
	return Documentation().Catalog()
}

// Documentation returns every action without dependencies, for documentation.
func Documentation() *activities.Activities {
	return activities.NewActivities(All(Deps{})...)
}
