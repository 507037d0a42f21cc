// Package audit_test does what every shipped rule for Kubernetes is about, for real, at a real API server whose webhook
// posts its audit log to a real gateway, and sees the rule fire there.
package kubeaudit_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/rules"
	lab "stanch/testenv/kube"
	lacking "stanch/testenv/prereq"
	"stanch/testenv/temporal"
	"stanch/worker/auditevents"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/worker/manifests"
	"stanch/worker/sourceserver"
	"stanch/workflows"
	"stanch/workflows/incident"
)

const webhookToken = "a-token-of-the-audit-tests"

// auditFixture is a cluster with a gateway that gets its audit log.
type auditFixture struct {
	*lab.Cluster
	namespace  string
	detections *detectionLog
}

// detectionLog are what incidents were told.
type detectionLog struct {
	mu  sync.Mutex
	all []sensors.Detection
}

// recordIncident is an incident that tells the test what it was told.
func (d *detectionLog) recordIncident(ctx workflow.Context, _ incident.Input) error {
	for {
		var batch []incident.AttestedDetection
		workflow.GetSignalChannel(ctx, workflows.SignalDetections).Receive(ctx, &batch)
		d.mu.Lock()
		for _, a := range batch {
			d.all = append(d.all, a.Detection)
		}
		d.mu.Unlock()
	}
}

func (d *detectionLog) since(at time.Time) []sensors.Detection {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []sensors.Detection
	for _, one := range d.all {
		if !one.Time.Before(at) {
			out = append(out, one)
		}
	}
	return out
}

func newAuditFixture(t *testing.T) *auditFixture {
	t.Helper()
	lacking.RequireRoot(t)
	w := &auditFixture{detections: &detectionLog{}}
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	intake := &ingest.Ingester{
		Temporal: temporal.Start(t, map[string]any{"Story": w.detections.recordIncident}), Authority: auth,
		Config: config.Default(), Log: slog.New(slog.DiscardHandler), IncidentWorkflow: "Story",
	}
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(webhookToken), 0o600))
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	f, err := sourceserver.New(intake, []config.Source{{
		Name: "api-server", Kind: config.SourceKindKubernetesAudit,
		TokenFile: file,
	}}, log)
	require.NoError(t, err)
	// The gateway needs the cluster and the cluster the gateway's address: until it is there, the webhook is told to wait.
	var door atomic.Pointer[http.Handler]
	pki, err := authority.OpenOrCreatePKI(t.TempDir())
	require.NoError(t, err)
	certificate, err := pki.MutualTLSConfig(authority.RoleGateway, "gateway", gatewayrpc.ServerName)
	require.NoError(t, err)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if h := door.Load(); h != nil {
			(*h).ServeHTTP(rw, r)
			return
		}
		rw.WriteHeader(http.StatusServiceUnavailable)
	}))
	web.Listener = sourceserver.NewTLSMux(web.Listener, certificate)
	web.Start()
	t.Cleanup(web.Close)
	address := "https://" + web.Listener.Addr().String() + "/v1/kubernetes-audit"
	w.Cluster = lab.StartForTest(t, lab.Options{AuditLog: &lab.AuditConfig{
		Policy: manifests.AuditPolicy,
		Flags:  manifests.AuditLimitFlags(), Webhook: manifests.AuditWebhookConfig(address, pki.CACertPEM(), webhookToken),
	}})
	intake.Kube = w.Client()
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	f.AuditEvents = &auditevents.ClusterEvents{Ingester: intake, Log: log, RuleEvaluator: auditevents.NewRuleEvaluator(
		func() *rules.Set { return set }, []netip.Prefix{netip.MustParsePrefix(w.PodCIDR)}, "", log)}
	handler := f.HTTPServer().Handler
	door.Store(&handler)
	w.namespace = w.NewNamespace(t)
	return w
}

// waitForRule waits until a rule fired after a moment.
func (w *auditFixture) waitForRule(t *testing.T, rule string, since time.Time) sensors.Detection {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		all := w.detections.since(since)
		if i := slices.IndexFunc(all, func(d sensors.Detection) bool { return d.Rule == rule }); i >= 0 {
			return all[i]
		}
		if time.Now().After(deadline) {
			var names []string
			for _, d := range all {
				names = append(names, d.Rule)
			}
			t.Errorf("rule %s did not fire; these did: %v", rule, names)
			return sensors.Detection{}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// attackAction is what someone does, and the rules that fire on it.
type attackAction struct {
	expectedRules []string
	run           func(ctx context.Context) error
	// expectRefused: the API server refuses it.
	expectRefused bool
}

func TestAuditRulesDetectAttacksOnRealAPIServer(t *testing.T) {
	w := newAuditFixture(t)
	w.runBenignActivity(t)
	people := w.newTestClients(t)
	tried := map[string]bool{}
	for _, d := range w.attackActions(t, people) {
		for _, rule := range d.expectedRules {
			tried[rule] = true
		}
		t.Run(d.expectedRules[0], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			since := time.Now().Add(-time.Millisecond)
			if err := d.run(ctx); d.expectRefused {
				require.Error(t, err)
			} else {
				require.NoError(t, err)
			}
			for _, rule := range d.expectedRules {
				one := w.waitForRule(t, rule, since)
				if t.Failed() {
					continue
				}
				require.NotEmpty(t, one.Event.Actor)
				require.True(t, incident.HasContainer(one) || one.Event.Subject.Name != "", "%+v", one)
				switch rule {
				case "pod-exec", "port-forward", "ephemeral-container":
					require.Equal(t, "plain", one.Event.Container.Pod.Name, "it joins the incident of the pod that was entered")
					require.Equal(t, "Pod", one.Event.Container.Workload.Kind)
					require.NotEmpty(t, one.Event.Container.ImageDigest)
				case "token-used-outside", "secrets-listed":
					require.Equal(t, "plain", one.Event.Container.Pod.Name, "it joins the incident of the pod whose token it is")
				}
			}
		})
	}
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	for _, r := range set.Rules() {
		if r.Kind == sensors.KindKubernetesAudit && !tried[r.Name] {
			t.Errorf("nobody does what the rule %s is about", r.Name)
		}
	}
}

// testClients are logins of the cluster.
type testClients struct {
	clusterAdmin, privilegedAccount, unprivilegedAccount, podAccount, anonymous kubernetes.Interface
}
