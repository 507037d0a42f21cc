package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"stanch/sensors/containermeta"
)

// withDefaults returns the limits with defaults for zero fields.
func (l Limits) withDefaults() Limits {
	l.MaxProcesses = cmp.Or(l.MaxProcesses, 512)
	l.MaxFilesPerProcess = cmp.Or(l.MaxFilesPerProcess, 256)
	l.MaxSockets = cmp.Or(l.MaxSockets, 2048)
	l.MaxExecutableBytes = cmp.Or(l.MaxExecutableBytes, 32<<20)
	l.MaxTotalBytes = cmp.Or(l.MaxTotalBytes, 64<<20)
	l.MaxHashBytes = cmp.Or(l.MaxHashBytes, 256<<20)
	l.MaxImageHashBytes = cmp.Or(l.MaxImageHashBytes, 16<<20)
	l.Timeout = cmp.Or(l.Timeout, 8*time.Second)
	return l
}

// collector collects one snapshot.
type collector struct {
	limits      Limits
	snapshot    Snapshot
	executables []ExecutableCopy
	copiedBytes int64
	// pidsBySocket maps the inode of a socket to the processes that have it open.
	pidsBySocket map[uint64][]int
	// hashCache caches hashes by device and inode, because many processes can run the same executable.
	hashCache  map[fileID]executableHash
	bootTime   time.Time
	stuckReads int // abandoned reads
}

// Take takes a snapshot of a target. It returns an error only if none of the target's cgroups can be read. If ctx ends
// or a limit is reached, the snapshot is partial, Missing says what is missing, and the error is nil.
func Take(ctx context.Context, t Target, lim Limits) (Snapshot, []ExecutableCopy, error) {
	lim = lim.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, lim.Timeout)
	defer cancel()
	start := time.Now()
	k := &collector{
		limits: lim, pidsBySocket: map[uint64][]int{}, hashCache: map[fileID]executableHash{}, bootTime: bootTime(),
		snapshot: Snapshot{
			Version: 1, TakenAt: start.UTC(), Cgroups: t.CgroupDirs, Processes: []Process{},
			Sockets: []Socket{},
		},
	}
	pids, err := listPIDs(t.CgroupDirs)
	if err != nil {
		return Snapshot{}, nil, err
	}
	if len(pids) > lim.MaxProcesses {
		k.addMissing("%d of %d processes: more than the limit", len(pids)-lim.MaxProcesses, len(pids))
		pids = pids[:lim.MaxProcesses]
	}

	// Read the small and most volatile data of every process first, and copy the large executables last.
	for i, pid := range pids {
		if ctx.Err() != nil {
			k.addMissing("%d of %d processes: timed out", len(pids)-i, len(pids))
			break
		}
		p, err := k.readProcess(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k.addMissing("process %d: exited while the snapshot was being taken", pid)
		case err != nil:
			k.addMissing("process %d: %v", pid, err)
		default:
			k.snapshot.Processes = append(k.snapshot.Processes, p)
		}
	}
	k.collectSockets(ctx)
	k.collectExecutables(ctx)
	k.snapshot.Duration = time.Since(start)
	k.snapshot.Executables = k.executables
	return k.snapshot, k.executables, nil
}

func listPIDs(dirs []string) ([]int, error) {
	if len(dirs) == 0 {
		return nil, errors.New("take a snapshot: missing cgroup")
	}
	var pids []int
	var errs []error
	for _, dir := range dirs {
		got, err := containermeta.ListPIDs(dir)
		if err != nil {
			errs = append(errs, err)
		}
		pids = append(pids, got...)
	}
	if len(errs) == len(dirs) {
		return nil, fmt.Errorf("take a snapshot: %w", errors.Join(errs...))
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// maxMissingNotes is the maximum length of Missing: an attacker may fork faster than the snapshot reads.
const maxMissingNotes = 100

func (k *collector) addMissing(format string, args ...any) {
	switch n := len(k.snapshot.Missing); {
	case n < maxMissingNotes:
		k.snapshot.Missing = append(k.snapshot.Missing, fmt.Sprintf(format, args...))
	case n == maxMissingNotes:
		k.snapshot.Missing = append(k.snapshot.Missing, "more missing items that are not listed")
	}
}

// bootTime returns the wall-clock time at boot, or the zero time if it cannot be read.
func bootTime() time.Time {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range splitLines(b) {
		if len(line) == 2 && line[0] == "btime" {
			if s, err := strconv.ParseInt(line[1], 10, 64); err == nil {
				return time.Unix(s, 0).UTC()
			}
		}
	}
	return time.Time{}
}
