package containermeta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FindCgroupRoot returns the mount point of the cgroup v2 root: /sys/fs/cgroup, or /sys/fs/cgroup/unified next to
// cgroup v1. In a pod it is the mount point of the host path /sys/fs/cgroup. It returns an error if the root is not
// mounted.
func FindCgroupRoot() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	if root := parseCgroupRoot(string(b)); root != "" {
		return root, nil
	}
	return "", errors.New(
		"find cgroup v2: its root is not mounted; mount -t cgroup2 none /sys/fs/cgroup, or in a pod mount the host path /sys/fs/cgroup",
	)
}

// parseCgroupRoot returns the mount that shows most of the hierarchy. In a cgroup namespace, "/" is the cgroup of the
// namespace, and the real root is as many levels up as the namespace is deep: "/../../..".
func parseCgroupRoot(mountinfo string) string {
	best, steps := "", -1
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if !ok || len(f) < 5 || !strings.HasPrefix(right, "cgroup2 ") {
			continue
		}
		if up := strings.Count(f[3], ".."); strings.Trim(f[3], "/.") == "" && up > steps {
			best, steps = f[4], up
		}
	}
	return best
}

// CgroupID returns the ID of a cgroup: the inode of its absolute v2 directory.
func CgroupID(cgroupDir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(cgroupDir, &st); err != nil {
		return 0, fmt.Errorf("read the ID of cgroup %s: %w", cgroupDir, err)
	}
	return st.Ino, nil
}

// fileHandleTypeKernfs is the type of a file handle that contains a kernfs ID (FILEID_KERNFS).
const fileHandleTypeKernfs = 0xfe

// CgroupPathByID returns the path of a cgroup, below root and with a leading slash. It asks the kernel to open the ID,
// which takes microseconds. If that is not allowed, it searches the tree. It returns ErrNotFound if there is no such
// cgroup.
func CgroupPathByID(root string, id uint64) (string, error) {
	dir, err := os.Open(root)
	if err != nil {
		return "", fmt.Errorf("find the path of cgroup %d: %w", id, err)
	}
	defer dir.Close()
	var handle [8]byte
	binary.NativeEndian.PutUint64(handle[:], id)
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), unix.NewFileHandle(fileHandleTypeKernfs, handle[:]),
		unix.O_RDONLY|unix.O_CLOEXEC)
	switch {
	case err == nil:
		defer unix.Close(fd)
		full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			return "", fmt.Errorf("find the path of cgroup %d: %w", id, err)
		}
		if strings.HasSuffix(full, " (deleted)") {
			return "", fmt.Errorf("inspect cgroup %d: %w", id, ErrNotFound)
		}
		return pathBelow(root, full), nil
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("inspect cgroup %d: %w", id, ErrNotFound)
	}
	found := ""
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // a cgroup that is removed during the search is not the one
		}
		if got, err := CgroupID(p); err == nil && got == id {
			found = p
			return fs.SkipAll
		}
		return nil
	})
	if err != nil || found == "" {
		return "", fmt.Errorf("inspect cgroup %d: %w", id, ErrNotFound)
	}
	return pathBelow(root, found), nil
}

func pathBelow(root, full string) string {
	rest := strings.TrimPrefix(full, strings.TrimRight(root, "/"))
	if rest == "" {
		return "/"
	}
	return rest
}

// ProcessCgroupPath returns the path of a process's cgroup, below root and with a leading slash, and whether it was
// found. It searches the tree, for callers in a cgroup namespace, to which /proc shows only relative paths.
func ProcessCgroupPath(root string, pid int) (string, bool) {
	found := ""
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // removed during the search
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil // a threaded cgroup, or removed
		}
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(line) == strconv.Itoa(pid) {
				found = p
				return fs.SkipAll
			}
		}
		return nil
	})
	if err != nil || found == "" {
		return "", false
	}
	return pathBelow(root, found), true
}

// maxListedPIDs limits the number of listed processes of a cgroup.
const maxListedPIDs = 65536

// ListPIDs returns the processes in a cgroup (absolute v2 directory) and below it, about 65,536 at most. It returns an
// error if the directory does not exist.
func ListPIDs(cgroupDir string) ([]int, error) {
	if _, err := os.Stat(cgroupDir); err != nil {
		return nil, fmt.Errorf("list the processes in the cgroup: %w", err)
	}
	var pids []int
	err := filepath.WalkDir(cgroupDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil // removed, or a threaded cgroup whose domain lists its processes
		}
		for line := range strings.Lines(string(b)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		if len(pids) > maxListedPIDs {
			return fs.SkipAll
		}
		return nil
	})
	return pids, err
}
