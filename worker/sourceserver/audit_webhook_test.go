package sourceserver_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/rules"
	"stanch/testenv/temporal"
	"stanch/worker/auditevents"
	"stanch/worker/config"
)

// newAuditFixture returns a gateway with the shipped rules and an API server's token.
func newAuditFixture(t *testing.T, inside ...string) *sourceServerFixture {
	t.Helper()
	d := newSourceServerFixture(t, temporal.Start(t, map[string]any{"Story": incidentWorkflow}),
		config.Source{Name: "api-server", Kind: config.SourceKindKubernetesAudit}, config.Source{Name: "edge", Kind: "falco"})
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	var networks []netip.Prefix
	for _, s := range inside {
		networks = append(networks, netip.MustParsePrefix(s))
	}
	d.serveHTTP(t, auditevents.NewRuleEvaluator(func() *rules.Set { return set }, networks,
		"system:serviceaccount:stanch-system:stanch-worker", slog.New(slog.DiscardHandler)))
	return d
}

// newAuditEvent returns one audit event; more is inserted after its user.
func newAuditEvent(id, verb, user, ref string, code int, more string) string {
	return fmt.Sprintf(
		`{"auditID":%q,"stage":"ResponseComplete","requestURI":"/api/v1/x","verb":%q,"user":{"username":%q%s},"sourceIPs":["10.0.0.9"],"userAgent":"kubectl/v1.36","objectRef":%s,"responseStatus":{"code":%d},"requestReceivedTimestamp":%q}`,
		id,
		verb,
		user,
		more,
		ref,
		code,
		nowRFC3339,
	)
}

func newAuditEventList(items ...string) string {
	return `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[` + strings.Join(items, ",") + `]}`
}

const webPodExtra = `,"extra":{"authentication.kubernetes.io/pod-name":["web-7d9c4-bcdfg"],"authentication.kubernetes.io/pod-uid":["uid-1"]}`

func TestKubernetesAuditEvents(t *testing.T) {
	d := newAuditFixture(t, "10.0.0.0/8")
	const endpoint = "/v1/kubernetes-audit"
	named := func(all []sensors.Detection, rule string) sensors.Detection {
		for _, one := range all {
			if one.Rule == rule {
				return one
			}
		}
		t.Fatalf("no %s in %+v", rule, all)
		return sensors.Detection{}
	}

	t.Run("exec into a pod", func(t *testing.T) {
		exec := newAuditEvent("a-1", "create", "alice",
			`{"resource":"pods","subresource":"exec","namespace":"shop","name":"web-7d9c4-bcdfg"}`, 101, "")
		exec = strings.Replace(exec, `"/api/v1/x"`,
			`"/api/v1/namespaces/shop/pods/web-7d9c4-bcdfg/exec?container=web&command=sh&command=--token%3Dhunter2"`, 1)
		code, s := d.post(t, endpoint, "api-server", newAuditEventList(strings.Replace(exec, "ResponseComplete",
			"RequestReceived", 1), strings.Replace(exec, "ResponseComplete", "ResponseStarted", 1), exec))
		require.Equal(t, http.StatusAccepted, code, "%+v", s)
		all := d.incidentDetections(t, "local/shop/Deployment/web")
		one := named(all, "pod-exec")
		require.Equal(t, "kubernetes:alice", one.Event.Actor)
		require.Equal(t, "uid-1", one.Event.Container.Pod.UID)
		require.Equal(t, "web", one.Event.Container.Name, "the container of the exec, not the first one")
		require.Equal(t, "node-1", one.Node)
		require.Equal(t, "api-server", one.Source)
		require.Contains(t, one.Reasons[0],
			"alice requested create pods/exec shop/web-7d9c4-bcdfg from 10.0.0.9 with kubectl/v1.36")
		raw, err := json.Marshal(all)
		require.NoError(t, err)
		require.NotContains(t, string(raw), "hunter2")
		for _, other := range all {
			require.Equal(t, one.ID, other.ID, "its stages are one request")
		}
	})

	t.Run("request with a pod's token", func(t *testing.T) {
		code, _ := d.post(t, endpoint, "api-server", newAuditEventList(newAuditEvent("b-1", "list",
			"system:serviceaccount:shop:web", `{"resource":"secrets"}`, 200, webPodExtra)))
		require.Equal(t, http.StatusAccepted, code)
		one := named(d.incidentDetections(t, "local/shop/Deployment/web"), "secrets-listed-everywhere")
		require.Equal(t, "web-7d9c4-bcdfg", one.Event.Container.Pod.Name)
		require.Equal(t, "sha256:0b3f", named(d.incidentDetections(t, "local/shop/Deployment/web"),
			"pod-exec").Event.Container.ImageDigest)
	})

	t.Run("token used from outside", func(t *testing.T) {
		out := strings.Replace(newAuditEvent("b-2", "get", "system:serviceaccount:shop:web",
			`{"resource":"pods","namespace":"shop"}`, 200, webPodExtra), `"10.0.0.9"`, `"10.0.0.9","203.0.113.7"`, 1)
		code, _ := d.post(t, endpoint, "api-server", newAuditEventList(out))
		require.Equal(t, http.StatusAccepted, code)
		require.Equal(t, sensors.SeverityCritical, named(d.incidentDetections(t, "local/shop/Deployment/web"),
			"token-used-outside").Severity)
	})

	t.Run("request without a pod", func(t *testing.T) {
		bind := newAuditEvent("c-1", "create", "alice",
			`{"resource":"clusterrolebindings","name":"own","apiGroup":"rbac.authorization.k8s.io"}`, 201, "")
		bind = strings.TrimSuffix(bind, "}") +
			`,"requestObject":{"roleRef":{"kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"User","name":"mallory"}]}}`
		gone := newAuditEvent("c-2", "create", "system:serviceaccount:ci:runner",
			`{"resource":"pods","subresource":"exec","namespace":"shop","name":"gone"}`, 101, "")
		code, _ := d.post(t, endpoint, "api-server", newAuditEventList(bind, gone))
		require.Equal(t, http.StatusAccepted, code)
		require.Equal(t, sensors.Subject{Kind: "User", Name: "alice"}, named(d.incidentDetections(t, "local/User/alice"),
			"cluster-admin-bound").Event.Subject)
		one := named(d.incidentDetections(t, "local/ci/ServiceAccount/runner"), "pod-exec-by-account")
		require.Contains(t, strings.Join(one.Reasons, " "),
			"shop/gone, which cannot be contained: pod shop/gone no longer exists")
	})

	t.Run("removed pod security label", func(t *testing.T) {
		put := func(id, labels string) string {
			r := newAuditEvent(id, "update", "carol", `{"resource":"namespaces","namespace":"`+id[:2]+`","name":"`+id[:2]+`"}`,
				200, "")
			return strings.TrimSuffix(r, "}") + `,"requestObject":{"metadata":{"labels":{` + labels +
				`}}},"responseObject":{"metadata":{"labels":{` + labels + `}}}}`
		}
		d.AuditEvents.RuleEvaluator.AddEnforcedNamespaces("n3")
		const label = `"pod-security.kubernetes.io/enforce":"restricted"`
		_, s := d.post(t, endpoint, "api-server", newAuditEventList(put("n1-1", `"team":"a"`), put("n2-1", label),
			put("n2-2", label)))
		require.Equal(t, ingestResponse{Status: "accepted", Telemetry: 3}, s, "one never had the label, and one still has it")
		_, s = d.post(t, endpoint, "api-server", newAuditEventList(put("n2-3", ""), put("n2-4", ""), put("n3-1", "")))
		require.Equal(t, 2, s.Accepted, "each once")
		require.Equal(t, "removed", named(d.incidentDetections(t, "local/User/carol"),
			"pod-security-lowered").Event.Audit.Admission.PodSecurityLevel)
	})

	t.Run("counted reads", func(t *testing.T) {
		var all []string
		for i := range 10 {
			all = append(all, newAuditEvent(fmt.Sprint("d-", i), "get", "bob",
				fmt.Sprintf(`{"resource":"secrets","namespace":"shop","name":"s%d"}`, i), 200, ""))
		}
		code, s := d.post(t, endpoint, "api-server", newAuditEventList(append(all[:9:9], all[0])...))
		require.Equal(t, http.StatusAccepted, code)
		require.Equal(t, ingestResponse{Status: "accepted", Telemetry: 10}, s, "nine reads, one of them twice")
		_, s = d.post(t, endpoint, "api-server", newAuditEventList(all[9]))
		require.Equal(t, 1, s.Accepted)
		require.Equal(t, 10, named(d.incidentDetections(t, "local/User/bob"),
			"secrets-bulk-read").Event.Audit.RecentSecretReads)
	})

	t.Run("Stanch's own requests", func(t *testing.T) {
		own := newAuditEvent(
			"e-1",
			"list",
			"system:serviceaccount:stanch-system:stanch-worker",
			`{"resource":"secrets"}`,
			200,
			`,"extra":{"authentication.kubernetes.io/pod-name":["stanch-worker-1"],"authentication.kubernetes.io/pod-uid":["uid-7"]}`,
		)
		_, s := d.post(t, endpoint, "api-server", newAuditEventList(own))
		require.Equal(t, ingestResponse{Status: "accepted", Telemetry: 1}, s)
		_, s = d.post(t, endpoint, "api-server", newAuditEventList(strings.Replace(own, "10.0.0.9", "203.0.113.7", 1)))
		require.Positive(t, s.Accepted)
	})

	t.Run("responses to the API server", func(t *testing.T) {
		code, s := d.post(t, endpoint, "api-server", newAuditEventList(`{"auditID":"x"}`,
			newAuditEvent("f-1", "get", "alice", `{"resource":"pods"}`, 200, "")))
		require.Equal(t, http.StatusAccepted, code, "otherwise the complete list is sent again for one broken event")
		require.Equal(t, 1, s.Telemetry)
		require.Len(t, d.receivedHealth.reports, 1, "the undecodable event is reported")
		require.Equal(t, uint64(1), d.receivedHealth.reports[0].UndecodableEvents)
		require.Equal(t, "api-server", d.receivedHealth.reports[0].Source)
		require.Contains(t, d.receivedHealth.reports[0].Message, "audit event 1: missing auditID")
		for name, c := range map[string]struct {
			source, body string
			want         int
		}{
			"not a list": {"api-server", `{"kind":"Pod"}`, 400}, "nobody": {"", "{}", 401},
			"another's token": {"edge", newAuditEventList(), 403},
		} {
			code, _ := d.post(t, endpoint, c.source, c.body)
			require.Equal(t, c.want, code, name)
		}
		d.failKube = errors.New("etcd is away")
		exec := newAuditEventList(newAuditEvent("f-2", "create", "alice",
			`{"resource":"pods","subresource":"attach","namespace":"shop","name":"web-7d9c4-bcdfg"}`, 101, ""))
		code, s = d.post(t, endpoint, "api-server", exec)
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.NotEmpty(t, s.retryAfter)
		d.failKube = nil
		code, _ = d.post(t, endpoint, "api-server", exec)
		require.Equal(t, http.StatusAccepted, code)
	})

	t.Run("empty list as heartbeat", func(t *testing.T) {
		before := d.receivedHealth.messagesBySource["api-server"]
		require.Positive(t, before)
		code, _ := d.post(t, endpoint, "api-server", newAuditEventList())
		require.Equal(t, http.StatusAccepted, code)
		require.Equal(t, before+1, d.receivedHealth.messagesBySource["api-server"])
		_, _ = d.post(t, endpoint, "api-server", `{"kind":"Pod"}`)
		require.Equal(t, before+1, d.receivedHealth.messagesBySource["api-server"],
			"an undecodable request is not a heartbeat")
	})

	t.Run("normal cluster activity", func(t *testing.T) {
		_, s := d.post(t, endpoint, "api-server", newAuditEventList(
			newAuditEvent("g-1", "list", "system:kube-controller-manager", `{"resource":"secrets"}`, 200, ""),
			newAuditEvent("g-2", "watch", "system:node:node-1", `{"resource":"secrets","namespace":"shop","name":"tls"}`, 200,
				""),
			newAuditEvent("g-3", "create", "system:node:node-1",
				`{"resource":"serviceaccounts","subresource":"token","namespace":"shop","name":"web"}`, 201, ""),
			newAuditEvent("g-4", "deletecollection", "system:serviceaccount:kube-system:namespace-controller",
				`{"resource":"events","namespace":"shop"}`, 200, ""),
			newAuditEvent("g-5", "get", "system:serviceaccount:shop:web",
				`{"resource":"secrets","namespace":"shop","name":"db"}`, 200, webPodExtra),
			newAuditEvent("g-6", "patch", "alice",
				`{"resource":"deployments","apiGroup":"apps","namespace":"shop","name":"web"}`, 200, ""),
		))
		require.Equal(t, ingestResponse{Status: "accepted", Telemetry: 6}, s)
	})
}
