package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/redact"
)

// The maximum number of bytes that are read from one file in /proc.
const (
	maxCmdlineBytes  = 64 << 10
	maxEnvironBytes  = 256 << 10
	maxProcFileBytes = 64 << 10
)

// splitLines splits a file in /proc into lines and fields.
func splitLines(b []byte) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(string(b)) {
			if !yield(strings.Fields(line)) {
				return
			}
		}
	}
}

func readLimited(path string, limit int64) ([]byte, bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if int64(len(b)) > limit {
		return b[:limit], true, err
	}
	return b, false, err
}

func procDir(pid int) string { return "/proc/" + strconv.Itoa(pid) }

// readProcess reads one process. It returns an error only if the status of the process cannot be read, and records
// everything else that cannot be read in Missing.
func (k *collector) readProcess(pid int) (Process, error) {
	p := Process{PID: pid}
	dir := procDir(pid)
	status, _, err := readLimited(dir+"/status", maxProcFileBytes)
	if errors.Is(err, unix.ESRCH) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return p, err
	}
	p.parseStatus(status)
	if p.StartedAt, err = k.readStartTime(dir); err != nil {
		k.addMissing("process %d: start time: %v", pid, err)
	}
	if b, cut, err := k.readProcFile(dir+"/cmdline", maxCmdlineBytes); errors.Is(err, errReadStuck) ||
		errors.Is(err, errTooManyStuckReads) {
		k.addMissing("process %d: arguments: %v", pid, err)
	} else if err == nil && len(b) > 0 {
		p.Args = redact.Args(strings.Split(strings.ToValidUTF8(strings.TrimSuffix(string(b), "\x00"), "\uFFFD"), "\x00"))
		if cut {
			k.addMissing("process %d: arguments after the first %d bytes", pid, maxCmdlineBytes)
		}
	}
	if b, cut, err := k.readProcFile(dir+"/environ", maxEnvironBytes); err != nil {
		k.addMissing("process %d: environment names: %v", pid, err)
	} else {
		p.EnvNames = redact.EnvNames(strings.Split(strings.ToValidUTF8(string(b), "\uFFFD"), "\x00"))
		if cut {
			k.addMissing("process %d: environment after the first %d bytes", pid, maxEnvironBytes)
		}
	}
	if b, _, err := readLimited(dir+"/cgroup", maxProcFileBytes); err == nil {
		for line := range strings.Lines(string(b)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				p.Cgroup = path
			}
		}
	}
	p.Cwd, _ = os.Readlink(dir + "/cwd")
	p.readExe(dir)
	k.readOpenFiles(&p, dir)
	return p, nil
}

func (p *Process) parseStatus(b []byte) {
	for f := range splitLines(b) {
		if len(f) < 2 {
			continue
		}
		number := func(s string) int {
			n, _ := strconv.Atoi(s) // the kernel always writes numbers
			return n
		}
		switch f[0] {
		case "Name:":
			p.Name = strings.ToValidUTF8(f[1], "\uFFFD")
		case "State:":
			p.State = f[1]
		case "PPid:":
			p.PPID = number(f[1])
		case "NSpid:":
			p.NSPID = number(f[len(f)-1])
		case "Uid:":
			p.UID = number(f[1])
		case "Gid:":
			p.GID = number(f[1])
		case "Threads:":
			p.Threads = number(f[1])
		case "CapEff:":
			p.Capabilities = f[1]
		}
	}
}

// readStartTime returns when a process started: field 22 of stat, in hundredths of a second since boot.
func (k *collector) readStartTime(dir string) (time.Time, error) {
	b, _, err := readLimited(dir+"/stat", maxProcFileBytes)
	if err != nil {
		return time.Time{}, err
	}
	// The name in parentheses may contain spaces and parentheses, so the last parenthesis ends it.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return time.Time{}, fmt.Errorf("%d fields in stat", len(f))
	}
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	return k.bootTime.Add(time.Duration(ticks) * 10 * time.Millisecond), nil
}

// readExe reads the link to the executable and what it says about the file.
func (p *Process) readExe(dir string) {
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return // a kernel thread or a zombie
	}
	if name, ok := strings.CutPrefix(exe, "/memfd:"); ok {
		p.ExeIsMemfd = true
		p.Exe = "memfd:" + strings.TrimSuffix(name, " (deleted)")
		return
	}
	p.Exe, p.ExeDeleted = strings.CutSuffix(exe, " (deleted)")
}

// readOpenFiles lists the open files of a process, and records which sockets it has open.
func (k *collector) readOpenFiles(p *Process, dir string) {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		k.addMissing("process %d: open files: %v", p.PID, err)
		return
	}
	left := 0
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		to, err := os.Readlink(dir + "/fd/" + e.Name())
		if err != nil {
			continue // closed in the meantime
		}
		if inode, ok := socketInode(to); ok && !slices.Contains(k.pidsBySocket[inode], p.PID) {
			k.pidsBySocket[inode] = append(k.pidsBySocket[inode], p.PID)
		}
		if len(p.OpenFiles) >= k.limits.MaxFilesPerProcess {
			left++
			continue
		}
		p.OpenFiles = append(p.OpenFiles, OpenFile{FD: fd, Target: redact.Text(strings.ToValidUTF8(to, "\uFFFD"))})
	}
	slices.SortFunc(p.OpenFiles, func(a, b OpenFile) int { return a.FD - b.FD })
	if left > 0 {
		k.addMissing("process %d: %d of %d open files: more than the limit", p.PID, left, left+len(p.OpenFiles))
	}
}

func socketInode(target string) (uint64, bool) {
	s, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64)
	return n, err == nil
}
