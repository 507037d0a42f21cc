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

// FindCgroupRoot finds where the root of cgroup v2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside v1. In a
// pod it is where the node's /sys/fs/cgroup was mounted as a host path.
func FindCgroupRoot() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	if root := parseCgroupRoot(string(b)); root != "" {
		return root, nil
	}
	return "", errors.New("find cgroup v2: its root is not mounted; mount -t cgroup2 none /sys/fs/cgroup, or in a pod mount the host path /sys/fs/cgroup")
}

// parseCgroupRoot finds the mount that shows the most of the hierarchy. In a cgroup namespace of one's own "/" is merely one's
// own cgroup, and the true root is as many steps up as one is deep: "/../../..".
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

// CgroupID gives the id of a cgroup (absolute path of its v2 directory): its inode.
func CgroupID(cgroupDir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(cgroupDir, &st); err != nil {
		return 0, fmt.Errorf("id of cgroup %s: %w", cgroupDir, err)
	}
	return st.Ino, nil
}

// fileHandleTypeKernfs is the kernel's type of a file handle that holds nothing but a kernfs id.
const fileHandleTypeKernfs = 0xfe

// CgroupPathByID finds the path of a cgroup, below root and with a leading slash, by its id. It asks the kernel to open the
// id, which takes microseconds; where that is not allowed it walks the tree.
func CgroupPathByID(root string, id uint64) (string, error) {
	dir, err := os.Open(root)
	if err != nil {
		return "", fmt.Errorf("path of cgroup %d: %w", id, err)
	}
	defer dir.Close()
	var handle [8]byte
	binary.NativeEndian.PutUint64(handle[:], id)
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), unix.NewFileHandle(fileHandleTypeKernfs, handle[:]), unix.O_RDONLY|unix.O_CLOEXEC)
	switch {
	case err == nil:
		defer unix.Close(fd)
		full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			return "", fmt.Errorf("path of cgroup %d: %w", id, err)
		}
		if strings.HasSuffix(full, " (deleted)") {
			return "", fmt.Errorf("cgroup %d: %w", id, ErrNotFound)
		}
		return pathBelow(root, full), nil
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("cgroup %d: %w", id, ErrNotFound)
	}
	found := ""
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // a cgroup that went away under the walk is not the one
		}
		if got, err := CgroupID(p); err == nil && got == id {
			found = p
			return fs.SkipAll
		}
		return nil
	})
	if err != nil || found == "" {
		return "", fmt.Errorf("cgroup %d: %w", id, ErrNotFound)
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

// ProcessCgroupPath finds the path of the cgroup that a process is in, below root and with a leading slash, by walking the
// tree. It is for callers in a cgroup namespace of their own, to whom /proc shows only the way from there.
func ProcessCgroupPath(root string, pid int) (string, bool) {
	found := ""
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // gone under the walk
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil // a threaded cgroup, or gone
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

// maxListedPIDs bounds how many processes of a cgroup are listed.
const maxListedPIDs = 65536

// ListPIDs lists the processes in a cgroup (absolute path of its v2 directory) and all below it.
func ListPIDs(cgroupDir string) ([]int, error) {
	if _, err := os.Stat(cgroupDir); err != nil {
		return nil, fmt.Errorf("processes of cgroup: %w", err)
	}
	var pids []int
	err := filepath.WalkDir(cgroupDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil // gone, or a threaded cgroup whose processes its domain lists
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
