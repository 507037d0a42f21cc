package sensors

// Audit is a request to the Kubernetes API, read from the API server's audit log. Of the request and response bodies
// it contains only the facts below: never the value of a Secret or ConfigMap, a token or an environment variable. A
// zero field means that the audit event does not say.
type Audit struct {
	Verb string `json:"verb,omitempty" expr:"verb"` // "get", "list", "create", "patch", "deletecollection", …
	// User is the authenticated user. ImpersonatedUser is the user that the request impersonated; it is empty without
	// impersonation.
	User               string   `json:"user,omitempty" expr:"user"`
	Groups             []string `json:"groups,omitempty" expr:"groups"`
	ImpersonatedUser   string   `json:"impersonated_user,omitempty" expr:"impersonated_user"`
	ImpersonatedGroups []string `json:"impersonated_groups,omitempty" expr:"impersonated_groups"`
	// ServiceAccount is set if the user is a service account.
	ServiceAccount AuditServiceAccount `json:"service_account,omitzero" expr:"service_account"`
	// FromPod is the pod that the user's token is bound to, if the API server reports it.
	FromPod     string `json:"from_pod,omitempty" expr:"from_pod"`
	FromPodUID  string `json:"from_pod_uid,omitempty" expr:"from_pod_uid"`
	FromNode    string `json:"from_node,omitempty" expr:"from_node"`
	APIGroup    string `json:"api_group,omitempty" expr:"api_group"` // the API group; "" is the core group
	Resource    string `json:"resource,omitempty" expr:"resource"`
	Subresource string `json:"subresource,omitempty" expr:"subresource"`
	Namespace   string `json:"namespace,omitempty" expr:"namespace"`
	Name        string `json:"name,omitempty" expr:"name"` // "" for a list, or if the API server generated the name
	UID         string `json:"uid,omitempty" expr:"uid"`
	Path        string `json:"path,omitempty" expr:"path"`               // the URL path, without the query
	StatusCode  int    `json:"status_code,omitempty" expr:"status_code"` // the HTTP status of the response
	Decision    string `json:"decision,omitempty" expr:"decision"`
	// DecisionReason names the binding that allowed the request.
	DecisionReason string   `json:"decision_reason,omitempty" expr:"decision_reason"`
	UserAgent      string   `json:"user_agent,omitempty" expr:"user_agent"`
	SourceIPs      []string `json:"source_ips,omitempty" expr:"source_ips"`
	Stage          string   `json:"stage,omitempty" expr:"stage"`
	// Annotations are the annotations of the audit event, written by admission and authorization plugins.
	Annotations map[string]string `json:"annotations,omitempty" expr:"annotations"`
	// DryRun reports whether the request was a dry run: nothing was persisted.
	DryRun bool `json:"dry_run,omitempty" expr:"dry_run"`
	// Truncated reports whether the request body was too large or too deep to be reported or parsed. The facts about
	// the body are then unknown, not absent.
	Truncated bool `json:"truncated,omitempty" expr:"truncated"`
	// FromOutsideCluster reports whether a pod's token was used from outside the cluster. The gateway sets it, because
	// it knows the cluster's addresses.
	FromOutsideCluster bool `json:"from_outside_cluster,omitempty" expr:"from_outside_cluster"`
	// RecentSecretReads counts the secrets that the user read within the last minutes. RecentDeniedRequests counts the
	// distinct requests that were denied to the user in that time. The gateway sets both, because it keeps the
	// history.
	RecentSecretReads    int `json:"recent_secret_reads,omitempty" expr:"recent_secret_reads"`
	RecentDeniedRequests int `json:"recent_denied_requests,omitempty" expr:"recent_denied_requests"`

	Exec    AuditExec    `json:"exec,omitzero" expr:"exec"`       // pods/exec, pods/attach
	Pod     AuditPod     `json:"pod,omitzero" expr:"pod"`         // a pod, pod template or ephemeral container
	Binding AuditBinding `json:"binding,omitzero" expr:"binding"` // a RoleBinding or ClusterRoleBinding in the request
	Role    AuditRole    `json:"role,omitzero" expr:"role"`       // a Role or ClusterRole in the request
	Token   AuditToken   `json:"token,omitzero" expr:"token"`     // serviceaccounts/token
	Webhook AuditWebhook `json:"webhook,omitzero" expr:"webhook"` // a webhook configuration in the request

	Admission AuditAdmission `json:"admission,omitzero" expr:"admission"` // a namespace's labels in the request
}

// AuditAdmission is what a request changes in the pod admission of a namespace, read from the namespace's labels.
type AuditAdmission struct {
	// PodSecurityLevel is the enforced level of the Pod Security Standards: "privileged", "baseline" or "restricted".
	// It is "removed" if the request removes the label, and "unset" if the namespace has no label and the request does
	// not say whether it had one.
	PodSecurityLevel string `json:"pod_security_level,omitempty" expr:"pod_security_level"`
	// ExemptionLabels are the labels that exempt the namespace from a policy engine.
	ExemptionLabels []string `json:"exemption_labels,omitempty" expr:"exemption_labels"`
}

// AuditServiceAccount is the service account that made a request.
type AuditServiceAccount struct {
	Namespace string `json:"namespace,omitempty" expr:"namespace"`
	Name      string `json:"name,omitempty" expr:"name"`
}

// AuditExec is a request to run or attach to a process in a pod.
type AuditExec struct {
	Container string   `json:"container,omitempty" expr:"container"`
	Command   []string `json:"command,omitempty" expr:"command"` // redacted like every command line
	TTY       bool     `json:"tty,omitempty" expr:"tty"`
	Stdin     bool     `json:"stdin,omitempty" expr:"stdin"`
}

// AuditPod is what the pod specification in a request asks for.
type AuditPod struct {
	Privileged          bool     `json:"privileged,omitempty" expr:"privileged"`
	PrivilegeEscalation bool     `json:"privilege_escalation,omitempty" expr:"privilege_escalation"` // set to true
	HostNetwork         bool     `json:"host_network,omitempty" expr:"host_network"`
	HostPID             bool     `json:"host_pid,omitempty" expr:"host_pid"`
	HostIPC             bool     `json:"host_ipc,omitempty" expr:"host_ipc"`
	HostPaths           []string `json:"host_paths,omitempty" expr:"host_paths"`
	Capabilities        []string `json:"capabilities,omitempty" expr:"capabilities"` // added capabilities
	Images              []string `json:"images,omitempty" expr:"images"`
	ServiceAccount      string   `json:"service_account,omitempty" expr:"service_account"`
	Node                string   `json:"node,omitempty" expr:"node"` // set in the request, which bypasses the scheduler
	// EphemeralImages are the images of ephemeral containers.
	EphemeralImages []string `json:"ephemeral_images,omitempty" expr:"ephemeral_images"`
}

// AuditBinding is a role and the subjects that a request grants it to.
type AuditBinding struct {
	Role string `json:"role,omitempty" expr:"role"` // "ClusterRole/cluster-admin"
	// "User/alice", "Group/system:masters", "ServiceAccount/shop/web"
	Subjects []string `json:"subjects,omitempty" expr:"subjects"`
}

// AuditRole is the part of a role that lets its subjects gain more permissions.
type AuditRole struct {
	// Wildcard reports whether a rule of the role allows every verb, every resource or every group.
	Wildcard bool `json:"wildcard,omitempty" expr:"wildcard"`
	// EscalatingPermissions are the verbs and resources of the role that let a subject gain more permissions:
	// "escalate", "bind", "impersonate", "create pods", "create pods/exec", "get secrets", "create
	// serviceaccounts/token", …
	EscalatingPermissions []string `json:"escalating_permissions,omitempty" expr:"escalating_permissions"`
}

// AuditToken is a request for a service account token.
type AuditToken struct {
	Audiences         []string `json:"audiences,omitempty" expr:"audiences"`
	ExpirationSeconds int64    `json:"expiration_seconds,omitempty" expr:"expiration_seconds"`
	BoundTo           string   `json:"bound_to,omitempty" expr:"bound_to"` // "Pod/web-1"
}

// AuditWebhook is an admission webhook configuration in a request.
type AuditWebhook struct {
	ExternalURLs    []string `json:"urls,omitempty" expr:"urls"` // outside the cluster
	IgnoresFailures bool     `json:"ignores_failures,omitempty" expr:"ignores_failures"`
}

// Cloud is a call to the API of a cloud provider. Of the request it contains only the facts below: never a key or a
// password. A zero field means that the log does not say.
type Cloud struct {
	Provider  string `json:"provider,omitempty" expr:"provider"`     // "aws"
	Service   string `json:"service,omitempty" expr:"service"`       // "iam.amazonaws.com"
	EventName string `json:"event_name,omitempty" expr:"event_name"` // "CreateAccessKey"
	Region    string `json:"region,omitempty" expr:"region"`
	Account   string `json:"account,omitempty" expr:"account"`
	// Principal is the ARN of the caller. An ARN may be reused; PrincipalID never is.
	Principal   string `json:"principal,omitempty" expr:"principal"`
	PrincipalID string `json:"principal_id,omitempty" expr:"principal_id"`
	// "AssumedRole", "IAMUser", "Root", "AWSService", …
	PrincipalType string `json:"principal_type,omitempty" expr:"principal_type"`
	// Role and RoleID identify the role that the principal assumed. SessionName is the name of the role session.
	Role        string `json:"role,omitempty" expr:"role"`
	RoleID      string `json:"role_id,omitempty" expr:"role_id"`
	SessionName string `json:"session_name,omitempty" expr:"session_name"`
	// AccessKeyID is the ID of the access key, which is not secret. The prefix "ASIA" means a temporary session key.
	AccessKeyID string `json:"access_key_id,omitempty" expr:"access_key_id"`
	SourceIP    string `json:"source_ip,omitempty" expr:"source_ip"` // an address, or the name of an AWS service
	UserAgent   string `json:"user_agent,omitempty" expr:"user_agent"`
	ErrorCode   string `json:"error_code,omitempty" expr:"error_code"` // "AccessDenied", …
	ReadOnly    bool   `json:"read_only,omitempty" expr:"read_only"`
	MFA         bool   `json:"mfa,omitempty" expr:"mfa"`
	// Resources are the ARNs and names of the resources that the call is about.
	Resources []string `json:"resources,omitempty" expr:"resources"`
	// TargetPrincipal is the user, role or policy that an identity call is about.
	TargetPrincipal string `json:"target_principal,omitempty" expr:"target_principal"`
	// Cluster, Namespace, ServiceAccount, Pod and PodUID identify the workload behind an EKS Pod Identity or an IAM
	// role for service accounts, if the session names it.
	Cluster        string `json:"cluster,omitempty" expr:"cluster"`
	Namespace      string `json:"namespace,omitempty" expr:"namespace"`
	ServiceAccount string `json:"service_account,omitempty" expr:"service_account"`
	Pod            string `json:"pod,omitempty" expr:"pod"`
	PodUID         string `json:"pod_uid,omitempty" expr:"pod_uid"`
	// FromOutsideCluster reports whether the call came from outside the cluster. The gateway sets it, because it knows
	// the cluster's addresses.
	FromOutsideCluster bool `json:"from_outside_cluster,omitempty" expr:"from_outside_cluster"`
	// RecentReads counts the objects and secrets that the principal read within the last minutes. RecentDeniedCalls
	// counts the distinct calls that were denied to it in that time. The gateway sets both, because it keeps the
	// history.
	RecentReads       int `json:"recent_reads,omitempty" expr:"recent_reads"`
	RecentDeniedCalls int `json:"recent_denied_calls,omitempty" expr:"recent_denied_calls"`
}
