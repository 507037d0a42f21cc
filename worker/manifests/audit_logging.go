package manifests

import (
	"encoding/base64"
	"fmt"
	"strings"

	"stanch/sensors/gatewayrpc"
)

// AuditPolicy makes an API server log what Stanch's rules need: for secrets only who requested them, for pods, RBAC and
// admission also the requested objects. It omits the cluster's own routine requests.
const AuditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  # Secrets are never sent, only who requested them; for a token request also its subject and lifetime.
  - level: Metadata
    resources:
      - { group: "", resources: [secrets, configmaps] }
      - { group: authentication.k8s.io, resources: [tokenreviews] }
  - level: Request
    verbs: [create]
    resources:
      - { group: "", resources: [serviceaccounts/token] }
  # Everyone who opens a session in a pod or through a kubelet: newer clients use GET, which looks like a read.
  - level: Metadata
    resources:
      - { group: "", resources: [pods/exec, pods/attach, pods/portforward, pods/proxy, services/proxy, nodes/proxy] }
  # The cluster's own routine requests.
  - level: None
    nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/version", "/metrics", "/openapi/*", "/api", "/apis", "/api/*", "/apis/*"]
    users: ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"]
  - level: None
    nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi/*", "/api", "/apis"]
  - level: None
    resources:
      - { group: coordination.k8s.io, resources: [leases] }
      - { group: "", resources: [endpoints, nodes/status, pods/status] }
      - { group: discovery.k8s.io, resources: [endpointslices] }
  - level: None
    verbs: [create, update, patch, get, list, watch]
    resources:
      - { group: "", resources: [events] }
      - { group: events.k8s.io, resources: [events] }
  - level: None
    verbs: [get, list, watch]
    userGroups: ["system:nodes"]
  - level: None
    verbs: [get, list, watch]
    users: ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy", "system:cloud-controller-manager"]
  # The controllers by name: other accounts of kube-system belong to pods, whose tokens can be stolen.
  - level: None
    verbs: [get, list, watch]
    users: [
      "system:serviceaccount:kube-system:attachdetach-controller", "system:serviceaccount:kube-system:bootstrap-signer",
      "system:serviceaccount:kube-system:certificate-controller", "system:serviceaccount:kube-system:clusterrole-aggregation-controller",
      "system:serviceaccount:kube-system:cronjob-controller", "system:serviceaccount:kube-system:daemon-set-controller",
      "system:serviceaccount:kube-system:deployment-controller", "system:serviceaccount:kube-system:device-taint-eviction-controller",
      "system:serviceaccount:kube-system:disruption-controller", "system:serviceaccount:kube-system:endpoint-controller",
      "system:serviceaccount:kube-system:endpointslice-controller", "system:serviceaccount:kube-system:endpointslicemirroring-controller",
      "system:serviceaccount:kube-system:ephemeral-volume-controller", "system:serviceaccount:kube-system:expand-controller",
      "system:serviceaccount:kube-system:generic-garbage-collector", "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
      "system:serviceaccount:kube-system:job-controller", "system:serviceaccount:kube-system:legacy-service-account-token-cleaner",
      "system:serviceaccount:kube-system:namespace-controller", "system:serviceaccount:kube-system:node-controller",
      "system:serviceaccount:kube-system:persistent-volume-binder", "system:serviceaccount:kube-system:pod-garbage-collector",
      "system:serviceaccount:kube-system:pv-protection-controller", "system:serviceaccount:kube-system:pvc-protection-controller",
      "system:serviceaccount:kube-system:replicaset-controller", "system:serviceaccount:kube-system:replication-controller",
      "system:serviceaccount:kube-system:resource-claim-controller", "system:serviceaccount:kube-system:resourcequota-controller",
      "system:serviceaccount:kube-system:root-ca-cert-publisher", "system:serviceaccount:kube-system:route-controller",
      "system:serviceaccount:kube-system:selinux-warning-controller", "system:serviceaccount:kube-system:service-account-controller",
      "system:serviceaccount:kube-system:service-controller", "system:serviceaccount:kube-system:service-cidrs-controller",
      "system:serviceaccount:kube-system:statefulset-controller", "system:serviceaccount:kube-system:storage-version-migrator-controller",
      "system:serviceaccount:kube-system:token-cleaner", "system:serviceaccount:kube-system:tokens-controller",
      "system:serviceaccount:kube-system:ttl-after-finished-controller", "system:serviceaccount:kube-system:ttl-controller",
      "system:serviceaccount:kube-system:validatingadmissionpolicy-status-controller",
      "system:serviceaccount:kube-system:volumeattributesclass-protection-controller"
    ]
  # Objects that create pods, and permissions: the requested object and the response.
  - level: RequestResponse
    verbs: [create, update, patch]
    resources:
      - { group: "", resources: [pods, pods/ephemeralcontainers, replicationcontrollers, namespaces] }
      - { group: apps, resources: [deployments, daemonsets, statefulsets, replicasets] }
      - { group: batch, resources: [jobs, cronjobs] }
      - { group: rbac.authorization.k8s.io, resources: ["*"] }
      - { group: admissionregistration.k8s.io, resources: ["*"] }
  # Everything else: who requested what, and the status code.
  - level: Metadata
`

// AuditDir is the directory of the API server's files.
const AuditDir = "/etc/kubernetes/stanch"

// AuditWebhookConfig returns the configuration with which an API server posts its audit log to Stanch. authority is
// Stanch's own CA certificate; nil refers to the file in AuditDir. An API server sends its token only over https.
func AuditWebhookConfig(url string, authority []byte, token string) string {
	ca := fmt.Sprintf("certificate-authority: %s/ca.crt", AuditDir)
	if authority != nil {
		ca = "certificate-authority-data: " + base64.StdEncoding.EncodeToString(authority)
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
  - name: stanch
    cluster:
      server: %q
      tls-server-name: %s
      %s
users:
  - name: api-server
    user: { token: %q }
contexts:
  - name: stanch
    context: { cluster: stanch, user: api-server }
current-context: stanch
`, url, gatewayrpc.ServerName, ca, token)
}

// Limits of an API server's batches. It truncates single events but never a batch, whatever its flag says, so a full
// batch of the largest events must be accepted. With the default of 100 KiB, one large annotation could hide what a pod
// requests.
const (
	AuditBatchSize     = 32
	MaxAuditEventBytes = 1 << 20
)

// APIServerAuditFlags returns the API server's flags.
func APIServerAuditFlags(policy, webhook string) []string {
	return append([]string{
		"--audit-policy-file=" + policy, "--audit-webhook-config-file=" + webhook,
		"--audit-webhook-batch-max-wait=5s",
	}, AuditLimitFlags()...)
}

// AuditLimitFlags returns those of the flags that limit batches.
func AuditLimitFlags() []string {
	return []string{
		"--audit-webhook-mode=batch", "--audit-webhook-version=audit.k8s.io/v1",
		"--audit-webhook-truncate-enabled", fmt.Sprintf("--audit-webhook-truncate-max-event-size=%d", MaxAuditEventBytes),
		fmt.Sprintf("--audit-webhook-batch-max-size=%d", AuditBatchSize), "--audit-webhook-batch-throttle-qps=100",
		"--audit-webhook-batch-throttle-burst=150",
	}
}

// AuditInstructions returns the instructions for enabling the audit log: two files, and where they go.
func AuditInstructions(url string) string {
	const dir = AuditDir
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "# "+format+"\n", args...) }
	line("Send the Kubernetes audit log to Stanch. Store the first document as %s/policy.yaml and the second as", dir)
	line("%s/webhook.yaml on every node with an API server (mode 0600: it contains a token).", dir)
	line("Add ca.crt, the CA certificate, to the same directory: from secrets/pki, or from DATA/pki of `stanch " +
		"up`.")
	line("Create the token with `openssl rand -hex 32`; in stanch.yaml:")
	line("  sources: [{ name: api-server, kind: kubernetes-audit, token_file: FILE, rate: 5000 }]")
	line("kubeadm: add these flags to /etc/kubernetes/manifests/kube-apiserver.yaml, with a hostPath volume for %s:", dir)
	for _, f := range APIServerAuditFlags(dir+"/policy.yaml", dir+"/webhook.yaml") {
		line("  - %s", f)
	}
	line("k3s: add the same flags, each as `kube-apiserver-arg: [\"audit-policy-file=%s/policy.yaml\", …]` in "+
		"/etc/rancher/k3s/config.yaml.", dir)
	line("EKS and GKE have no such flags: EKS writes its audit log only to CloudWatch; a subscription must post it here.")
	b.WriteString(AuditPolicy)
	b.WriteString("---\n")
	b.WriteString(AuditWebhookConfig(url, nil, "PUT-THE-TOKEN-HERE"))
	return b.String()
}
