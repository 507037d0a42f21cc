package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// usedCapability is a Linux capability that the sensor uses.
type usedCapability struct {
	number int
	name   string
	// without says what does not work without it.
	without string
	// required reports whether a sensor without it would watch or contain less than it reports.
	required bool
}

// usedCapabilities returns the capabilities of a sensor that connects to a gateway. The chart grants the same ones.
func usedCapabilities() []usedCapability {
	return []usedCapability{
		{
			unix.CAP_SYS_ADMIN, "SYS_ADMIN",
			"it cannot load kernel programs, enter a pod's network namespace, or start a process in another cgroup", true,
		},
		{
			unix.CAP_SYS_PTRACE, "SYS_PTRACE",
			"it cannot read the namespaces, environment and files of other processes, and does not find the kubelet", true,
		},
		{
			unix.CAP_DAC_OVERRIDE, "DAC_OVERRIDE",
			"it cannot create the cgroups of its heartbeat and of the processes that end a freeze", true,
		},
		{
			unix.CAP_NET_ADMIN, "NET_ADMIN",
			"kernels before 6.9 do not attach its programs for packets: the egress lock and the DNS probe", false,
		},
		{
			unix.CAP_DAC_READ_SEARCH, "DAC_READ_SEARCH",
			"it searches the tree of cgroups for each new container instead of opening its cgroup by its ID", false,
		},
		{
			unix.CAP_SYS_CHROOT, "SYS_CHROOT",
			"a process that ends a freeze keeps the mounts of the sensor's pod until then", false,
		},
	}
}

// CheckCapabilities returns an error that names each required capability that this process lacks, and what does not
// work without it. It logs the others that are missing.
func CheckCapabilities(log *slog.Logger) error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	mask, err := parseEffectiveCapabilities(string(status))
	if err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	var missing []string
	for _, c := range usedCapabilities() {
		switch {
		case mask&(1<<c.number) != 0:
		case c.required:
			missing = append(missing, fmt.Sprintf("missing capability %s: without it, %s", c.name, c.without))
		default:
			log.Warn("the sensor lacks a capability", "capability", c.name, "without_it", c.without)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("start the sensor: %s; run it as root, or add the capability to its container",
		strings.Join(missing, "; "))
}

// parseEffectiveCapabilities returns the mask of the effective capabilities in /proc/PID/status.
func parseEffectiveCapabilities(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("parse CapEff: %w", err)
			}
			return mask, nil
		}
	}
	return 0, errors.New("CapEff is missing in /proc/self/status")
}
