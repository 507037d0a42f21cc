// Package snapshot takes what is volatile of a container or pod: its processes, sockets, open files and the
// executables that are in no image. It also freezes and thaws cgroups.
//
// It refuses to stop anything for long, to run anything in the container, and to let a secret out: values of
// environments are never read into a result, arguments are redacted (package redact). Everything is bounded; what did
// not fit is said in Missing, never silently left out.
package snapshot

import "time"

// Target is what to take.
type Target struct {
	// CgroupDirs are absolute paths of cgroup v2 directories; everything below them is taken too.
	CgroupDirs []string
}

// Limits bounds a snapshot. Zero fields have the defaults named.
type Limits struct {
	MaxProcesses       int   // 512
	MaxFilesPerProcess int   // open files per process: 256
	MaxSockets         int   // 2048
	MaxExecutableBytes int64 // one executable: 32 MiB
	MaxTotalBytes      int64 // all executables: 64 MiB
	MaxHashBytes       int64 // executables larger than this are not hashed: 256 MiB
	// MaxImageHashBytes is the same for executables that are in the image: 16 MiB. Containment waits for the snapshot.
	MaxImageHashBytes int64
	Timeout           time.Duration // in all: 8s; the context's deadline counts too
}

// Snapshot is what was there. Its JSON is stable.
type Snapshot struct {
	Version   int           `json:"version"` // 1
	TakenAt   time.Time     `json:"taken_at"`
	Duration  time.Duration `json:"duration_ns"`
	Cgroups   []string      `json:"cgroups"`
	Processes []Process     `json:"processes"`
	Sockets   []Socket      `json:"sockets"`
	// Missing says, sentence by sentence, what could not be taken and why. Empty: complete.
	Missing []string `json:"missing,omitempty"`
	// Executables names the executables that were copied, with their hashes here at the source.
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
	ExeSHA256       string `json:"sha256,omitempty"` // of the executable
	// HashSkipped says why there is no hash of an executable that could have been hashed.
	HashSkipped string   `json:"hash_skipped,omitempty"`
	Args        []string `json:"args,omitempty"` // redacted
	EnvNames    []string `json:"env,omitempty"`  // names only
	Cwd         string   `json:"cwd,omitempty"`
	UID         int      `json:"uid"`
	GID         int      `json:"gid"`
	// Capabilities is the effective set as a hexadecimal mask.
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

// Socket is an open network socket and who has it open.
type Socket struct {
	Protocol string `json:"protocol"` // "tcp", "udp", "raw", with "6" for v6; "packet"; "unix"
	Local    string `json:"local,omitempty"`
	Remote   string `json:"remote,omitempty"`
	State    string `json:"state,omitempty"`
	Inode    uint64 `json:"inode"`
	PIDs     []int  `json:"pids,omitempty"`
}

// ExecutableCopy is a copy of an executable that is not in the image.
type ExecutableCopy struct {
	Name          string `json:"name"`           // "exe-<first 16 of sha256>"
	ContainerPath string `json:"container_path"` // the path in the container
	Reason        string `json:"reason"`         // "upper layer", "memfd", "deleted"
	SHA256        string `json:"sha256"`         // of Data
	FileSize      int64  `json:"size"`           // of the file; Data may be shorter
	Data          []byte `json:"-"`
}
