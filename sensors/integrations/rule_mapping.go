package integrations

import (
	"fmt"
	"strings"

	"stanch/sensors"
)

// ruleMapping maps a rule of another sensor to an objective and a technique.
type ruleMapping struct {
	objective sensors.Objective
	technique string
	// confidence is the confidence of the rule alone; 0 means the default for the severity.
	confidence float64
}

// techniqueObjectives maps ATT&CK techniques, without their sub-technique, to objectives.
var techniqueObjectives = map[string]sensors.Objective{
	"T1496": sensors.ObjectiveCryptoMining,
	"T1611": sensors.ObjectiveEscape, "T1068": sensors.ObjectiveEscape, "T1548": sensors.ObjectiveEscape,
	"T1134": sensors.ObjectiveEscape,
	"T1552": sensors.ObjectiveCredentialAccess, "T1003": sensors.ObjectiveCredentialAccess,
	"T1555": sensors.ObjectiveCredentialAccess,
	"T1528": sensors.ObjectiveCredentialAccess, "T1110": sensors.ObjectiveCredentialAccess,
	"T1212": sensors.ObjectiveCredentialAccess, "T1040": sensors.ObjectiveCredentialAccess,
	"T1071": sensors.ObjectiveCommandControl, "T1095": sensors.ObjectiveCommandControl,
	"T1105": sensors.ObjectiveCommandControl, "T1571": sensors.ObjectiveCommandControl,
	"T1090": sensors.ObjectiveCommandControl, "T1572": sensors.ObjectiveCommandControl,
	"T1219": sensors.ObjectiveCommandControl,
	"T1041": sensors.ObjectiveExfiltration, "T1048": sensors.ObjectiveExfiltration, "T1567": sensors.ObjectiveExfiltration,
	"T1020": sensors.ObjectiveExfiltration,
	"T1021": sensors.ObjectiveLateralMovement, "T1563": sensors.ObjectiveLateralMovement,
	"T1210": sensors.ObjectiveLateralMovement, "T1550": sensors.ObjectiveLateralMovement,
	"T1053": sensors.ObjectivePersistence, "T1543": sensors.ObjectivePersistence, "T1547": sensors.ObjectivePersistence,
	"T1098": sensors.ObjectivePersistence,
	"T1136": sensors.ObjectivePersistence, "T1505": sensors.ObjectivePersistence, "T1574": sensors.ObjectivePersistence,
	"T1037": sensors.ObjectivePersistence,
	"T1070": sensors.ObjectiveDefenseEvasion, "T1036": sensors.ObjectiveDefenseEvasion,
	"T1562": sensors.ObjectiveDefenseEvasion, "T1564": sensors.ObjectiveDefenseEvasion,
	"T1620": sensors.ObjectiveDefenseEvasion, "T1027": sensors.ObjectiveDefenseEvasion,
	"T1622": sensors.ObjectiveDefenseEvasion, "T1014": sensors.ObjectiveDefenseEvasion,
	"T1055": sensors.ObjectiveDefenseEvasion,
	// The successors of T1562 in ATT&CK v19.
	"T1685": sensors.ObjectiveDefenseEvasion, "T1686": sensors.ObjectiveDefenseEvasion,
	"T1687": sensors.ObjectiveDefenseEvasion,
	"T1688": sensors.ObjectiveDefenseEvasion, "T1689": sensors.ObjectiveDefenseEvasion,
	"T1690": sensors.ObjectiveDefenseEvasion,
	"T1059": sensors.ObjectiveExecution, "T1609": sensors.ObjectiveExecution, "T1610": sensors.ObjectiveExecution,
	"T1204": sensors.ObjectiveExecution,
	"T1046": sensors.ObjectiveDiscovery, "T1082": sensors.ObjectiveDiscovery, "T1083": sensors.ObjectiveDiscovery,
	"T1613": sensors.ObjectiveDiscovery,
	"T1087": sensors.ObjectiveDiscovery, "T1018": sensors.ObjectiveDiscovery, "T1057": sensors.ObjectiveDiscovery,
	"T1518": sensors.ObjectiveDiscovery,
}

// objectiveKeywords maps keywords in names and tags (in lower case, with spaces for - and _) to objectives. Specific
// keywords come first, then the tactics of ATT&CK. The tactic "impact" is missing, because it means destruction as
// often as mining.
var objectiveKeywords = []struct {
	words     string
	objective sensors.Objective
}{
	{"cryptomin", sensors.ObjectiveCryptoMining},
	{"crypto min", sensors.ObjectiveCryptoMining},
	{"crypto", sensors.ObjectiveCryptoMining},
	{"miner", sensors.ObjectiveCryptoMining},
	{"reverse shell", sensors.ObjectiveCommandControl},
	{"redirect stdout", sensors.ObjectiveCommandControl},
	{"command and control", sensors.ObjectiveCommandControl},
	{"escape", sensors.ObjectiveEscape},
	{"privilege escalation", sensors.ObjectiveEscape},
	{"credential access", sensors.ObjectiveCredentialAccess},
	{"lateral movement", sensors.ObjectiveLateralMovement},
	{"exfiltration", sensors.ObjectiveExfiltration},
	{"persistence", sensors.ObjectivePersistence},
	{"defense evasion", sensors.ObjectiveDefenseEvasion},
	{"defence evasion", sensors.ObjectiveDefenseEvasion},
	{"defense impairment", sensors.ObjectiveDefenseEvasion},
	{"stealth", sensors.ObjectiveDefenseEvasion},
	{"masquerading", sensors.ObjectiveDefenseEvasion},
	{"discovery", sensors.ObjectiveDiscovery},
	{"reconnaissance", sensors.ObjectiveDiscovery},
	{"execution", sensors.ObjectiveExecution},
}

// mapRule returns the objective and technique of a rule, and a sentence that says how they were determined: by the
// name of a shipped rule, by its technique, by keywords in its name and tags, or as a guess (execution).
func mapRule(source string, shipped map[string]ruleMapping, rule string, tags []string, technique string) (ruleMapping,
	string,
) {
	if m, ok := shipped[rule]; ok {
		if technique != "" {
			m.technique = technique
		}
		return m, fmt.Sprintf("It is one of %s's own rules; its objective is known.", source)
	}
	for _, tag := range tags {
		technique = orDefault(technique, findTechnique(tag))
	}
	base, _, _ := strings.Cut(technique, ".")
	if o, ok := techniqueObjectives[base]; ok {
		return ruleMapping{objective: o, technique: technique},
			fmt.Sprintf("Its objective was inferred from its ATT&CK technique %s.", technique)
	}
	text := strings.NewReplacer("_", " ", "-", " ").Replace(strings.ToLower(rule + " " + strings.Join(tags, " ")))
	for _, m := range objectiveKeywords {
		if strings.Contains(text, m.words) {
			return ruleMapping{objective: m.objective, technique: technique},
				fmt.Sprintf("Its objective was inferred from the words %q in its name and tags.", m.words)
		}
	}
	return ruleMapping{objective: sensors.ObjectiveExecution, technique: technique},
		"Its purpose is unknown: the objective \"execution\" is a guess."
}

// findTechnique returns the ATT&CK technique in a tag such as "T1059", "T1059.004", "MITRE_T1036_masquerading" or
// "attack.t1068", or "".
func findTechnique(tag string) string {
	for part := range strings.FieldsFuncSeq(strings.ToUpper(tag), func(r rune) bool {
		return r == '_' || r == '-' ||
			r == ' ' || r == ':' || r == '/'
	}) {
		part = strings.TrimPrefix(part, "ATTACK.")
		number, sub, hasSub := strings.Cut(part, ".")
		if len(number) == 5 && number[0] == 'T' && isDigits(number[1:]) && (!hasSub || len(sub) == 3 && isDigits(sub)) {
			return part
		}
	}
	return ""
}

func isDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// syscallKinds maps system calls, and the kernel functions that implement them, to event kinds.
var syscallKinds = map[string]sensors.Kind{
	"execve": sensors.KindExec, "execveat": sensors.KindExec, "sched_process_exec": sensors.KindExec,
	"security_bprm_check":           sensors.KindExec,
	"security_bprm_creds_from_file": sensors.KindExec, "bprm_check_security": sensors.KindExec,
	"bprm_creds_from_file": sensors.KindExec,
	"connect":              sensors.KindConnect, "tcp_connect": sensors.KindConnect,
	"security_socket_connect": sensors.KindConnect,
	"socket_connect":          sensors.KindConnect,
	"net_tcp_connect":         sensors.KindConnect, "tcp_sendmsg": sensors.KindConnect, "udp_sendmsg": sensors.KindConnect,
	"sendto": sensors.KindConnect, "sendmsg": sensors.KindConnect,
	"open": sensors.KindFileOpen, "openat": sensors.KindFileOpen, "openat2": sensors.KindFileOpen,
	"creat": sensors.KindFileOpen, "fd_install": sensors.KindFileOpen, "file_open": sensors.KindFileOpen,
	"security_file_open": sensors.KindFileOpen, "security_file_permission": sensors.KindFileOpen,
	"file_permission": sensors.KindFileOpen, "security_mmap_file": sensors.KindFileOpen,
	"mmap_file": sensors.KindFileOpen, "read": sensors.KindFileOpen, "write": sensors.KindFileOpen,
	"link": sensors.KindFileOpen, "linkat": sensors.KindFileOpen, "symlink": sensors.KindFileOpen,
	"symlinkat": sensors.KindFileOpen, "magic_write": sensors.KindFileOpen, "file_modification": sensors.KindFileOpen,
	"unlink": sensors.KindFileDelete, "unlinkat": sensors.KindFileDelete, "rename": sensors.KindFileDelete,
	"renameat": sensors.KindFileDelete, "renameat2": sensors.KindFileDelete,
	"truncate": sensors.KindFileDelete, "ftruncate": sensors.KindFileDelete, "rmdir": sensors.KindFileDelete,
	"security_path_truncate": sensors.KindFileDelete, "path_truncate": sensors.KindFileDelete,
	"security_inode_unlink": sensors.KindFileDelete, "security_inode_rename": sensors.KindFileDelete,
	"security_path_unlink": sensors.KindFileDelete, "path_unlink": sensors.KindFileDelete,
	"chmod": sensors.KindChmod, "fchmod": sensors.KindChmod, "fchmodat": sensors.KindChmod,
	"chmod_common": sensors.KindChmod,
	"bind":         sensors.KindListen, "listen": sensors.KindListen, "accept": sensors.KindListen,
	"accept4":                sensors.KindListen,
	"inet_csk_listen_start":  sensors.KindListen,
	"security_socket_listen": sensors.KindListen, "security_socket_bind": sensors.KindListen,
	"socket": sensors.KindRawSocket,
	"mount":  sensors.KindMount, "umount": sensors.KindMount, "umount2": sensors.KindMount,
	"move_mount": sensors.KindMount, "pivot_root": sensors.KindMount,
	"fsmount": sensors.KindMount, "security_sb_mount": sensors.KindMount, "sb_mount": sensors.KindMount,
	"setns": sensors.KindNamespaceChange, "unshare": sensors.KindNamespaceChange,
	"switch_task_ns": sensors.KindNamespaceChange, "create_user_ns": sensors.KindNamespaceChange,
	"ptrace": sensors.KindProcessTrace, "process_vm_writev": sensors.KindProcessTrace,
	"process_vm_readv": sensors.KindProcessTrace, "security_ptrace_access_check": sensors.KindProcessTrace,
	"ptrace_access_check": sensors.KindProcessTrace,
	"bpf":                 sensors.KindBPF, "security_bpf": sensors.KindBPF, "bpf_check": sensors.KindBPF,
	"security_bpf_prog": sensors.KindBPF, "bpf_attach": sensors.KindBPF,
	"security_bpf_map_alloc": sensors.KindBPF,
	"io_uring_setup":         sensors.KindIOUring, "io_uring_enter": sensors.KindIOUring,
	"io_uring_register": sensors.KindIOUring,
	"init_module":       sensors.KindKernelModule, "finit_module": sensors.KindKernelModule,
	"delete_module": sensors.KindKernelModule, "do_init_module": sensors.KindKernelModule,
	"security_kernel_module_request": sensors.KindKernelModule, "security_kernel_read_file": sensors.KindKernelModule,
	"security_post_read_file": sensors.KindKernelModule,
	"find_module_sections":    sensors.KindKernelModule, "free_module": sensors.KindKernelModule,
}

// syscallName returns the name of a system call without the prefixes of hooks: "openat" for "__x64_sys_openat".
func syscallName(s string) string {
	for _, prefix := range []string{"__x64_", "__arm64_", "__ia32_", "__se_", "__do_"} {
		s = strings.TrimPrefix(s, prefix)
	}
	s = strings.TrimPrefix(s, "ksys_")
	for _, prefix := range []string{"sys_enter_", "sys_exit_", "sys_"} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			return rest
		}
	}
	return strings.ToLower(s)
}

// kindOfSyscall returns the event kind of a system call. It returns KindExec for an unknown call, because then only
// the process is known.
func kindOfSyscall(call string) sensors.Kind {
	if k, ok := syscallKinds[call]; ok {
		return k
	}
	return sensors.KindExec
}
