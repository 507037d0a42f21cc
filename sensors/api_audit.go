package sensors

// Audit is a request to the Kubernetes API, as its audit log tells it. Of what was sent and answered it holds only the
// facts below: no value of a Secret or ConfigMap, no token, no environment.
type Audit struct {
	Verb string `json:"verb,omitempty" expr:"verb"` // "get", "list", "create", "patch", "deletecollection", …
	// User is who asked, and Impersonated as whom they acted, if as somebody else.
	User               string   `json:"user,omitempty" expr:"user"`
	Groups             []string `json:"groups,omitempty" expr:"groups"`
	ImpersonatedUser   string   `json:"impersonated_user,omitempty" expr:"impersonated_user"`
	ImpersonatedGroups []string `json:"impersonated_groups,omitempty" expr:"impersonated_groups"`
	// ServiceAccount is set if the user is one.
	ServiceAccount AuditServiceAccount `json:"service_account,omitzero" expr:"service_account"`
	// Pod names the pod that the user's token is bound to, where the API server says so.
	FromPod     string `json:"from_pod,omitempty" expr:"from_pod"`
	FromPodUID  string `json:"from_pod_uid,omitempty" expr:"from_pod_uid"`
	FromNode    string `json:"from_node,omitempty" expr:"from_node"`
	APIGroup    string `json:"api_group,omitempty" expr:"api_group"` // the API group; "" is the core's
	Resource    string `json:"resource,omitempty" expr:"resource"`
	Subresource string `json:"subresource,omitempty" expr:"subresource"`
	Namespace   string `json:"namespace,omitempty" expr:"namespace"`
	Name        string `json:"name,omitempty" expr:"name"` // "" for a list, or where the API server made the name up
	UID         string `json:"uid,omitempty" expr:"uid"`
	Path        string `json:"path,omitempty" expr:"path"`               // the URL's path, without its query
	StatusCode  int    `json:"status_code,omitempty" expr:"status_code"` // the answer's HTTP status
	Decision    string `json:"decision,omitempty" expr:"decision"`
	// DecisionReason names the binding that allowed it.
	DecisionReason string   `json:"decision_reason,omitempty" expr:"decision_reason"`
	UserAgent      string   `json:"user_agent,omitempty" expr:"user_agent"`
	SourceIPs      []string `json:"source_ips,omitempty" expr:"source_ips"`
	Stage          string   `json:"stage,omitempty" expr:"stage"`
	// Annotations are those of the audit event, which admission and authorisation write.
	Annotations map[string]string `json:"annotations,omitempty" expr:"annotations"`
	// DryRun: nothing was persisted.
	DryRun bool `json:"dry_run,omitempty" expr:"dry_run"`
	// Truncated: what was sent was larger or deeper than what is told or read, so that nothing is known of it.
	Truncated bool `json:"truncated,omitempty" expr:"truncated"`
	// FromOutsideCluster: the token of a pod was used from outside of the cluster. Who knows the cluster's addresses sets it.
	FromOutsideCluster bool `json:"from_outside_cluster,omitempty" expr:"from_outside_cluster"`
	// RecentSecretReads and RecentDenied are how many secrets the user read within minutes, and how many different requests
	// were denied to them. Who remembers sets them.
	RecentSecretReads    int `json:"recent_secret_reads,omitempty" expr:"recent_secret_reads"`
	RecentDeniedRequests int `json:"recent_denied_requests,omitempty" expr:"recent_denied_requests"`

	Exec    AuditExec    `json:"exec,omitzero" expr:"exec"`       // pods/exec, pods/attach
	Pod     AuditPod     `json:"pod,omitzero" expr:"pod"`         // a pod, a pod's template or an ephemeral container in the request
	Binding AuditBinding `json:"binding,omitzero" expr:"binding"` // a RoleBinding or ClusterRoleBinding in the request
	Role    AuditRole    `json:"role,omitzero" expr:"role"`       // a Role or ClusterRole in the request
	Token   AuditToken   `json:"token,omitzero" expr:"token"`     // serviceaccounts/token
	Webhook AuditWebhook `json:"webhook,omitzero" expr:"webhook"` // an admission webhook's configuration in the request

	Admission AuditAdmission `json:"admission,omitzero" expr:"admission"` // a namespace's labels in the request
}

// AuditAdmission is what a namespace's labels in a request say to who admits pods there.
type AuditAdmission struct {
	// PodSecurityLevel is what is enforced of the Pod Security Standards: "privileged", "baseline", "restricted", "removed" where the
	// label was taken away, or "unset" where the namespace has none and the request does not say whether it had one.
	PodSecurityLevel string `json:"pod_security_level,omitempty" expr:"pod_security_level"`
	// ExemptionLabels are the labels by which a policy engine leaves the namespace out.
	ExemptionLabels []string `json:"exemption_labels,omitempty" expr:"exemption_labels"`
}

// AuditServiceAccount is a service account that made a request.
type AuditServiceAccount struct {
	Namespace string `json:"namespace,omitempty" expr:"namespace"`
	Name      string `json:"name,omitempty" expr:"name"`
}

// AuditExec is what was asked to run in a pod.
type AuditExec struct {
	Container string   `json:"container,omitempty" expr:"container"`
	Command   []string `json:"command,omitempty" expr:"command"` // redacted like every command line
	TTY       bool     `json:"tty,omitempty" expr:"tty"`
	Stdin     bool     `json:"stdin,omitempty" expr:"stdin"`
}

// AuditPod is what a pod's specification in a request asks for.
type AuditPod struct {
	Privileged          bool     `json:"privileged,omitempty" expr:"privileged"`
	PrivilegeEscalation bool     `json:"privilege_escalation,omitempty" expr:"privilege_escalation"` // allowed expressly
	HostNetwork         bool     `json:"host_network,omitempty" expr:"host_network"`
	HostPID             bool     `json:"host_pid,omitempty" expr:"host_pid"`
	HostIPC             bool     `json:"host_ipc,omitempty" expr:"host_ipc"`
	HostPaths           []string `json:"host_paths,omitempty" expr:"host_paths"`
	Capabilities        []string `json:"capabilities,omitempty" expr:"capabilities"` // added ones
	Images              []string `json:"images,omitempty" expr:"images"`
	ServiceAccount      string   `json:"service_account,omitempty" expr:"service_account"`
	Node                string   `json:"node,omitempty" expr:"node"` // asked for by name, past the scheduler
	// EphemeralImages are the images of ephemeral containers.
	EphemeralImages []string `json:"ephemeral_images,omitempty" expr:"ephemeral_images"`
}

// AuditBinding is who is given what.
type AuditBinding struct {
	Role     string   `json:"role,omitempty" expr:"role"`         // "ClusterRole/cluster-admin"
	Subjects []string `json:"subjects,omitempty" expr:"subjects"` // "User/alice", "Group/system:masters", "ServiceAccount/shop/web"
}

// AuditRole is what a role allows, as far as it matters.
type AuditRole struct {
	// Wildcard: a rule of it allows any verb, any resource or any group.
	Wildcard bool `json:"wildcard,omitempty" expr:"wildcard"`
	// EscalatingPermissions are its verbs and resources by which one can gain more: "escalate", "bind", "impersonate", "create
	// pods", "create pods/exec", "get secrets", "create serviceaccounts/token", …
	EscalatingPermissions []string `json:"escalating_permissions,omitempty" expr:"escalating_permissions"`
}

// AuditToken is a token that was asked for.
type AuditToken struct {
	Audiences         []string `json:"audiences,omitempty" expr:"audiences"`
	ExpirationSeconds int64    `json:"expiration_seconds,omitempty" expr:"expiration_seconds"`
	BoundTo           string   `json:"bound_to,omitempty" expr:"bound_to"` // "Pod/web-1"
}

// AuditWebhook is what an admission webhook's configuration in a request says.
type AuditWebhook struct {
	ExternalURLs    []string `json:"urls,omitempty" expr:"urls"` // outside of the cluster
	IgnoresFailures bool     `json:"ignores_failures,omitempty" expr:"ignores_failures"`
}

// Cloud is a call to a cloud's API. It holds the facts below and nothing else of the request: no key, no password.
type Cloud struct {
	Provider  string `json:"provider,omitempty" expr:"provider"`     // "aws"
	Service   string `json:"service,omitempty" expr:"service"`       // "iam.amazonaws.com"
	EventName string `json:"event_name,omitempty" expr:"event_name"` // "CreateAccessKey"
	Region    string `json:"region,omitempty" expr:"region"`
	Account   string `json:"account,omitempty" expr:"account"`
	// Principal is the ARN of who called; PrincipalID is never reused, its ARN may be.
	Principal     string `json:"principal,omitempty" expr:"principal"`
	PrincipalID   string `json:"principal_id,omitempty" expr:"principal_id"`
	PrincipalType string `json:"principal_type,omitempty" expr:"principal_type"` // "AssumedRole", "IAMUser", "Root", "AWSService", …
	// Role and RoleID are those that the principal assumed, and Session the name of its session.
	Role        string `json:"role,omitempty" expr:"role"`
	RoleID      string `json:"role_id,omitempty" expr:"role_id"`
	SessionName string `json:"session_name,omitempty" expr:"session_name"`
	// AccessKeyID is the id of the key, which is no secret; "ASIA…" is a session's.
	AccessKeyID string `json:"access_key_id,omitempty" expr:"access_key_id"`
	SourceIP    string `json:"source_ip,omitempty" expr:"source_ip"` // an address, or the name of an AWS service
	UserAgent   string `json:"user_agent,omitempty" expr:"user_agent"`
	ErrorCode   string `json:"error_code,omitempty" expr:"error_code"` // the code: "AccessDenied"
	ReadOnly    bool   `json:"read_only,omitempty" expr:"read_only"`
	MFA         bool   `json:"mfa,omitempty" expr:"mfa"`
	// Resources are the ARNs and names that it was about.
	Resources []string `json:"resources,omitempty" expr:"resources"`
	// TargetPrincipal is whom a request about people and roles was about: a user, a role, a policy.
	TargetPrincipal string `json:"target_principal,omitempty" expr:"target_principal"`
	// Cluster, Namespace, ServiceAccount, Pod and PodUID are the workload of an EKS Pod Identity or of a role for service
	// accounts, where the session says so.
	Cluster        string `json:"cluster,omitempty" expr:"cluster"`
	Namespace      string `json:"namespace,omitempty" expr:"namespace"`
	ServiceAccount string `json:"service_account,omitempty" expr:"service_account"`
	Pod            string `json:"pod,omitempty" expr:"pod"`
	PodUID         string `json:"pod_uid,omitempty" expr:"pod_uid"`
	// FromOutsideCluster: the call came from outside of the cluster. Who knows the cluster's addresses sets it.
	FromOutsideCluster bool `json:"from_outside_cluster,omitempty" expr:"from_outside_cluster"`
	// RecentReads and RecentDenied are how many objects and secrets the principal read within minutes, and how many
	// different calls were denied to it. Who remembers sets them.
	RecentReads       int `json:"recent_reads,omitempty" expr:"recent_reads"`
	RecentDeniedCalls int `json:"recent_denied_calls,omitempty" expr:"recent_denied_calls"`
}
