// Package snapshot captures the volatile state of a container or pod: its processes, sockets, open files, and
// executables that are not part of an image. It also freezes and thaws cgroups.
//
// It refuses to stop a process for long, to run anything in the container, and to reveal secrets: values of
// environment variables never reach a result, and arguments are redacted (package redact). Everything is bounded, and
// Missing lists what was left out.
package snapshot

import "time"

// Target is what a snapshot captures.
type Target struct {
	// CgroupDirs are absolute paths of cgroup v2 directories. The cgroups below them are included.
	CgroupDirs []string
}

// Limits are the limits of a snapshot. A zero field means the default in its comment.
type Limits struct {
	MaxProcesses       int   // default 512
	MaxFilesPerProcess int   // open files per process; default 256
	MaxSockets         int   // default 2048
	MaxExecutableBytes int64 // of one executable; default 32 MiB
	MaxTotalBytes      int64 // of all executables; default 64 MiB
	MaxHashBytes       int64 // larger executables are not hashed; default 256 MiB
	// MaxImageHashBytes is the same limit for executables that are part of the image; default 16 MiB. It is lower
	// because the containment waits for the snapshot.
	MaxImageHashBytes int64
	Timeout           time.Duration // total; default 8 s; an earlier deadline of the context applies too
}

// Snapshot is the captured state of a target. Its JSON is stable.
type Snapshot struct {
	Version   int           `json:"version"` // 1
	TakenAt   time.Time     `json:"taken_at"`
	Duration  time.Duration `json:"duration_ns"`
	Cgroups   []string      `json:"cgroups"`
	Processes []Process     `json:"processes"`
	Sockets   []Socket      `json:"sockets"`
	// Missing lists what could not be captured and why, one sentence each. It is empty if the snapshot is complete.
	Missing []string `json:"missing,omitempty"`
	// Executables describes the copied executables, with the hashes that were computed on the node.
	Executables []ExecutableCopy `json:"executables,omitempty"`
}

// Process is one process of the target.
type Process struct {
	PID             int    `json:"pid"` // on the host
	NSPID           int    `json:"ns_pid,omitempty"`
	PPID            int    `json:"ppid"`
	Name            string `json:"name"`
	Exe             string `json:"exe,omitempty"`
	ExeDeleted      bool   `json:"exe_deleted,omitempty"`
	ExeIsMemfd      bool   `json:"memfd,omitempty"`
	ExeInUpperLayer bool   `json:"upper_layer,omitempty"`
	ExeSHA256       string `json:"sha256,omitempty"` // of the complete executable
	// HashSkipped says why an executable was not hashed although it could have been.
	HashSkipped string   `json:"hash_skipped,omitempty"`
	Args        []string `json:"args,omitempty"` // redacted
	EnvNames    []string `json:"env,omitempty"`  // names only
	Cwd         string   `json:"cwd,omitempty"`
	UID         int      `json:"uid"`
	GID         int      `json:"gid"`
	// Capabilities is the effective capability set as a hexadecimal mask.
	Capabilities string     `json:"capabilities,omitempty"`
	StartedAt    time.Time  `json:"started,omitzero"`
	State        string     `json:"state,omitempty"`
	Threads      int        `json:"threads,omitempty"`
	OpenFiles    []OpenFile `json:"files,omitempty"`
	Cgroup       string     `json:"cgroup,omitempty"`
}

// OpenFile is an open file of a process.
type OpenFile struct {
	FD     int    `json:"fd"`
	Target string `json:"target"`
}

// Socket is an open network socket with the processes that have it open.
type Socket struct {
	Protocol string `json:"protocol"` // "tcp", "udp" or "raw", with "6" for IPv6; "packet"; "unix"
	Local    string `json:"local,omitempty"`
	Remote   string `json:"remote,omitempty"`
	State    string `json:"state,omitempty"`
	Inode    uint64 `json:"inode"`
	PIDs     []int  `json:"pids,omitempty"`
}

// ExecutableCopy is a copy of an executable that is not part of the image.
type ExecutableCopy struct {
	Name          string `json:"name"`           // "exe-<first 16 digits of the executable's SHA-256>"
	ContainerPath string `json:"container_path"` // the path in the container
	Reason        string `json:"reason"`         // "upper layer", "memfd", "deleted"
	SHA256        string `json:"sha256"`         // of Data
	FileSize      int64  `json:"size"`           // size of the file; Data may be shorter
	Data          []byte `json:"-"`
}
