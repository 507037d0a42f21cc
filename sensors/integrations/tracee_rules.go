package integrations

import "stanch/sensors"

// traceeSignatureMappings maps the signatures that Tracee ships, by the name of their event.
var traceeSignatureMappings = map[string]ruleMapping{
	"stdio_over_socket":         {sensors.ObjectiveCommandControl, "T1059", 0.8},
	"anti_debugging":            {sensors.ObjectiveDefenseEvasion, "T1622", 0.4},
	"ptrace_code_injection":     {sensors.ObjectiveDefenseEvasion, "T1055.008", 0.7},
	"dynamic_code_loading":      {sensors.ObjectiveDefenseEvasion, "T1027.002", 0.5},
	"fileless_execution":        {sensors.ObjectiveDefenseEvasion, "T1620", 0.8},
	"cgroup_notify_on_release":  {sensors.ObjectiveEscape, "T1611", 0.75},
	"ld_preload":                {sensors.ObjectivePersistence, "T1574.006", 0.6},
	"k8s_service_account_token": {sensors.ObjectiveCredentialAccess, "T1528", 0.5},
	"aslr_inspection":           {sensors.ObjectiveEscape, "T1068", 0.3},
	"cgroup_release_agent":      {sensors.ObjectiveEscape, "T1611", 0.9},
	"core_pattern_modification": {sensors.ObjectiveEscape, "T1611", 0.85},
	"default_loader_mod":        {sensors.ObjectivePersistence, "T1574", 0.7},
	"k8s_api_connection":        {sensors.ObjectiveDiscovery, "T1613", 0.4},
	"disk_mount":                {sensors.ObjectiveEscape, "T1611", 0.8},
	"hidden_file_created":       {sensors.ObjectiveDefenseEvasion, "T1564.001", 0.4},
	"illegitimate_shell":        {sensors.ObjectiveExecution, "T1059.004", 0.7},
	"kernel_module_loading":     {sensors.ObjectiveEscape, "T1547.006", 0.7},
	"k8s_cert_theft":            {sensors.ObjectiveCredentialAccess, "T1552.004", 0.8},
	"docker_abuse":              {sensors.ObjectiveEscape, "T1068", 0.7},
	"hooked_proc_fops":          {sensors.ObjectiveDefenseEvasion, "T1014", 0.8},
	"proc_fops_hooking":         {sensors.ObjectiveDefenseEvasion, "T1014", 0.8},
	"proc_kcore_read":           {sensors.ObjectiveEscape, "T1611", 0.7},
	"dropped_executable":        {sensors.ObjectiveExecution, "T1105", 0.7},
	"proc_mem_access":           {sensors.ObjectiveCredentialAccess, "T1003.007", 0.6},
	"proc_mem_code_injection":   {sensors.ObjectiveDefenseEvasion, "T1055.009", 0.75},
	"process_vm_write_inject":   {sensors.ObjectiveDefenseEvasion, "T1055", 0.75},
	"rcd_modification":          {sensors.ObjectivePersistence, "T1037.004", 0.6},
	"scheduled_task_mod":        {sensors.ObjectivePersistence, "T1053.003", 0.6},
	"sudoers_modification":      {sensors.ObjectiveEscape, "T1548.003", 0.6},
	"sched_debug_recon":         {sensors.ObjectiveDiscovery, "T1613", 0.4},
	"syscall_hooking":           {sensors.ObjectiveDefenseEvasion, "T1014", 0.8},
	"system_request_key_mod":    {sensors.ObjectiveEscape, "T1611", 0.6},
}

// traceeSignatureNames maps the IDs of these signatures to their event names. Older versions report the title instead
// of the event name.
var traceeSignatureNames = map[string]string{
	"TRC-101": "stdio_over_socket", "TRC-102": "anti_debugging", "TRC-103": "ptrace_code_injection",
	"TRC-104": "dynamic_code_loading", "TRC-105": "fileless_execution",
	"TRC-106": "cgroup_notify_on_release", "TRC-107": "ld_preload", "TRC-108": "k8s_service_account_token",
	"TRC-109":  "aslr_inspection",
	"TRC-1010": "cgroup_release_agent", "TRC-1011": "core_pattern_modification", "TRC-1012": "default_loader_mod",
	"TRC-1013": "k8s_api_connection", "TRC-1014": "disk_mount",
	"TRC-1015": "hidden_file_created", "TRC-1016": "illegitimate_shell", "TRC-1017": "kernel_module_loading",
	"TRC-1018": "k8s_cert_theft", "TRC-1019": "docker_abuse",
	"TRC-1020": "proc_fops_hooking", "TRC-1021": "proc_kcore_read", "TRC-1022": "dropped_executable",
	"TRC-1023": "proc_mem_access", "TRC-1024": "proc_mem_code_injection",
	"TRC-1025": "process_vm_write_inject", "TRC-1026": "rcd_modification", "TRC-1027": "scheduled_task_mod",
	"TRC-1028": "sudoers_modification", "TRC-1029": "sched_debug_recon",
	"TRC-1030": "syscall_hooking", "TRC-1031": "system_request_key_mod",
}

// traceeSignatureKinds are the event kinds of signatures whose system call does not determine the kind.
var traceeSignatureKinds = map[string]sensors.Kind{
	"stdio_over_socket": sensors.KindConnect, "k8s_api_connection": sensors.KindConnect,
	"k8s_service_account_token": sensors.KindFileOpen, "k8s_cert_theft": sensors.KindFileOpen,
	"cgroup_release_agent": sensors.KindFileOpen, "cgroup_notify_on_release": sensors.KindFileOpen,
	"core_pattern_modification": sensors.KindFileOpen, "sudoers_modification": sensors.KindFileOpen,
	"proc_mem_access": sensors.KindFileOpen, "proc_kcore_read": sensors.KindFileOpen,
	"dropped_executable": sensors.KindFileOpen, "hidden_file_created": sensors.KindFileOpen,
	"docker_abuse": sensors.KindUnixConnect, "disk_mount": sensors.KindMount,
	"kernel_module_loading": sensors.KindKernelModule, "anti_debugging": sensors.KindProcessTrace,
	"ptrace_code_injection": sensors.KindProcessTrace, "process_vm_write_inject": sensors.KindProcessTrace,
}
