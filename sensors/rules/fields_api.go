package rules

// The tables of fields of Kubernetes and cloud API requests, as in fields.go. requestTextField returns the getter for
// a string field, or nil.

func requestTextField(name string) func(*conditionEnv) string {
	switch name {
	case "audit.verb":
		return func(v *conditionEnv) string { return v.event.Audit.Verb }
	case "audit.user":
		return func(v *conditionEnv) string { return v.event.Audit.User }
	case "audit.impersonated_user":
		return func(v *conditionEnv) string { return v.event.Audit.ImpersonatedUser }
	case "audit.service_account.namespace":
		return func(v *conditionEnv) string { return v.event.Audit.ServiceAccount.Namespace }
	case "audit.service_account.name":
		return func(v *conditionEnv) string { return v.event.Audit.ServiceAccount.Name }
	case "audit.from_pod":
		return func(v *conditionEnv) string { return v.event.Audit.FromPod }
	case "audit.from_pod_uid":
		return func(v *conditionEnv) string { return v.event.Audit.FromPodUID }
	case "audit.from_node":
		return func(v *conditionEnv) string { return v.event.Audit.FromNode }
	case "audit.api_group":
		return func(v *conditionEnv) string { return v.event.Audit.APIGroup }
	case "audit.resource":
		return func(v *conditionEnv) string { return v.event.Audit.Resource }
	case "audit.subresource":
		return func(v *conditionEnv) string { return v.event.Audit.Subresource }
	case "audit.namespace":
		return func(v *conditionEnv) string { return v.event.Audit.Namespace }
	case "audit.name":
		return func(v *conditionEnv) string { return v.event.Audit.Name }
	case "audit.uid":
		return func(v *conditionEnv) string { return v.event.Audit.UID }
	case "audit.path":
		return func(v *conditionEnv) string { return v.event.Audit.Path }
	case "audit.decision":
		return func(v *conditionEnv) string { return v.event.Audit.Decision }
	case "audit.decision_reason":
		return func(v *conditionEnv) string { return v.event.Audit.DecisionReason }
	case "audit.user_agent":
		return func(v *conditionEnv) string { return v.event.Audit.UserAgent }
	case "audit.stage":
		return func(v *conditionEnv) string { return v.event.Audit.Stage }
	case "audit.exec.container":
		return func(v *conditionEnv) string { return v.event.Audit.Exec.Container }
	case "audit.pod.service_account":
		return func(v *conditionEnv) string { return v.event.Audit.Pod.ServiceAccount }
	case "audit.pod.node":
		return func(v *conditionEnv) string { return v.event.Audit.Pod.Node }
	case "audit.binding.role":
		return func(v *conditionEnv) string { return v.event.Audit.Binding.Role }
	case "audit.token.bound_to":
		return func(v *conditionEnv) string { return v.event.Audit.Token.BoundTo }
	case "audit.admission.pod_security_level":
		return func(v *conditionEnv) string { return v.event.Audit.Admission.PodSecurityLevel }
	case "cloud.provider":
		return func(v *conditionEnv) string { return v.event.Cloud.Provider }
	case "cloud.service":
		return func(v *conditionEnv) string { return v.event.Cloud.Service }
	case "cloud.event_name":
		return func(v *conditionEnv) string { return v.event.Cloud.EventName }
	case "cloud.region":
		return func(v *conditionEnv) string { return v.event.Cloud.Region }
	case "cloud.account":
		return func(v *conditionEnv) string { return v.event.Cloud.Account }
	case "cloud.principal":
		return func(v *conditionEnv) string { return v.event.Cloud.Principal }
	case "cloud.principal_id":
		return func(v *conditionEnv) string { return v.event.Cloud.PrincipalID }
	case "cloud.principal_type":
		return func(v *conditionEnv) string { return v.event.Cloud.PrincipalType }
	case "cloud.role":
		return func(v *conditionEnv) string { return v.event.Cloud.Role }
	case "cloud.role_id":
		return func(v *conditionEnv) string { return v.event.Cloud.RoleID }
	case "cloud.session_name":
		return func(v *conditionEnv) string { return v.event.Cloud.SessionName }
	case "cloud.access_key_id":
		return func(v *conditionEnv) string { return v.event.Cloud.AccessKeyID }
	case "cloud.source_ip":
		return func(v *conditionEnv) string { return v.event.Cloud.SourceIP }
	case "cloud.user_agent":
		return func(v *conditionEnv) string { return v.event.Cloud.UserAgent }
	case "cloud.error_code":
		return func(v *conditionEnv) string { return v.event.Cloud.ErrorCode }
	case "cloud.target_principal":
		return func(v *conditionEnv) string { return v.event.Cloud.TargetPrincipal }
	case "cloud.cluster":
		return func(v *conditionEnv) string { return v.event.Cloud.Cluster }
	case "cloud.namespace":
		return func(v *conditionEnv) string { return v.event.Cloud.Namespace }
	case "cloud.service_account":
		return func(v *conditionEnv) string { return v.event.Cloud.ServiceAccount }
	case "cloud.pod":
		return func(v *conditionEnv) string { return v.event.Cloud.Pod }
	case "cloud.pod_uid":
		return func(v *conditionEnv) string { return v.event.Cloud.PodUID }
	}
	return nil
}

func requestBoolField(name string) func(*conditionEnv) bool {
	switch name {
	case "audit.truncated":
		return func(v *conditionEnv) bool { return v.event.Audit.Truncated }
	case "audit.dry_run":
		return func(v *conditionEnv) bool { return v.event.Audit.DryRun }
	case "audit.from_outside_cluster":
		return func(v *conditionEnv) bool { return v.event.Audit.FromOutsideCluster }
	case "audit.exec.tty":
		return func(v *conditionEnv) bool { return v.event.Audit.Exec.TTY }
	case "audit.exec.stdin":
		return func(v *conditionEnv) bool { return v.event.Audit.Exec.Stdin }
	case "audit.pod.privileged":
		return func(v *conditionEnv) bool { return v.event.Audit.Pod.Privileged }
	case "audit.pod.privilege_escalation":
		return func(v *conditionEnv) bool { return v.event.Audit.Pod.PrivilegeEscalation }
	case "audit.pod.host_network":
		return func(v *conditionEnv) bool { return v.event.Audit.Pod.HostNetwork }
	case "audit.pod.host_pid":
		return func(v *conditionEnv) bool { return v.event.Audit.Pod.HostPID }
	case "audit.pod.host_ipc":
		return func(v *conditionEnv) bool { return v.event.Audit.Pod.HostIPC }
	case "audit.role.wildcard":
		return func(v *conditionEnv) bool { return v.event.Audit.Role.Wildcard }
	case "audit.webhook.ignores_failures":
		return func(v *conditionEnv) bool { return v.event.Audit.Webhook.IgnoresFailures }
	case "cloud.read_only":
		return func(v *conditionEnv) bool { return v.event.Cloud.ReadOnly }
	case "cloud.mfa":
		return func(v *conditionEnv) bool { return v.event.Cloud.MFA }
	case "cloud.from_outside_cluster":
		return func(v *conditionEnv) bool { return v.event.Cloud.FromOutsideCluster }
	}
	return nil
}

func requestNumberField(name string) func(*conditionEnv) int {
	switch name {
	case "audit.status_code":
		return func(v *conditionEnv) int { return v.event.Audit.StatusCode }
	case "audit.recent_secret_reads":
		return func(v *conditionEnv) int { return v.event.Audit.RecentSecretReads }
	case "audit.recent_denied_requests":
		return func(v *conditionEnv) int { return v.event.Audit.RecentDeniedRequests }
	case "audit.token.expiration_seconds":
		return func(v *conditionEnv) int { return int(v.event.Audit.Token.ExpirationSeconds) }
	case "cloud.recent_reads":
		return func(v *conditionEnv) int { return v.event.Cloud.RecentReads }
	case "cloud.recent_denied_calls":
		return func(v *conditionEnv) int { return v.event.Cloud.RecentDeniedCalls }
	}
	return nil
}

// requestListField returns the getter for a list of strings, which `any`, `all`, `none`, `in` and `len` accept, or
// nil.
func requestListField(name string) func(*conditionEnv) []string {
	switch name {
	case "process.args":
		return func(v *conditionEnv) []string { return v.event.Process.Args }
	case "audit.groups":
		return func(v *conditionEnv) []string { return v.event.Audit.Groups }
	case "audit.impersonated_groups":
		return func(v *conditionEnv) []string { return v.event.Audit.ImpersonatedGroups }
	case "audit.source_ips":
		return func(v *conditionEnv) []string { return v.event.Audit.SourceIPs }
	case "audit.exec.command":
		return func(v *conditionEnv) []string { return v.event.Audit.Exec.Command }
	case "audit.pod.host_paths":
		return func(v *conditionEnv) []string { return v.event.Audit.Pod.HostPaths }
	case "audit.pod.capabilities":
		return func(v *conditionEnv) []string { return v.event.Audit.Pod.Capabilities }
	case "audit.pod.images":
		return func(v *conditionEnv) []string { return v.event.Audit.Pod.Images }
	case "audit.pod.ephemeral_images":
		return func(v *conditionEnv) []string { return v.event.Audit.Pod.EphemeralImages }
	case "audit.binding.subjects":
		return func(v *conditionEnv) []string { return v.event.Audit.Binding.Subjects }
	case "audit.role.escalating_permissions":
		return func(v *conditionEnv) []string { return v.event.Audit.Role.EscalatingPermissions }
	case "audit.token.audiences":
		return func(v *conditionEnv) []string { return v.event.Audit.Token.Audiences }
	case "audit.webhook.urls":
		return func(v *conditionEnv) []string { return v.event.Audit.Webhook.ExternalURLs }
	case "audit.admission.exemption_labels":
		return func(v *conditionEnv) []string { return v.event.Audit.Admission.ExemptionLabels }
	case "cloud.resources":
		return func(v *conditionEnv) []string { return v.event.Cloud.Resources }
	}
	return nil
}
