package integrations_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

func auditEventJSON(verb, uri, ref, more string) string {
	return fmt.Sprintf(
		`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"0f7a","stage":"ResponseComplete","requestURI":%q,"verb":%q,
"user":{"username":"system:serviceaccount:ci:deployer","uid":"u-1","groups":["system:serviceaccounts","system:authenticated"],"extra":{"authentication.kubernetes.io/pod-name":["runner-1"],"authentication.kubernetes.io/pod-uid":["p-1"],"authentication.kubernetes.io/node-name":["node-1"]}},
"impersonatedUser":{"username":"admin","groups":["system:masters"]},"sourceIPs":["203.0.113.7"],"userAgent":"kubectl/v1.34","objectRef":%s,"responseStatus":{"metadata":{},"code":201},
"requestReceivedTimestamp":"2026-11-23T03:00:00.123456Z","stageTimestamp":"2026-11-23T03:00:00.2Z","annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"RBAC: allowed","patch.webhook.admission.k8s.io/round_0_index_0":"PLANTED"}%s}`,
		uri,
		verb,
		ref,
		more,
	)
}

var auditLines = []string{
	auditEventJSON(
		"create",
		"/api/v1/namespaces/shop/pods/web-1/exec?command=curl&command=--token&command=PLANTED&container=web&stdin=true&tty=true",
		`{"resource":"pods","namespace":"shop","name":"web-1","apiVersion":"v1","subresource":"exec"}`,
		"",
	),
	auditEventJSON(
		"create",
		"/api/v1/namespaces/shop/pods?dryRun=All",
		`{"resource":"pods","namespace":"shop","apiVersion":"v1"}`,
		`,"requestObject":{"metadata":{"generateName":"x-"},"spec":{"hostPID":true,"hostNetwork":true,"nodeName":"cp-1","serviceAccountName":"web",
"volumes":[{"hostPath":{"path":"/"}},{"emptyDir":{}}],"containers":[{"image":"b","env":[{"name":"A","value":"PLANTED"}],"securityContext":{"privileged":true,"capabilities":{"add":["SYS_ADMIN"]}}}],"initContainers":[{"image":"a"}]}},"responseObject":{"metadata":{"name":"x-abc","uid":"uid-9"}}`,
	),
	auditEventJSON("patch", "/api/v1/namespaces/shop/pods/web-1/ephemeralcontainers",
		`{"resource":"pods","namespace":"shop","name":"web-1","uid":"uid-1","subresource":"ephemeralcontainers"}`,
		`,"requestObject":{"spec":{"ephemeralContainers":[{"image":"busybox","targetContainerName":"web"}]}}`),
	auditEventJSON(
		"create",
		"/apis/apps/v1/namespaces/shop/deployments",
		`{"resource":"deployments","namespace":"shop","name":"web","apiGroup":"apps"}`,
		`,"requestObject":{"spec":{"replicas":2,"template":{"spec":{"hostIPC":true,"containers":[{"image":"shop/web:7","securityContext":{"allowPrivilegeEscalation":true}}]}}}}`,
	),
	auditEventJSON("create", "/apis/batch/v1/namespaces/shop/cronjobs",
		`{"resource":"cronjobs","namespace":"shop","name":"c","apiGroup":"batch"}`,
		`,"requestObject":{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"image":"miner"}]}}}}}}`),
	auditEventJSON(
		"create",
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
		`{"resource":"clusterrolebindings","name":"own","apiGroup":"rbac.authorization.k8s.io"}`,
		`,"requestObject":{"roleRef":{"kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"ServiceAccount","name":"web","namespace":"shop"},{"kind":"User","name":"mallory"}]}`,
	),
	auditEventJSON(
		"create",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles",
		`{"resource":"clusterroles","name":"r","apiGroup":"rbac.authorization.k8s.io"}`,
		`,"requestObject":{"rules":[{"verbs":["*"],"resources":["pods/exec"],"apiGroups":[""]},{"verbs":["get","escalate"],"resources":["secrets"],"apiGroups":[""]}]}`,
	),
	auditEventJSON(
		"create",
		"/api/v1/namespaces/shop/serviceaccounts/web/token",
		`{"resource":"serviceaccounts","namespace":"shop","name":"web","subresource":"token"}`,
		`,"requestObject":{"spec":{"audiences":["vault"],"expirationSeconds":31536000,"boundObjectRef":{"kind":"Pod","name":"web-1"}}},"responseObject":{"status":{"token":"PLANTED"}}`,
	),
	auditEventJSON(
		"create",
		"/api/v1/namespaces/shop/secrets",
		`{"resource":"secrets","namespace":"shop","name":"s"}`,
		`,"requestObject":{"data":{"password":"PLANTED"},"stringData":{"a":"PLANTED"}},"responseObject":{"metadata":{"name":"s","uid":"u"},"data":{"password":"PLANTED"}}`,
	),
	auditEventJSON(
		"create",
		"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
		`{"resource":"mutatingwebhookconfigurations","name":"w"}`,
		`,"requestObject":{"webhooks":[{"failurePolicy":"Ignore","clientConfig":{"url":"https://evil.example","caBundle":"PLANTED"}}]}`,
	),
	auditEventJSON("patch", "/api/v1/namespaces/shop/pods/web-1", `{"resource":"pods","namespace":"shop","name":"web-1"}`,
		`,"requestObject":[{"op":"add","path":"/spec/x","value":"PLANTED"}],"responseObject":{"spec":{"hostPID":true}}`),
}

// Field names are case-sensitive for the API server: of two that differ only in case, it reads one.
func TestAuditFieldNamesAreCaseSensitive(t *testing.T) {
	e := decodeOneAuditEvent(t, auditEventJSON(
		"create",
		"/api/v1/namespaces/shop/pods",
		`{"resource":"pods","namespace":"shop"}`,
		`,"requestObject":{"spec":{"hostPID":true,"HOSTPID":false,"containers":[{"image":"a","securityContext":{"privileged":true,"Privileged":false}}]},"SPEC":{"hostPID":false,"containers":[]}}`,
	))
	require.Equal(t, sensors.AuditPod{HostPID: true, Privileged: true, Images: []string{"a"}}, e.Audit.Pod)
}

func decodeOneAuditEvent(t *testing.T, text string) sensors.Event {
	t.Helper()
	all, err := integrations.DecodeKubernetesAudit([]byte(text))
	require.NoError(t, err)
	require.Len(t, all, 1)
	return all[0]
}

func TestAuditRequestBecomesEvent(t *testing.T) {
	e := decodeOneAuditEvent(t, auditLines[0])
	require.Equal(t, "kubernetes-audit/0f7a", e.ID)
	require.Equal(t, sensors.KindKubernetesAudit, e.Kind)
	require.Equal(t, "kubernetes:system:serviceaccount:ci:deployer", e.Actor)
	require.Equal(t, 123456000, e.Time.Nanosecond())
	require.Equal(t, sensors.Pod{Namespace: "shop", Name: "web-1"}, e.Container.Pod)
	require.Equal(t, sensors.AuditExec{
		Container: "web", Command: []string{"curl", "--token", "[redacted]"}, TTY: true,
		Stdin: true,
	}, e.Audit.Exec)
	require.Equal(t, sensors.AuditServiceAccount{Namespace: "ci", Name: "deployer"}, e.Audit.ServiceAccount)
	require.Equal(t, []string{"runner-1", "p-1", "node-1"}, []string{
		e.Audit.FromPod, e.Audit.FromPodUID,
		e.Audit.FromNode,
	})
	require.Equal(t, "admin", e.Audit.ImpersonatedUser)
	require.Equal(t, 201, e.Audit.StatusCode)
	require.Equal(t, "/api/v1/namespaces/shop/pods/web-1/exec", e.Audit.Path, "without its query")
	require.Equal(t, "allow", e.Audit.Decision)
	require.Len(t, e.Audit.Annotations, 2)

	e = decodeOneAuditEvent(t, auditLines[1])
	require.Equal(t, sensors.AuditPod{
		Privileged: true, HostNetwork: true, HostPID: true, HostPaths: []string{"/"}, Capabilities: []string{"SYS_ADMIN"},
		Images: []string{"a", "b"}, ServiceAccount: "web", Node: "cp-1",
	}, e.Audit.Pod)
	require.True(t, e.Audit.DryRun)
	require.Equal(t, sensors.Pod{Namespace: "shop", Name: "x-abc", UID: "uid-9"}, e.Container.Pod,
		"the API server generated the name")

	require.Equal(t, sensors.AuditPod{Images: []string{"busybox"}, EphemeralImages: []string{"busybox"}},
		decodeOneAuditEvent(t, auditLines[2]).Audit.Pod)
	require.Equal(t, sensors.AuditPod{HostIPC: true, PrivilegeEscalation: true, Images: []string{"shop/web:7"}},
		decodeOneAuditEvent(t, auditLines[3]).Audit.Pod)
	require.Equal(t, []string{"miner"}, decodeOneAuditEvent(t, auditLines[4]).Audit.Pod.Images)
	require.Equal(t, sensors.AuditBinding{Role: "ClusterRole/cluster-admin", Subjects: []string{
		"ServiceAccount/shop/web",
		"User/mallory",
	}}, decodeOneAuditEvent(t, auditLines[5]).Audit.Binding)
	require.Equal(t, sensors.AuditRole{Wildcard: true, EscalatingPermissions: []string{
		"create pods/exec", "escalate",
		"get pods/exec", "get secrets",
	}}, decodeOneAuditEvent(t, auditLines[6]).Audit.Role)
	require.Equal(t, sensors.AuditToken{Audiences: []string{"vault"}, ExpirationSeconds: 31536000, BoundTo: "Pod/web-1"},
		decodeOneAuditEvent(t, auditLines[7]).Audit.Token)
	require.Equal(t, sensors.AuditWebhook{ExternalURLs: []string{"https://evil.example"}, IgnoresFailures: true},
		decodeOneAuditEvent(t, auditLines[9]).Audit.Webhook)
	labels := func(verb, text string) sensors.AuditAdmission {
		return decodeOneAuditEvent(t, auditEventJSON(verb, "/api/v1/namespaces/shop",
			`{"resource":"namespaces","namespace":"shop","name":"shop"}`, `,"requestObject":{"metadata":{"labels":`+text+
				`}}`)).Audit.Admission
	}
	require.Equal(
		t,
		sensors.AuditAdmission{
			PodSecurityLevel: "privileged",
			ExemptionLabels:  []string{"admission.gatekeeper.sh/ignore"},
		},
		labels(
			"update",
			`{"pod-security.kubernetes.io/enforce":"privileged","admission.gatekeeper.sh/ignore":"x","team":"a"}`,
		),
	)
	require.Equal(t, sensors.AuditAdmission{PodSecurityLevel: "removed"},
		labels("patch", `{"pod-security.kubernetes.io/enforce":null,"admission.gatekeeper.sh/ignore":null}`))
	namespace := func(verb, sent, after string) string {
		return decodeOneAuditEvent(t, auditEventJSON(verb, "/api/v1/namespaces/shop",
			`{"resource":"namespaces","namespace":"shop","name":"shop"}`, `,"requestObject":`+sent+
				`,"responseObject":{"metadata":{"labels":`+after+`}}`)).Audit.Admission.PodSecurityLevel
	}
	const bare, labeled = `{"team":"a"}`, `{"pod-security.kubernetes.io/enforce":"privileged"}`
	require.Equal(t, "removed", namespace("patch",
		`[{"op":"remove","path":"/metadata/labels/pod-security.kubernetes.io~1enforce"}]`, bare))
	require.Equal(t, "removed", namespace("patch",
		`[{"op":"move","from":"/metadata/labels/pod-security.kubernetes.io~1enforce","path":"/metadata/labels/x"}]`, bare))
	require.Equal(t, "unset", namespace("patch", `[{"op":"remove","path":"/metadata/labels"}]`, `null`))
	require.Equal(t, "unset", namespace("patch", `{"metadata":{"labels":null}}`, bare))
	require.Equal(t, "unset", namespace("update", `{"metadata":{"labels":{"team":"a"}}}`, bare))
	require.Empty(t, namespace("patch", `{"metadata":{"annotations":{"a":"b"}}}`, labeled), "unchanged from before")
	for _, verb := range []string{"get", "delete", "patch", "update"} {
		require.Empty(t, decodeOneAuditEvent(t, auditEventJSON(verb, "/api/v1/namespaces/shop",
			`{"resource":"namespaces","name":"shop"}`, "")).Audit.Admission, "the request has no body: %s", verb)
	}
	require.True(t, decodeOneAuditEvent(t, auditLines[10]).Audit.Pod.HostPID, "a JSON patch is evaluated by its result")
}

func TestAuditEventContainsNoSecrets(t *testing.T) {
	for _, text := range auditLines {
		raw, err := json.Marshal(decodeOneAuditEvent(t, text))
		require.NoError(t, err)
		require.Contains(t, text, "PLANTED")
		require.NotContains(t, string(raw), "PLANTED")
	}
}

func TestDecodeKubernetesAuditAcceptsEventList(t *testing.T) {
	all, err := integrations.DecodeKubernetesAudit([]byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[` +
		strings.Replace(auditLines[0], `"kind":"Event","apiVersion":"audit.k8s.io/v1",`, "", 1) + `,{"auditID":"x"},` +
		auditLines[5] + `]}`))
	require.ErrorContains(t, err, "1 of 3 records are invalid; the first: audit event 2: missing auditID or verb")
	require.Len(t, all, 2, "one invalid record does not affect the others")
	for text, want := range map[string]string{
		`{"kind":"Pod"}`: `its kind is "Pod"`,
		`[`:              "not a JSON object", `{"kind":"EventList","items":{}}`: "not a JSON array",
		strings.Replace(auditLines[0], "audit.k8s.io/v1", "audit.k8s.io/v1beta1",
			1): "use audit.k8s.io/v1",
		strings.NewReplacer("2026-11-23T03:00:00.123456Z", "", "2026-11-23T03:00:00.2Z",
			"").Replace(auditLines[0]): "missing or invalid time",
	} {
		_, err := integrations.DecodeKubernetesAudit([]byte(text))
		require.ErrorContains(t, err, want)
	}
}

// The content of one request must not affect the other requests of its list, and the request itself is evaluated too.
func TestOversizedAuditRequestDoesNotAffectOthers(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for name, body := range map[string]string{
		"deep": deep(600), "deeper than encoding/json goes": deep(12_000), "wide": `{"x":[` + strings.Repeat("1,",
			1_100_000) + `1]}`,
		"of other types":      `{"metadata":{"labels":5}}`,
		"brackets in strings": `{"spec":{"nodeName":"]}\\\"]},{"},"metadata":5}`,
	} {
		hidden := auditEventJSON("patch", "/api/v1/namespaces/shop/pods/web-1",
			`{"resource":"pods","namespace":"shop","name":"web-1"}`, `,"requestObject":`+body)
		all, err := integrations.DecodeKubernetesAudit([]byte(`{"kind":"EventList","items":[` + auditLines[5] + `,` + hidden +
			`,` + auditLines[0] + `]}`))
		require.NoError(t, err, name)
		require.Len(t, all, 3, name)
		require.Equal(t, "ClusterRole/cluster-admin", all[0].Audit.Binding.Role, name)
		require.Equal(t, "web-1", all[1].Audit.Name, name)
		require.True(t, all[1].Audit.Truncated, name)
		require.Equal(t, "exec", all[2].Audit.Subresource, name)
		require.False(t, all[2].Audit.Truncated, name)
	}
	_, err := integrations.DecodeKubernetesAudit([]byte(`{"kind":"EventList","items":[` + auditLines[5] + `,{"a":` +
		deep(600) + `},nonsense]}`))
	var unread *integrations.BatchDecodeError
	require.ErrorAs(t, err, &unread)
	require.Equal(t, []int{2, 3}, []int{unread.FailedCount, unread.TotalCount})
	all, err := integrations.DecodeKubernetesAudit([]byte(`{"kind":"EventList","items":[]}`))
	require.NoError(t, err)
	require.Empty(t, all)
}

// fuzzEventDecoder checks the invariants of events from audit logs.
func fuzzEventDecoder(f *testing.F, decode func([]byte) ([]sensors.Event, error)) {
	f.Helper()
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, _ := decode(raw)
		again, _ := decode(raw)
		first, err := json.Marshal(all)
		if err != nil {
			t.Fatal("it cannot be stored: ", err)
		}
		if second, err := json.Marshal(again); err != nil || string(first) != string(second) {
			t.Fatalf("the same bytes are two events:\n%s\n%s", first, second)
		}
		for _, e := range all {
			if e.ID == "" || len(e.ID) > 200 || e.Time.IsZero() || e.Kind != sensors.KindKubernetesAudit &&
				e.Kind != sensors.KindCloudAPICall {
				t.Fatalf("a field is missing: %s", first)
			}
		}
	})
}

func FuzzDecodeKubernetesAudit(f *testing.F) {
	for _, text := range auditLines {
		f.Add([]byte(text))
	}
	fuzzEventDecoder(f, integrations.DecodeKubernetesAudit)
}
