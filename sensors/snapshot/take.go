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

	"stanch/sensors/identity"
)

// defaults fills in the bounds that were left open.
func (l Limits) defaults() Limits {
	l.Processes = cmp.Or(l.Processes, 512)
	l.Files = cmp.Or(l.Files, 256)
	l.Sockets = cmp.Or(l.Sockets, 2048)
	l.BlobBytes = cmp.Or(l.BlobBytes, 32<<20)
	l.TotalBytes = cmp.Or(l.TotalBytes, 64<<20)
	l.HashBytes = cmp.Or(l.HashBytes, 256<<20)
	l.ImageHashBytes = cmp.Or(l.ImageHashBytes, 16<<20)
	l.Time = cmp.Or(l.Time, 8*time.Second)
	return l
}

// taking is one snapshot under way.
type taking struct {
	lim   Limits
	snap  Snapshot
	blobs []Blob
	total int64
	// holders says which processes have a socket's inode open.
	holders map[uint64][]int
	// hashes remembers executables by device and inode: many processes run one.
	hashes map[fileID]hashed
	boot   time.Time
	stuck  int // reads that were given up
}

// Take takes a snapshot. It returns what it got with whatever error ended it; only a target that does not exist gives
// nothing. A context that ends gives a partial snapshot that says so, and no error.
func Take(ctx context.Context, t Target, lim Limits) (Snapshot, []Blob, error) {
	lim = lim.defaults()
	ctx, cancel := context.WithTimeout(ctx, lim.Time)
	defer cancel()
	start := time.Now()
	k := &taking{
		lim: lim, holders: map[uint64][]int{}, hashes: map[fileID]hashed{}, boot: bootTime(),
		snap: Snapshot{Version: 1, Taken: start.UTC(), Cgroups: t.CgroupDirs, Processes: []Process{}, Sockets: []Socket{}},
	}
	pids, err := pidsOf(t.CgroupDirs)
	if err != nil {
		return Snapshot{}, nil, err
	}
	if len(pids) > lim.Processes {
		k.missing("%d of %d processes: more than the limit", len(pids)-lim.Processes, len(pids))
		pids = pids[:lim.Processes]
	}

	// The cheap and most volatile part of every process first, the large copies last.
	for i, pid := range pids {
		if ctx.Err() != nil {
			k.missing("%d of %d processes: out of time", len(pids)-i, len(pids))
			break
		}
		p, err := k.process(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k.missing("process %d: ended while the snapshot was taken", pid)
		case err != nil:
			k.missing("process %d: %v", pid, err)
		default:
			k.snap.Processes = append(k.snap.Processes, p)
		}
	}
	k.sockets(ctx)
	k.executables(ctx)
	k.snap.Took = time.Since(start)
	k.snap.Blobs = k.blobs
	return k.snap, k.blobs, nil
}

func pidsOf(dirs []string) ([]int, error) {
	if len(dirs) == 0 {
		return nil, errors.New("snapshot: no cgroup given")
	}
	var pids []int
	var errs []error
	for _, dir := range dirs {
		got, err := identity.PIDs(dir)
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

// maxMissing bounds the sentences about what is missing: an attacker may fork faster than we look.
const maxMissing = 100

func (k *taking) missing(format string, args ...any) {
	switch n := len(k.snap.Missing); {
	case n < maxMissing:
		k.snap.Missing = append(k.snap.Missing, fmt.Sprintf(format, args...))
	case n == maxMissing:
		k.snap.Missing = append(k.snap.Missing, "more that is not listed")
	}
}

// bootTime is the wall clock's time when the machine started.
func bootTime() time.Time {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range lines(b) {
		if len(line) == 2 && line[0] == "btime" {
			if s, err := strconv.ParseInt(line[1], 10, 64); err == nil {
				return time.Unix(s, 0).UTC()
			}
		}
	}
	return time.Time{}
}
