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

// kubeletProgramNames are the names of programs that are a kubelet, or have one in them.
var kubeletProgramNames = map[string]bool{
	"kubelet":  true,
	"k3s":      true,
	"kubelite": true, // MicroK8s
}

// maxTrustedKubelets bounds how many are believed: a node has one, tests may have two.
const maxTrustedKubelets = 16

// FindKubelets finds the cgroups of this node's kubelets. A kubelet is known by what only root of the node decides: it
// runs as root, in the network, PID and user namespaces of the node, in no pod's cgroup, and its program is a root-owned
// file that nobody else can write, with a name in a list, or called with "kubelet" as its first argument (one program for
// many parts). program is the path of one with another name; empty: none. None found is no error.
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

// kubeletCgroup gives the cgroup of a process that is a kubelet. Nothing of a process is read that can make the reader
// wait before it is known to be the node's own.
func kubeletCgroup(root string, pid int, program string) (uint64, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return 0, false
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // replaced by an upgrade
	named := exe == program || kubeletProgramNames[path.Base(exe)]
	if !hasOnlyRootUIDs(dir) || !inSameNamespace(dir, "net", "thread-self") || !inSameNamespace(dir, "pid", "1") || !inSameNamespace(dir, "user", "1") {
		return 0, false
	}
	id, at, ok := processCgroup(root, pid)
	if !ok || at.PodUID != "" || !named && (at.ContainerID != "" || !hasKubeletName(dir)) {
		return 0, false
	}
	// As the kernel knows it: the file's own file system may never answer.
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, dir+"/exe", unix.AT_STATX_DONT_SYNC, unix.STATX_UID|unix.STATX_MODE, &st)
	return id, err == nil && st.Uid == 0 && st.Mode&0o022 == 0
}

// inSameNamespace reports whether a process is in a namespace of another one's: of this process's where that one's cannot be
// read.
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

// hasOnlyRootUIDs reports whether a process is root by all of its user ids: one that a set-uid program gave rights to is not.
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

// processCgroup gives the id of a process's cgroup, and what its path tells.
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
			// Told from a cgroup namespace of this process's own: the tree itself says where the process is.
			if path, ok = containermeta.ProcessCgroupPath(root, pid); !ok {
				return 0, at, false
			}
		}
		id, err := containermeta.CgroupID(filepath.Join(root, path))
		return id, containermeta.ParseCgroupPath(path), err == nil
	}
	return 0, at, false
}
