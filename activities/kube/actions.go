// Package kube contains the actions on Kubernetes objects, which read and write at the API server: a file for each,
// with its spec, permissions, plan, apply, verify, undo, and search for orphans. It also contains the NetworkPolicy of
// pod.isolate, whose action is in package node.
//
// It contains no Temporal, guard or token logic: its callers decide. It keeps no state between calls; what an undo
// needs is returned as data and also stamped on the object, so that the orphan sweep finds objects whose lease is lost.
// It never changes an object or a field that it does not own without saving the prior state, creates only objects that
// do not exist, and identifies every target by UID, so that it never affects a newer pod of the same name.
//
// Strings from pods are attacker-controlled; this package only passes them on.
package kube

import (
	"context"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// Actions returns the actions of this package for one cluster. With a nil client, they refuse.
func Actions(client kubernetes.Interface) []activities.Action {
	return []activities.Action{
		&workloadAction{client}, // enrich: workload
		&imageAction{client},    // enrich: image
		&logsAction{client},     // evidence: pod.logs
		&manifestAction{client}, // evidence: pod.manifest
		&restartAction{client},  // contain: pod.restart
		&scaleAction{client},    // contain: workload.scale
		&cordonAction{client},   // contain: node.cordon
	}
}

// permission returns the permission to use the verbs on resources of a group, for action specs.
func permission(group string, resources []string, verbs ...string) playbooks.KubernetesPermission {
	return playbooks.KubernetesPermission{Groups: []string{group}, Resources: resources, Verbs: verbs}
}

// requirePod returns the pod of a request, or a refusal if there is no cluster.
func requirePod(client kubernetes.Interface, r activities.Request) (PodRef, error) {
	if client == nil {
		return PodRef{}, activities.Refusef("no cluster is connected")
	}
	if r.Target.Kind != playbooks.TargetPod {
		return PodRef{}, activities.Refusef("%s is not a pod", r.Target)
	}
	return PodRefForTarget(r.Target), nil
}

// sleep waits until d has passed or ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
