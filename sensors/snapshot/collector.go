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

// withDefaults fills in the bounds that were left open.
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

// collector is one snapshot under way.
type collector struct {
	limits      Limits
	snapshot    Snapshot
	executables []ExecutableCopy
	copiedBytes int64
	// pidsBySocket says which processes have a socket's inode open.
	pidsBySocket map[uint64][]int
	// hashCache remembers executables by device and inode: many processes run one.
	hashCache  map[fileID]executableHash
	bootTime   time.Time
	stuckReads int // reads that were given up
}

// Take takes a snapshot. It returns what it got with whatever error ended it; only a target that does not exist gives
// nothing. A context that ends gives a partial snapshot that says so, and no error.
func Take(ctx context.Context, t Target, lim Limits) (Snapshot, []ExecutableCopy, error) {
	lim = lim.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, lim.Timeout)
	defer cancel()
	start := time.Now()
	k := &collector{
		limits: lim, pidsBySocket: map[uint64][]int{}, hashCache: map[fileID]executableHash{}, bootTime: bootTime(),
		snapshot: Snapshot{Version: 1, TakenAt: start.UTC(), Cgroups: t.CgroupDirs, Processes: []Process{}, Sockets: []Socket{}},
	}
	pids, err := listPIDs(t.CgroupDirs)
	if err != nil {
		return Snapshot{}, nil, err
	}
	if len(pids) > lim.MaxProcesses {
		k.addMissing("%d of %d processes: more than the limit", len(pids)-lim.MaxProcesses, len(pids))
		pids = pids[:lim.MaxProcesses]
	}

	// The cheap and most volatile part of every process first, the large copies last.
	for i, pid := range pids {
		if ctx.Err() != nil {
			k.addMissing("%d of %d processes: out of time", len(pids)-i, len(pids))
			break
		}
		p, err := k.readProcess(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k.addMissing("process %d: ended while the snapshot was taken", pid)
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
		return nil, errors.New("snapshot: no cgroup given")
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
		return nil, fmt.Errorf("snapshot: %w", errors.Join(errs...))
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// maxMissingNotes bounds the sentences about what is missing: an attacker may fork faster than we look.
const maxMissingNotes = 100

func (k *collector) addMissing(format string, args ...any) {
	switch n := len(k.snapshot.Missing); {
	case n < maxMissingNotes:
		k.snapshot.Missing = append(k.snapshot.Missing, fmt.Sprintf(format, args...))
	case n == maxMissingNotes:
		k.snapshot.Missing = append(k.snapshot.Missing, "more that is not listed")
	}
}

// bootTime is the wall clock's time when the machine started.
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
