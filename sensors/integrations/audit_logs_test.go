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

func cloudTrailJSON(name, source, identity, more string) string {
	return fmt.Sprintf(
		`{"eventVersion":"1.11","userIdentity":%s,"eventTime":"2026-11-23T03:00:00Z","eventSource":%q,"eventName":%q,"awsRegion":"eu-central-1","sourceIPAddress":"203.0.113.7","userAgent":"aws-cli/2","eventID":"e-1","readOnly":false,"recipientAccountId":"123456789012"%s}`,
		identity,
		source,
		name,
		more,
	)
}

const assumedRoleJSON = `{"type":"AssumedRole","principalId":"AROAEXAMPLE:eks-shop-web-1-0f7a","arn":"arn:aws:sts::123456789012:assumed-role/web/eks-shop-web-1-0f7a","accountId":"123456789012","accessKeyId":"ASIAEXAMPLE",
"sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROAEXAMPLE","arn":"arn:aws:iam::123456789012:role/service/web","userName":"web"},"attributes":{"creationDate":"2026-11-23T02:00:00Z","mfaAuthenticated":"false"}}}`

var trailLines = []string{
	cloudTrailJSON(
		"GetObject",
		"s3.amazonaws.com",
		assumedRoleJSON,
		`,"requestParameters":{"bucketName":"payroll","key":"2026/a.csv","x":["PLANTED"]},"responseElements":null,"resources":[{"ARN":"arn:aws:s3:::payroll","accountId":"1"}]`,
	),
	cloudTrailJSON(
		"CreateAccessKey",
		"iam.amazonaws.com",
		`{"type":"IAMUser","principalId":"AIDA","arn":"arn:aws:iam::123456789012:user/alice","userName":"alice","sessionContext":{"attributes":{"mfaAuthenticated":"true"}}}`,
		`,"requestParameters":{"userName":"bob"},"responseElements":{"accessKey":{"accessKeyId":"AKIANEW","secretAccessKey":"PLANTED"}}`,
	),
	cloudTrailJSON(
		"AssumeRole",
		"sts.amazonaws.com",
		`{"type":"AWSService","invokedBy":"pods.eks.amazonaws.com"}`,
		`,"requestParameters":{"roleArn":"arn:aws:iam::1:role/web","tags":[{"key":"eks-cluster-name","value":"shop"},{"key":"kubernetes-namespace","value":"web"},{"key":"kubernetes-service-account","value":"web"},{"key":"kubernetes-pod-name","value":"web-1"},{"key":"kubernetes-pod-uid","value":"uid-1"}],"password":"PLANTED"},"responseElements":{"credentials":{"accessKeyId":"ASIANEW","sessionToken":"PLANTED"}}`,
	),
	cloudTrailJSON(
		"AssumeRoleWithWebIdentity",
		"sts.amazonaws.com",
		`{"type":"WebIdentityUser","principalId":"arn:aws:iam::1:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/A1:sts.amazonaws.com:system:serviceaccount:shop:web","userName":"system:serviceaccount:shop:web","identityProvider":"arn:aws:iam::1:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/A1"}`,
		`,"requestParameters":"PLANTED"`,
	),
}

func TestCloudTrailCallBecomesEvent(t *testing.T) {
	one := func(text string) sensors.Event {
		all, err := integrations.DecodeCloudTrail([]byte(text))
		require.NoError(t, err)
		require.Len(t, all, 1)
		raw, err := json.Marshal(all[0])
		require.NoError(t, err)
		require.NotContains(t, string(raw), "PLANTED")
		return all[0]
	}
	e := one(trailLines[0])
	require.Equal(t, "cloudtrail/e-1", e.ID)
	require.Equal(t, "aws:arn:aws:sts::123456789012:assumed-role/web/eks-shop-web-1-0f7a", e.Actor)
	require.Equal(t, sensors.Cloud{
		Provider: "aws", Service: "s3.amazonaws.com", EventName: "GetObject", Region: "eu-central-1", Account: "123456789012",
		Principal:   "arn:aws:sts::123456789012:assumed-role/web/eks-shop-web-1-0f7a",
		PrincipalID: "AROAEXAMPLE:eks-shop-web-1-0f7a", PrincipalType: "AssumedRole", Role: "web", RoleID: "AROAEXAMPLE",
		SessionName: "eks-shop-web-1-0f7a", AccessKeyID: "ASIAEXAMPLE",
		SourceIP: "203.0.113.7", UserAgent: "aws-cli/2", Resources: []string{
			"arn:aws:s3:::payroll",
			"arn:aws:s3:::payroll/2026/a.csv",
		},
	}, e.Cloud)
	e = one(trailLines[1])
	require.True(t, e.Cloud.MFA)
	require.Equal(t, "bob", e.Cloud.TargetPrincipal)
	require.Equal(t, []string{"AKIANEW"}, e.Cloud.Resources, "the ID of the key, but not its secret")
	e = one(trailLines[2])
	require.Equal(t, []string{"shop", "web", "web", "web-1", "uid-1"}, []string{
		e.Cloud.Cluster, e.Cloud.Namespace,
		e.Cloud.ServiceAccount, e.Cloud.Pod, e.Cloud.PodUID,
	})
	require.Contains(t, e.Cloud.Resources, "ASIANEW")
	require.Equal(t, []string{"/db/password"}, one(cloudTrailJSON("GetParameter", "ssm.amazonaws.com", assumedRoleJSON,
		`,"requestParameters":{"name":"/db/password"}`)).Cloud.Resources)
	require.Equal(t, []string{"a", "b"}, one(cloudTrailJSON("BatchGetSecretValue", "secretsmanager.amazonaws.com",
		assumedRoleJSON, `,"requestParameters":{"secretIdList":["b","a"]}`)).Cloud.Resources)
	e = one(trailLines[3])
	require.Equal(t, []string{"shop", "web"}, []string{e.Cloud.Namespace, e.Cloud.ServiceAccount})
}

func TestPodOfSessionIsAcceptedOnlyFromEKS(t *testing.T) {
	refused := `,"errorCode":"AccessDenied","requestParameters":`
	for name, text := range map[string]string{
		"tags set by a user": strings.Replace(trailLines[2],
			`{"type":"AWSService","invokedBy":"pods.eks.amazonaws.com"}`, assumedRoleJSON, 1),
		"through another service": strings.Replace(trailLines[2], `"invokedBy":"pods.eks.amazonaws.com"`,
			`"invokedBy":"lambda.amazonaws.com"`, 1),
		"user with that name": strings.Replace(trailLines[2], `"type":"AWSService"`, `"type":"AssumedRole"`, 1),
		"other identity provider": strings.NewReplacer("oidc.eks.eu-central-1.amazonaws.com/id/A1",
			"login.example.com").Replace(trailLines[3]),
		"rejected tags":    strings.Replace(trailLines[2], `,"requestParameters":`, refused, 1),
		"rejected account": strings.Replace(trailLines[3], `,"requestParameters":`, refused, 1),
		"another service's event": strings.Replace(trailLines[2], `"eventSource":"sts.amazonaws.com"`,
			`"eventSource":"example.amazonaws.com"`, 1),
	} {
		require.NotContains(t, trailLines, text, name)
		all, err := integrations.DecodeCloudTrail([]byte(text))
		require.NoError(t, err, name)
		c := all[0].Cloud
		require.Empty(t, c.Cluster+c.Namespace+c.ServiceAccount+c.Pod+c.PodUID, name)
	}
}

func TestDecodeCloudTrailAcceptsAllEnvelopes(t *testing.T) {
	quoted := func(s string) string { raw, _ := json.Marshal(s); return string(raw) }
	bridge := `{"version":"0","id":"b-1","detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":` +
		trailLines[0] + `}`
	for name, text := range map[string]string{
		"a file":             `{"Records":[` + trailLines[0] + `]}`,
		"EventBridge":        bridge,
		"SNS in SQS":         `{"Type":"Notification","MessageId":"m","Message":` + quoted(trailLines[0]) + `}`,
		"EventBridge by SNS": `{"Type":"Notification","Message":` + quoted(bridge) + `}`,
	} {
		all, err := integrations.DecodeCloudTrail([]byte(text))
		require.NoError(t, err, name)
		require.Len(t, all, 1, name)
		require.Equal(t, "GetObject", all[0].Cloud.EventName)
	}
	all, err := integrations.DecodeCloudTrail([]byte(`{"Event":"s3:TestEvent"}`))
	require.NoError(t, err)
	require.Empty(t, all)
	all, err = integrations.DecodeCloudTrail([]byte(`{"Records":[` + trailLines[0] + `,{"eventID":"x"},` + trailLines[1] +
		`]}`))
	require.ErrorContains(t, err, "1 of 3 records are invalid; the first: record 2: invalid CloudTrail record")
	require.Len(t, all, 2)
	nested := bridge
	for range 5 {
		nested = `{"detail":` + nested + `}`
	}
	for text, want := range map[string]string{
		`{"Records":[{"eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{}}]}`: "a file in S3",
		`{"s3Bucket":"b","s3ObjectKey":["k"]}`:                                           "a CloudTrail file in S3",
		`{}`:                                                                             "invalid CloudTrail record: missing eventID", `x`: "not a JSON object", nested: "too many nested envelopes",
		strings.Replace(trailLines[0], "2026-11-23T03:00:00Z", "soon", 1): "missing or invalid time",
	} {
		_, err := integrations.DecodeCloudTrail([]byte(text))
		require.ErrorContains(t, err, want)
	}
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

func FuzzDecodeCloudTrail(f *testing.F) {
	for _, text := range trailLines {
		f.Add([]byte(text))
	}
	fuzzEventDecoder(f, integrations.DecodeCloudTrail)
}
