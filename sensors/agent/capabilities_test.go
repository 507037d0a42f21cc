package agent

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestEffectiveCapabilitiesAreReadFromStatus(t *testing.T) {
	mask, err := parseEffectiveCapabilities("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000200002\n")
	require.NoError(t, err)
	require.Equal(t, uint64(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_DAC_OVERRIDE), mask)
	for _, status := range []string{"", "CapEff:\tx\n"} {
		_, err := parseEffectiveCapabilities(status)
		require.Error(t, err, status)
	}
}

func TestSensorInPodRefusesToPinWhereItsLocksEndWithThePod(t *testing.T) {
	dir := t.TempDir() // on no BPF file system
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	require.NoError(t, os.Unsetenv("KUBERNETES_SERVICE_HOST"))
	require.NoError(t, checkPinsOutlivePod(dir), "on a machine, the sensor mounts a BPF file system")
	t.Setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
	require.ErrorContains(t, checkPinsOutlivePod(dir), "mount -t bpf")
	require.ErrorContains(t, checkPinsOutlivePod(dir+"/new"), "mount -t bpf")
}
