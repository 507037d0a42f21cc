package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stop stops the lab and removes everything that it created: containers, shims, components, mounts, cgroups, bridge,
// directory, and finally its state file, so that an interrupted Stop can be repeated. It works on running, incomplete
// and killed labs.
func (c *Cluster) Stop() error {
	unlock, err := lockFile(labRegistryDir + "/lock")
	if err != nil {
		return err
	}
	defer unlock()
	var now State
	if err := now.load(c.StateFile()); errors.Is(err, fs.ErrNotExist) || err == nil && now.Dir != c.Dir {
		return nil // already stopped, and another lab may have its number now
	}
	if now.Dir == c.Dir {
		c.Processes = now.Processes // the starter may have added processes since this was read
	}
	var failed []error
	for _, step := range []func() error{
		func() error { c.killProcesses("kubelet"); return nil }, // it would restart what is killed
		func() error { return killCgroups(c.CgroupRoot) },
		c.killShims,
		func() error { c.killProcesses(""); return nil },
		func() error { return killCgroups(c.CgroupRoot) },
		c.removeServices,
		c.unmountAll,
		func() error { return removeCgroups(c.CgroupRoot) },
		c.removeNetwork,
		c.removeLogLinks,
		c.removeCNIResults,
		func() error { return os.RemoveAll(c.Dir) },
	} {
		failed = append(failed, step())
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("stop the lab %s (its state file stays: try again with `labnode down`): %w", c.ID, err)
	}
	others, err := otherLabs(c.ID)
	if err == nil && len(others) == 0 {
		restoreSysctls(c.Sysctls)
	}
	return os.Remove(c.StateFile())
}

// killProcesses kills the component with this name, or all for "", and waits until they are gone.
func (c *Cluster) killProcesses(name string) {
	for _, p := range c.Processes {
		if name == "" || p.Name == name {
			p.sendSignal(syscall.SIGKILL)
			waitForExit(p)
		}
	}
}

func waitForExit(p processID) {
	for deadline := time.Now().Add(5 * time.Second); p.isAlive() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
}

// killShims kills the shims of this lab's containerd, which it identifies by their arguments, and removes their
// sockets.
func (c *Cluster) killShims() error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(args, []byte("\x00-address\x00"+c.CRISocket+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if p, err := identifyProcess(pid); err == nil {
			p.sendSignal(syscall.SIGKILL)
			waitForExit(p)
		}
	}
	sockets, _ := filepath.Glob(c.filePath("s") + "/io.containerd.runtime.v2.task/*/*/address")
	for _, file := range sockets {
		if address, err := os.ReadFile(file); err == nil {
			_ = os.Remove(strings.TrimPrefix(string(address), "unix://"))
		}
	}
	return nil
}

func killPID(pid string) {
	if n, err := strconv.Atoi(pid); err == nil && n > 1 {
		_ = syscall.Kill(n, syscall.SIGKILL)
	}
}

// unmountAll unmounts everything below the lab's directory, latest first.
func (c *Cluster) unmountAll() error {
	for range 5 { // a mount can cover another
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return fmt.Errorf("list mounts: %w", err)
		}
		var ours []string
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], c.Dir+"/") {
				ours = append(ours, strings.ReplaceAll(f[4], `\040`, " "))
			}
		}
		if len(ours) == 0 {
			return nil
		}
		slices.Reverse(ours)
		for _, path := range ours {
			_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
	return fmt.Errorf("unmount everything under %s: some mounts stay", c.Dir)
}

// removeLogLinks removes the links in /var/log/containers, a path that is fixed in the kubelet.
func (c *Cluster) removeLogLinks() error {
	const dir = "/var/log/containers"
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(target, c.Dir+"/") {
			_ = os.Remove(dir + "/" + e.Name())
		}
	}
	_ = os.Remove(dir) // only if it is empty
	return err
}

// cniResultsDir is where CNI stores its results for each pod, a path that is fixed in containerd.
const cniResultsDir = "/var/lib/cni/results"

func (c *Cluster) removeCNIResults() error {
	ours, err := filepath.Glob(cniResultsDir + "/" + c.NodeName + "-*-eth0")
	if err != nil {
		return err
	}
	for _, path := range ours {
		sandbox := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), c.NodeName+"-"), "-eth0")
		_ = os.Remove(cniResultsDir + "/cni-loopback-" + sandbox + "-lo")
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove what CNI kept: %w", err)
		}
	}
	return nil
}
