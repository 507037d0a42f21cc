package probe

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"stanch/sensors"
)

// The values of sensors.File.SensitiveClass.
const (
	sensitiveServiceAccountToken = "service-account-token"
	sensitiveShadow              = "shadow"
	sensitiveCloud               = "cloud-credentials"
	sensitivePrivateKey          = "private-key"
	sensitiveKubeconfig          = "kubeconfig"
	sensitivePasswords           = "stored-passwords"
	sensitiveProcessEnviron      = "process-environment"
	sensitiveProcessMemory       = "process-memory"
	sensitiveKernelEscape        = "kernel-escape"
	sensitiveRuntimeSocket       = "runtime-socket"
	sensitiveLog                 = "log"
	sensitiveHistory             = "history"
	sensitiveAccounts            = "accounts"
	sensitiveStartup             = "startup"
)

// The operations that the kernel reports for a name: the ON_… bits of bpf/src/event.h.
const (
	watchOnRead     uint32 = 1 << 16
	watchOnWrite    uint32 = 1 << 17
	watchOnTruncate uint32 = 1 << 18
	watchOnDelete   uint32 = 1 << 19
	watchOnConnect  uint32 = 1 << 20
)

// sensitiveGroups are the base names that the kernel reports. sensitiveClass then decides by the full path.
var sensitiveGroups = []struct {
	on    uint32
	names []string
}{
	{watchOnRead, []string{"token", "azure-identity-token", "eks-pod-identity-token"}},
	{watchOnRead | watchOnWrite, []string{"shadow", "gshadow", "shadow-"}},
	{watchOnRead, []string{
		"credentials", "application_default_credentials.json", "credentials.db", "access_tokens.db", "legacy_credentials",
		"accessTokens.json", "msal_token_cache.json", "msal_token_cache.bin", "azureProfile.json",
		"service_principal_entries.json",
	}},
	{watchOnRead, []string{"id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "id_ecdsa_sk", "id_ed25519_sk"}},
	{watchOnRead, []string{
		"config", "kubeconfig", "admin.conf", "super-admin.conf", "kubelet.conf",
		"bootstrap-kubelet.conf",
	}},
	{watchOnRead, []string{".netrc", ".pgpass", ".my.cnf", ".git-credentials", ".dockercfg", ".vault-token"}},
	{watchOnRead, []string{"environ"}},
	{watchOnRead | watchOnWrite, []string{"mem"}},
	{watchOnRead, []string{"kcore"}},
	{watchOnWrite, []string{
		"release_agent", "core_pattern", "uevent_helper", "modprobe", "register", "sysrq-trigger",
		"devices.allow", "kmem",
	}},
	{watchOnConnect, []string{
		"docker.sock", "containerd.sock", "crio.sock", "podman.sock", "cri-dockerd.sock",
		"dockershim.sock", "buildkitd.sock",
	}},
	{watchOnTruncate | watchOnDelete, logNames},
	{watchOnTruncate | watchOnDelete, historyNames},
	{watchOnWrite, []string{"passwd", "sudoers"}},
	{watchOnWrite, []string{"authorized_keys", "ld.so.preload", "crontab"}},
}

var (
	logNames = []string{
		"wtmp", "btmp", "utmp", "lastlog", "faillog", "auth.log", "secure", "messages", "syslog", "kern.log", "daemon.log",
		"cron", "maillog",
		"audit.log", "access.log", "error.log", "access_log", "error_log", "dpkg.log",
	}
	historyNames = []string{
		".bash_history", ".ash_history", ".sh_history", ".zsh_history", ".history", ".python_history",
		".mysql_history", ".psql_history", ".viminfo",
	}
)

// sensitiveNames maps each name to the operations that the kernel reports.
var sensitiveNames = func() map[string]uint32 {
	names := map[string]uint32{}
	for _, g := range sensitiveGroups {
		for _, name := range g.names {
			names[name] |= g.on
		}
	}
	return names
}()

// sensitiveClassOfEvent returns the class of an event's file, or "" if the file is not sensitive.
func sensitiveClassOfEvent(e *sensors.Event) string {
	switch e.Kind {
	case sensors.KindUnixConnect:
		return sensitiveRuntimeSocket // the kernel matched the name in the socket address; the path may differ
	case sensors.KindFileDelete:
		return truncatedLogClass(e.File.Path)
	default:
	}
	class := sensitiveClass(e.File.Path)
	if class == sensitiveProcessEnviron || class == sensitiveProcessMemory {
		// A process may read its own files.
		if pid := procOwner(path.Dir(e.File.Path)); strings.HasSuffix(pid, "self") ||
			pid == strconv.FormatUint(uint64(e.Process.NSPID), 10) {
			return ""
		}
	}
	return class
}

func truncatedLogClass(p string) string {
	if slices.Contains(historyNames, path.Base(p)) {
		return sensitiveHistory
	}
	if strings.HasPrefix(p, "/var/log/") || strings.HasPrefix(p, "/var/run/") || strings.HasPrefix(p, "/run/") ||
		!path.IsAbs(p) {
		return sensitiveLog
	}
	return ""
}

// sensitiveClass returns the class of a file by its path, or "" if the file is not sensitive.
func sensitiveClass(p string) string {
	base, dir := path.Base(p), path.Dir(p)
	in := func(parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(dir+"/", part) {
				return true
			}
		}
		return false
	}
	only := func(ok bool, class string) string {
		if ok {
			return class
		}
		return ""
	}
	switch base {
	case "shadow", "gshadow", "shadow-":
		return only(dir == "/etc", sensitiveShadow)
	case "passwd", "sudoers":
		return only(dir == "/etc", sensitiveAccounts)
	case "token", "azure-identity-token", "eks-pod-identity-token":
		// A projected volume has the path …/..2026_01_02_03_04_05.123/token.
		return only(in("/serviceaccount/", "/kubernetes.io/", "/eks.amazonaws.com/", "/azure/tokens/",
			"/pods.eks.amazonaws.com/") ||
			strings.HasPrefix(path.Base(dir), "..2"), sensitiveServiceAccountToken)
	case "credentials":
		return only(in("/.aws/"), sensitiveCloud)
	case "application_default_credentials.json", "credentials.db", "access_tokens.db", "legacy_credentials":
		return only(in("/gcloud/"), sensitiveCloud)
	case "accessTokens.json", "msal_token_cache.json", "msal_token_cache.bin", "azureProfile.json",
		"service_principal_entries.json":
		return only(in("/.azure/"), sensitiveCloud)
	case "config":
		return only(in("/.kube/"), sensitiveKubeconfig)
	case "kubeconfig", "admin.conf", "super-admin.conf", "kubelet.conf", "bootstrap-kubelet.conf":
		return sensitiveKubeconfig
	case ".netrc", ".pgpass", ".my.cnf", ".git-credentials", ".dockercfg", ".vault-token":
		return sensitivePasswords
	case "environ":
		return only(procOwner(dir) != "", sensitiveProcessEnviron)
	case "mem", "kmem":
		if dir == "/dev" {
			return sensitiveKernelEscape
		}
		return only(procOwner(dir) != "", sensitiveProcessMemory)
	case "kcore":
		return only(dir == "/proc", sensitiveKernelEscape)
	case "release_agent", "devices.allow", "uevent_helper":
		return sensitiveKernelEscape
	case "core_pattern", "modprobe":
		return only(in("/sys/kernel/") || dir == "/proc/sys/kernel", sensitiveKernelEscape)
	case "register":
		return only(in("/binfmt_misc/"), sensitiveKernelEscape)
	case "sysrq-trigger":
		return only(dir == "/proc", sensitiveKernelEscape)
	case "authorized_keys", "ld.so.preload", "crontab":
		return sensitiveStartup
	}
	return only(strings.HasPrefix(base, "id_"), sensitivePrivateKey)
}

// procOwner returns the process that a directory in procfs belongs to, wherever procfs is mounted: "7" for "/proc/7"
// and for "/host/proc/7/task/8". It returns "" for other directories.
func procOwner(dir string) string {
	parts := strings.Split(dir, "/")
	for i, part := range parts[:len(parts)-1] {
		if part == "proc" && (isNumber(parts[i+1]) || strings.HasSuffix(parts[i+1], "self")) {
			return parts[i+1]
		}
	}
	return ""
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}
