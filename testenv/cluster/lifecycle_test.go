package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/playbooks"
	"stanch/testenv/kube"
)

// The life of an installation with Helm, on the lab: every step that a user takes, in their order, with a lease in
// force where that could go wrong. Each step builds on the one before.
func TestHelmLifecycle(t *testing.T) {
	r := newHelmRelease(t, kube.Shared(t))
	before := inventory(t, r.Cluster)
	current := currentChart(t)
	step := func(name string, run func(t *testing.T)) {
		if !t.Failed() {
			t.Run(name, run)
		}
	}

	step("the API server accepts the objects of every phase and topology", func(t *testing.T) {
		for _, changes := range []map[string]any{
			{"phase": 1},
			{"phase": 3, "worker.replicas": 2, "monitoring.dashboard": true},
			{"temporal.address": "temporal.example:7233", "temporal.apiKey.enabled": true, "networkPolicy.enabled": false},
			{"worker.hostNetwork": true, "worker.dataPath": "/var/lib/stanch", "sensor.nodeCertDir": "/etc/stanch/node"},
			{"bootstrap.enabled": false, "uninstall.keepData": false},
		} {
			require.NoError(t, r.dryRun(t.Context(), current, r.with(changes)), "%v", changes)
		}
		require.Error(t, r.dryRun(t.Context(), current, r.with(map[string]any{"phase": 4})))
	})

	step("one command installs, and a second one runs a drill", func(t *testing.T) {
		began := time.Now()
		require.NoError(t, r.install(t.Context(), current, r.values))
		t.Logf("installed in %s", time.Since(began).Round(100*time.Millisecond))
		began = time.Now()
		raw, err := r.tryStanch(t.Context(), r.reach("drill", "--image", kube.AttackImage, "-o", "json")...)
		require.NoError(t, err, "%s", raw)
		var drill drillOutput
		require.NoError(t, json.Unmarshal(raw, &drill))
		require.True(t, drill.OK, "%s", raw)
		t.Logf("the drill took %s: %v ms", time.Since(began).Round(100*time.Millisecond), drill.Latency)
	})

	ns, p := r.NewNamespace(t), r.newConnectionCounter(t)
	pod := minerPod("held", p)
	var incident playbooks.Incident
	step("an attack is contained by the release before", func(t *testing.T) {
		require.NoError(t, r.upgrade(t.Context(), previousChart(t), r.values))
		pod = r.RunPod(t, ns, pod)
		incident = r.waitForIncident(t, pod, "the lease", requireIsolated)
	})
	requireHeld := func(t *testing.T) {
		t.Helper()
		require.NoError(t, p.requireSilent(time.Second))
		r.waitForIncident(t, pod, "the lease", requireIsolated)
	}

	step("an upgrade leaves the containment in force", func(t *testing.T) {
		stop := p.watchSilence()
		require.NoError(t, r.upgrade(t.Context(), current, r.values))
		requireHeld(t)
		require.NoError(t, stop())
	})
	step("the phase is raised with the lease in force", func(t *testing.T) {
		require.NoError(t, r.upgrade(t.Context(), current, r.with(map[string]any{"phase": 3})))
		requireHeld(t)
	})
	step("the phase is not lowered while a lease needs its permissions", func(t *testing.T) {
		err := r.upgrade(t.Context(), current, r.with(map[string]any{"phase": 1}))
		require.ErrorContains(t, err, "leases are in force that could no longer be undone")
		require.ErrorContains(t, err, "of pod.isolate")
		require.True(t, r.canWorkerPatchPods(t), "the refused upgrade took the permission away")
		requireHeld(t)
	})
	step("Temporal is not replaced while it has a lease in force", func(t *testing.T) {
		err := r.upgrade(t.Context(), current, r.with(map[string]any{"temporal.address": "temporal.example:7233"}))
		require.ErrorContains(t, err, "leases are in force that could no longer be undone")
		requireHeld(t)
	})
	step("Stanch is not uninstalled while a lease is in force", func(t *testing.T) {
		require.ErrorContains(t, r.uninstallRelease(), "leases are in force that could no longer be undone")
		requireHeld(t)
	})
	step("a rollback to the phase that can undo the lease works", func(t *testing.T) {
		require.NoError(t, r.rollback(1))
		requireHeld(t)
	})

	step("when a person has released the lease, the phase is lowered", func(t *testing.T) {
		r.runStanch(t, r.reach("release", "--all")...)
		r.waitForIncident(t, pod, "the undo", requireUndone)
		require.NoError(t, r.upgrade(t.Context(), current, r.with(map[string]any{"phase": 1})))
		require.False(t, r.canWorkerPatchPods(t))
		require.Error(t, p.requireSilent(time.Second), "the pod can connect again")
	})
	step("a drill in phase 1 shows what would be contained, and contains nothing", func(t *testing.T) {
		raw, err := r.tryStanch(t.Context(), r.reach("drill", "--image", kube.AttackImage, "-o", "json")...)
		require.NoError(t, err, "%s", raw)
		var drill drillOutput
		require.NoError(t, json.Unmarshal(raw, &drill))
		require.Empty(t, drill.Leases)
		require.Contains(t, string(raw), "proposed in phase 1, and not done: ")
		require.Contains(t, string(raw), "pod.isolate")
	})
	step("a rollback to a phase that could not undo the lease is refused", func(t *testing.T) {
		observing := r.revision(t)
		require.NoError(t, r.upgrade(t.Context(), current, r.values))
		second := r.RunPod(t, ns, minerPod("held-again", p))
		r.waitForIncident(t, second, "the lease", requireIsolated)
		require.ErrorContains(t, r.rollback(observing), "leases are in force that could no longer be undone")
		require.True(t, r.canWorkerPatchPods(t))
		r.runStanch(t, r.reach("release", "--all")...)
		r.waitForIncident(t, second, "the undo", requireUndone)
		require.NoError(t, r.Client().CoreV1().Pods(ns).Delete(t.Context(), second.Name, metav1.DeleteOptions{}))
	})
	step("data survives an uninstallation", func(t *testing.T) {
		require.NoError(t, r.Client().CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}))
		require.NoError(t, r.uninstallRelease())
		r.waitPodsGone(t)
		kept := without(inventory(t, r.Cluster), before)
		kept = slices.DeleteFunc(kept, func(entry string) bool { return strings.Contains(entry, ns) })
		n := r.namespace + "/stanch-"
		require.ElementsMatch(t, []string{
			"object ConfigMap " + n + "ca", "object ConfigMap " + n + "kill-switch",
			"object ConfigMap " + n + "used-grants", "object ConfigMap " + n + "watched-nodes",
			"object Secret " + n + "keys", "object Secret " + n + "pki",
			"object Secret " + n + "temporal", "object Secret " + n + "temporal-server",
			"object PersistentVolumeClaim " + n + "evidence", "object PersistentVolumeClaim " + n + "temporal",
		}, kept)
		require.NoError(t, r.install(t.Context(), current, r.with(map[string]any{"uninstall.keepData": false})))
		raw := r.runStanch(t, r.reach("incidents", incident.ID)...)
		require.Contains(t, string(raw), incident.ID)
		r.runStanch(t, r.reach("audit", incident.ID)...)
	})
	step("without kept data, uninstalling leaves nothing behind", func(t *testing.T) {
		require.NoError(t, r.uninstallRelease())
		r.waitPodsGone(t)
		left := without(inventory(t, r.Cluster), before)
		left = slices.DeleteFunc(left, func(entry string) bool { return strings.Contains(entry, ns) })
		require.Empty(t, left)
	})
}

// requireUndone wants every lease of an incident undone.
func requireUndone(i playbooks.Incident) error {
	for _, l := range i.Leases {
		if !l.Undone {
			return errors.New(l.Action + " is " + l.State)
		}
	}
	return nil
}

// watchSilence returns a function that says whether a connection came since.
func (p *connectionCounter) watchSilence() func() error {
	before := p.connections.Load()
	return func() error {
		if now := p.connections.Load(); now != before {
			return fmt.Errorf("%d connections came meanwhile", now-before)
		}
		return nil
	}
}
