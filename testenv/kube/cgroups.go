package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupMounts returns the mount points of cgroups: every v1 controller and v2, as far as this machine has them.
func cgroupMounts() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 3 && (f[2] == "cgroup" || f[2] == "cgroup2") && strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			found = append(found, f[1])
		}
	}
	return found, nil
}

// makeCgroups creates the lab's root cgroup in every hierarchy, because the kubelet requires it.
func makeCgroups(root string) error {
	all, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := os.MkdirAll(h+root, 0o755); err != nil {
			return fmt.Errorf("make the lab's cgroup: %w", err)
		}
		// A v1 cpuset without CPUs and memory nodes accepts no process.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if own, err := os.ReadFile(h + root + "/" + name); err == nil && strings.TrimSpace(string(own)) == "" {
				if above, err := os.ReadFile(h + "/" + name); err == nil {
					_ = os.WriteFile(h+root+"/"+name, above, 0o644)
				}
			}
		}
	}
	return nil
}

// killCgroups kills every process in the lab's cgroups, which contain only its containers.
func killCgroups(root string) error {
	all, err := cgroupMounts()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := 0
		for _, h := range all {
			_ = filepath.WalkDir(h+root, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.IsDir() {
					return nil
				}
				// A frozen process does not die.
				_ = os.WriteFile(path+"/freezer.state", []byte("THAWED"), 0o644)
				_ = os.WriteFile(path+"/cgroup.freeze", []byte("0"), 0o644)
				procs, _ := os.ReadFile(path + "/cgroup.procs")
				for field := range strings.FieldsSeq(string(procs)) {
					left++
					killPID(field)
				}
				return nil
			})
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill the lab's containers: %d processes are left in %s", left, root)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// removeCgroups removes the lab's empty cgroups, deepest first.
func removeCgroups(root string) error {
	all, err := cgroupMounts()
	if err != nil {
		return err
	}
	var failed []error
	for _, h := range all {
		var dirs []string
		_ = filepath.WalkDir(h+root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, dir := range dirs {
			// A process that was just killed can keep its cgroup busy for a moment.
			err := os.Remove(dir)
			for range 100 {
				if err == nil || os.IsNotExist(err) {
					err = nil
					break
				}
				time.Sleep(10 * time.Millisecond)
				err = os.Remove(dir)
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("remove the lab's cgroup: %w", err))
			}
		}
	}
	return errors.Join(failed...)
}
