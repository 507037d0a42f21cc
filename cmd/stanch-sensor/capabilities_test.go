package main

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/sensors/agent"
	"stanch/testenv/prereq"
)

// withoutCapability is the variable with the numbers of the capabilities that the test program gives up before it
// runs as stanch-sensor.
const (
	withoutCapability = "STANCH_TEST_WITHOUT_CAPABILITY"
	asSensor          = "STANCH_TEST_AS_SENSOR"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(withoutCapability); name != "" {
		execWithoutCapability(name)
	}
	if role := os.Getenv(namespaceRole); role != "" {
		playNamespaceRole(role)
		os.Exit(0)
	}
	thaws := len(os.Args) == 3 && os.Args[1] == agent.ThawCommand
	if os.Getenv(asSensor) != "" || thaws {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// execWithoutCapability executes this program again: a capability that is not in the bounding set is lost then.
func execWithoutCapability(numbers string) {
	runtime.LockOSThread()
	for text := range strings.FieldsSeq(numbers) {
		number, err := strconv.ParseUint(text, 10, 8)
		if err == nil {
			err = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0)
		}
		if err != nil {
			panic(err)
		}
	}
	_ = os.Unsetenv(withoutCapability)
	_ = os.Setenv(asSensor, "1")
	panic(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// capabilityNumbers are the capabilities of the chart's sensor.
func capabilityNumbers() map[string]int {
	return map[string]int{
		"SYS_ADMIN": unix.CAP_SYS_ADMIN, "SYS_PTRACE": unix.CAP_SYS_PTRACE, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
		"NET_ADMIN": unix.CAP_NET_ADMIN, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "SYS_CHROOT": unix.CAP_SYS_CHROOT,
	}
}

// A sensor with a right too few says which one and what it is for, instead of watching less than it reports.
func TestSensorNamesMissingCapability(t *testing.T) {
	prereq.RequireRoot(t)
	for capability, reason := range map[string]string{
		"SYS_ADMIN": "enter a pod's network namespace", "SYS_PTRACE": "does not find the kubelet",
		"DAC_OVERRIDE": "cgroups of its heartbeat", "NET_ADMIN": "", "DAC_READ_SEARCH": "", "SYS_CHROOT": "",
	} {
		t.Run(capability, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "--gateway", "192.0.2.1:1", "--certs", t.TempDir(), "--state",
				t.TempDir())
			cmd.Env = append(os.Environ(), withoutCapability+"="+strconv.Itoa(capabilityNumbers()[capability]))
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "without certificates it does not start either")
			if reason != "" {
				require.Contains(t, string(out), "start the sensor: missing capability "+capability+": without it, ")
				require.Contains(t, string(out), reason)
				return
			}
			require.Contains(t, string(out), "capability="+capability)
			require.NotContains(t, string(out), "missing capability")
		})
	}
}
