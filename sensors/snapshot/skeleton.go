// Package snapshot takes what is volatile of a container or pod: its processes, sockets, open files and the
// executables that are in no image. It also freezes and thaws cgroups.
//
// It refuses to stop anything for long, to run anything in the container, and to let a secret out: values of
// environments are never read into a result, arguments are redacted (package redact). Everything is bounded; what did
// not fit is said in Missing, never silently left out.
package snapshot

import (
	"context"
	"errors"
	"time"
)

// Target is what to take.
type Target struct {
	// CgroupDirs are absolute paths of cgroup v2 directories; everything below them is taken too.
	CgroupDirs []string
}

// Limits bounds a snapshot. Zero fields have the defaults named.
type Limits struct {
	Processes  int           // 512
	Files      int           // open files per process: 256
	Sockets    int           // 2048
	BlobBytes  int64         // one executable: 32 MiB
	TotalBytes int64         // all executables: 64 MiB
	HashBytes  int64         // executables larger than this are not hashed: 256 MiB
	Time       time.Duration // in all: 8s; the context's deadline counts too
}

// Snapshot is what was there. Its JSON is stable.
type Snapshot struct {
	Version   int           `json:"version"` // 1
	Taken     time.Time     `json:"taken"`
	Took      time.Duration `json:"took_ns"`
	Cgroups   []string      `json:"cgroups"`
	Processes []Process     `json:"processes"`
	Sockets   []Socket      `json:"sockets"`
	// Missing says, sentence by sentence, what could not be taken and why. Empty: complete.
	Missing []string `json:"missing,omitempty"`
}

// Process is one process of the target.
type Process struct {
	PID     int      `json:"pid"` // on the host
	NSPID   int      `json:"ns_pid,omitempty"`
	PPID    int      `json:"ppid"`
	Name    string   `json:"name"`
	Exe     string   `json:"exe,omitempty"`
	Deleted bool     `json:"deleted,omitempty"`
	Memfd   bool     `json:"memfd,omitempty"`
	Upper   bool     `json:"upper_layer,omitempty"`
	SHA256  string   `json:"sha256,omitempty"` // of the executable
	Args    []string `json:"args,omitempty"`   // redacted
	Env     []string `json:"env,omitempty"`    // names only
	Cwd     string   `json:"cwd,omitempty"`
	UID     int      `json:"uid"`
	GID     int      `json:"gid"`
	// Capabilities is the effective set as a hexadecimal mask.
	Capabilities string    `json:"capabilities,omitempty"`
	Started      time.Time `json:"started,omitzero"`
	State        string    `json:"state,omitempty"`
	Threads      int       `json:"threads,omitempty"`
	Files        []File    `json:"files,omitempty"`
	Cgroup       string    `json:"cgroup,omitempty"`
}

// File is an open file of a process.
type File struct {
	FD     int    `json:"fd"`
	Target string `json:"target"`
}

// Socket is an open network socket and who has it open.
type Socket struct {
	Protocol string `json:"protocol"` // "tcp", "udp", "raw", with "6" for v6; "packet"; "unix"
	Local    string `json:"local,omitempty"`
	Remote   string `json:"remote,omitempty"`
	State    string `json:"state,omitempty"`
	Inode    uint64 `json:"inode"`
	PIDs     []int  `json:"pids,omitempty"`
}

// Blob is a copy of an executable that is not in the image.
type Blob struct {
	Name   string `json:"name"`   // "exe-<first 16 of sha256>"
	Source string `json:"source"` // the path in the container
	Why    string `json:"why"`    // "upper layer", "memfd", "deleted"
	SHA256 string `json:"sha256"` // of Data
	Size   int64  `json:"size"`   // of the file; Data may be shorter
	Data   []byte `json:"-"`
}

// Take takes a snapshot. It returns what it got with whatever error ended it; only a target that does not exist gives
// nothing. A context that ends gives a partial snapshot that says so, and no error.
func Take(ctx context.Context, t Target, lim Limits) (Snapshot, []Blob, error) {
	return Snapshot{}, nil, errors.New("not yet")
}

// Freeze stops every process of a cgroup (absolute path of its v2 directory) and waits until they stand still.
// Freezing is for seconds: probes of a frozen pod fail and the kubelet kills it.
func Freeze(ctx context.Context, cgroupDir string) error { return errors.New("not yet") }

// Thaw lets them go on. Thawing what is not frozen, or is gone, is no error.
func Thaw(ctx context.Context, cgroupDir string) error { return errors.New("not yet") }

// FreezeState is how a cgroup stands.
type FreezeState struct {
	Asked  bool `json:"asked"`  // cgroup.freeze is 1
	Frozen bool `json:"frozen"` // the kernel says that all stand still
}

// Frozen reads how a cgroup stands.
func Frozen(cgroupDir string) (FreezeState, error) { return FreezeState{}, errors.New("not yet") }

// Freezer freezes with an end: it thaws by itself. Close thaws everything. A sensor that is killed leaves cgroups
// frozen, so its next start calls Sweep.
type Freezer struct{}

// NewFreezer keeps its list of what is frozen until when in a file under stateDir, so that Sweep knows.
func NewFreezer(stateDir string) (*Freezer, error) { return nil, errors.New("not yet") }

// Freeze freezes for a lease until the given time. Again with the same lease moves the end.
func (f *Freezer) Freeze(ctx context.Context, lease, cgroupDir string, until time.Time) error {
	return errors.New("not yet")
}

// Thaw ends a lease's freeze now.
func (f *Freezer) Thaw(ctx context.Context, lease string) error { return errors.New("not yet") }

// Sweep thaws what an earlier process left frozen past its end and takes over the rest.
func (f *Freezer) Sweep(ctx context.Context) error { return errors.New("not yet") }

// Close thaws everything that it holds.
func (f *Freezer) Close() error { return nil }
