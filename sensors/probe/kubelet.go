package probe

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
)

// kubeletProgramNames are the names of executables that are or contain a kubelet.
var kubeletProgramNames = map[string]bool{
	"kubelet":  true,
	"k3s":      true,
	"kubelite": true, // MicroK8s
}

// maxTrustedKubelets is the maximum number of trusted kubelets. A node has one; tests may have two.
const maxTrustedKubelets = 16

// FindKubelets returns the cgroups of this node's kubelets. It recognizes a kubelet only by facts that root of the
// node controls: the process runs as root, in the node's network, PID and user namespaces, outside of every pod's
// cgroup. Its executable is owned by root, is not writable by others, and has a known name, or its first argument is
// "kubelet" (for a multi-call binary). program is the path of an executable with another name, or empty. If no kubelet
// is found, the result is empty and the error is nil.
func FindKubelets(program string) ([]Prober, error) {
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return nil, fmt.Errorf("find the kubelet: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("find the kubelet: %w", err)
	}
	var found []Prober
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		id, ok := kubeletCgroup(root, pid, program)
		p := Prober{Cgroup: id}
		if !ok || slices.Contains(found, p) {
			continue
		}
		if found = append(found, p); len(found) == maxTrustedKubelets {
			break
		}
	}
	return found, nil
}

// kubeletCgroup returns the cgroup ID of a process if the process is a kubelet. Until the process is known to belong
// to the node, it reads only files that cannot block.
func kubeletCgroup(root string, pid int, program string) (uint64, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return 0, false
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // replaced by an upgrade
	named := exe == program || kubeletProgramNames[path.Base(exe)]
	if !hasOnlyRootUIDs(dir) || !inSameNamespace(dir, "net", "thread-self") || !inSameNamespace(dir, "pid", "1") ||
		!inSameNamespace(dir, "user", "1") {
		return 0, false
	}
	id, at, ok := processCgroup(root, pid)
	if !ok || at.PodUID != "" || !named && (at.ContainerID != "" || !hasKubeletName(dir)) {
		return 0, false
	}
	// AT_STATX_DONT_SYNC returns what the kernel has cached: the file system of the executable may never respond.
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, dir+"/exe", unix.AT_STATX_DONT_SYNC, unix.STATX_UID|unix.STATX_MODE, &st)
	return id, err == nil && st.Uid == 0 && st.Mode&0o022 == 0
}

// inSameNamespace reports whether a process is in the same namespace as the process of. If the namespace of that
// process cannot be read, it compares with this process.
func inSameNamespace(dir, namespace, of string) bool {
	theirs, err := os.Stat(dir + "/ns/" + namespace)
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/" + of + "/ns/" + namespace)
	if err != nil {
		ours, err = os.Stat("/proc/self/ns/" + namespace)
	}
	return err == nil && os.SameFile(theirs, ours)
}

// hasOnlyRootUIDs reports whether all user IDs of a process are root. A process that got its rights from a setuid
// executable does not qualify.
func hasOnlyRootUIDs(dir string) bool {
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			return slices.Equal(strings.Fields(ids), []string{"0", "0", "0", "0"})
		}
	}
	return false
}

func hasKubeletName(dir string) bool {
	f, err := os.Open(dir + "/cmdline")
	if err != nil {
		return false
	}
	defer f.Close()
	line := make([]byte, 4096)
	n, err := f.Read(line)
	if err != nil {
		return false
	}
	args := bytes.SplitN(line[:n], []byte{0}, 3)
	return len(args) > 1 && string(args[1]) == "kubelet"
}

// processCgroup returns the ID of a process's cgroup, and its parsed path.
func processCgroup(root string, pid int) (id uint64, at containermeta.CgroupPath, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return 0, at, false
	}
	for line := range strings.Lines(string(b)) {
		path, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !v2 {
			continue
		}
		if strings.HasPrefix(path, "/..") {
			// The path is relative to this process's cgroup namespace; find the process in the cgroup tree instead.
			if path, ok = containermeta.ProcessCgroupPath(root, pid); !ok {
				return 0, at, false
			}
		}
		id, err := containermeta.CgroupID(filepath.Join(root, path))
		return id, containermeta.ParseCgroupPath(path), err == nil
	}
	return 0, at, false
}
