package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/sensors/agent"
	"stanch/sensors/containermeta"
	"stanch/testenv/prereq"
)

// namespaceRole is the variable that makes the test program a part of the test below: "node", the first process of a
// node, "contained", a process in a cgroup namespace of its own, or "sensor", one that leaves it.
const namespaceRole = "STANCH_TEST_NAMESPACE_ROLE"

// testCgroup is below the root of cgroup v2.
const testCgroup = "stanch-test-namespace"

// On a node with cgroup v2, a sensor that is not privileged has a cgroup namespace of its own, and systemd mounts
// cgroup v2 with nsdelegate. It must start its heartbeat and its thawers in cgroups outside all the same.
func TestSensorEntersTheCgroupNamespaceOfItsNode(t *testing.T) {
	prereq.RequireRoot(t)
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	delegateByNamespaces(t, root)
	place := filepath.Join(root, testCgroup)
	require.NoError(t, os.MkdirAll(place+"/container", 0o755))
	t.Cleanup(func() {
		require.NoError(t, os.Remove(place+"/container"))
		require.NoError(t, os.Remove(place))
	})
	cmd := exec.CommandContext(t.Context(), "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", os.Args[0])
	for role, want := range map[string]string{"contained": "no such file or directory", "sensor": "started"} {
		cmd := *cmd
		cmd.Env = append(os.Environ(), namespaceRole+"=node", "STANCH_TEST_THEN="+role)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), want, role)
	}
}

// playNamespaceRole prints whether a process in this role can start a process in a cgroup outside its container's.
func playNamespaceRole(role string) {
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		panic(err)
	}
	place := filepath.Join(root, testCgroup)
	switch role {
	case "node":
		cmd := exec.Command("unshare", "--cgroup", os.Args[0])
		cmd.Env = append(os.Environ(), namespaceRole+"="+os.Getenv("STANCH_TEST_THEN"))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := startIn(place+"/container", cmd); err != nil {
			panic(err)
		}
	case "sensor":
		if err := agent.EnterNodeCgroupNamespace(); err != nil {
			panic(err)
		}
		fallthrough
	default:
		if err := startIn(place, exec.Command("true")); err != nil {
			_, _ = os.Stdout.WriteString(err.Error())
			return
		}
		_, _ = os.Stdout.WriteString("started")
	}
}

// startIn runs a command in a cgroup.
func startIn(dir string, cmd *exec.Cmd) error {
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	return cmd.Run()
}

// delegateByNamespaces mounts cgroup v2 with nsdelegate until the test ends, if it is not mounted so. Only processes in
// cgroup namespaces notice.
func delegateByNamespaces(t *testing.T, root string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	require.NoError(t, err)
	var options []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == root {
			options = options[:0]
			for option := range strings.SplitSeq(f[3], ",") {
				switch {
				case option == "nsdelegate":
					return
				case strings.Contains(option, "_") || option == "favordynmods": // of cgroup v2, and not of every mount
					options = append(options, option)
				}
			}
		}
	}
	const flags = unix.MS_REMOUNT | unix.MS_RELATIME
	before := strings.Join(options, ",")
	if err := unix.Mount("none", root, "cgroup2", flags, strings.Trim(before+",nsdelegate", ",")); err != nil {
		prereq.SkipOrFail(t, "a cgroup v2 that can be mounted with nsdelegate: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Mount("none", root, "cgroup2", flags, before)) })
}
