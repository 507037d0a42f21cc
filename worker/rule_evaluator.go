package worker

import (
	"context"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/sensors/agent"
	"stanch/sensors/rules"
	"stanch/worker/auditevents"
	"stanch/worker/config"
)

// ruleReloadInterval is how often rule packs are checked for changes.
const ruleReloadInterval = 2 * time.Second

// openRuleEvaluator loads the rules for events that no node sees, if the installation receives any, and reloads changed
// ones.
func (w *Worker) openRuleEvaluator(ctx context.Context) error {
	if !w.needsRuleEvaluator() {
		return nil
	}
	files, set, err := agent.OpenRules(w.Config.Rules, w.Log)
	if err != nil {
		return err
	}
	var current atomic.Pointer[rules.Set]
	current.Store(set)
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(ruleReloadInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if set := files.ReloadIfChanged(); set != nil {
					current.Store(set)
				}
			}
		}
	}()
	w.closers = append(w.closers, func() { stop(); <-done })
	w.ruleEvaluator = auditevents.NewRuleEvaluator(current.Load, w.Config.ClusterPrefixes(), w.stanchServiceAccount(ctx),
		w.Log)
	w.loadEnforcedNamespaces(ctx)
	return nil
}

// loadEnforcedNamespaces loads the namespaces that enforce a pod security standard. Without it, only those with later
// events are known.
func (w *Worker) loadEnforcedNamespaces(ctx context.Context) {
	if w.KubeClient == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := w.KubeClient.CoreV1().Namespaces().List(ctx,
		metav1.ListOptions{LabelSelector: "pod-security.kubernetes.io/enforce"})
	if err != nil {
		w.Log.Warn("could not list the namespaces; the removal of a pod security label is not detected", "error", err)
		return
	}
	for _, n := range list.Items {
		w.ruleEvaluator.AddEnforcedNamespaces(n.Name)
	}
}

// needsRuleEvaluator reports whether the installation receives events that need rules.
func (w *Worker) needsRuleEvaluator() bool {
	for _, s := range w.Config.Sources {
		if w.SourceListen != "" && (s.Kind == "" || s.Kind == config.SourceKindKubernetesAudit) {
			return true
		}
	}
	return w.Config.AWS != nil && w.Config.AWS.CloudTrail != nil
}

// stanchServiceAccount returns Stanch's identity in the cluster; "" if it is unknown.
func (w *Worker) stanchServiceAccount(ctx context.Context) string {
	if w.KubeClient == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	me, err := w.KubeClient.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{},
		metav1.CreateOptions{})
	if err != nil {
		w.Log.Warn("could not get Stanch's own service account; Stanch's requests are evaluated like all others", "error",
			err)
		return ""
	}
	return me.Status.UserInfo.Username
}
