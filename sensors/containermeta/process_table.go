package containermeta

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"stanch/sensors"
)

// ProcessTable remembers the program of each process, so that an event can name its ancestors. It learns from events,
// and reads /proc once for older processes. When it is full, it forgets the least recently used process. It is safe
// for concurrent use.
type ProcessTable struct {
	mu           sync.Mutex
	byPID        *simplelru.LRU[uint32, *processInfo]
	procRoot     string
	pendingReads atomic.Int32 // command line reads in progress
}

type processInfo struct {
	name         string
	exe          string
	args         []string
	startTime    uint64 // 0 if no event of the process was seen
	executed     bool   // the process executed this program itself, instead of inheriting it from its parent
	euid         uint32 // as last seen
	capabilities uint64
	exited       bool // the PID may have been reused
}

// NewProcessTable returns a table for at most capacity processes (0 means 16384).
func NewProcessTable(capacity int) *ProcessTable {
	if capacity <= 0 {
		capacity = 16384
	}
	byPID, _ := simplelru.NewLRU[uint32, *processInfo](capacity, nil) // fails only without a capacity
	return &ProcessTable{byPID: byPID, procRoot: "/proc"}
}

// maxAncestorArgsBytes limits the command line of an ancestor, in bytes.
const maxAncestorArgsBytes = 512

// capSetuidMask is the bit of CAP_SETUID, which lets a process become any user.
const capSetuidMask = 1 << 7

// RecordEvent updates the table from an event. It also completes the event with facts that require history: whether
// the process has privileges that its origin neither had nor could acquire, and the command line that the process was
// started with (a process can overwrite its own).
func (t *ProcessTable) RecordEvent(e *sensors.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &e.Process
	before := t.lookup(p.PID, p.StartNS)
	if e.Kind == sensors.KindExit {
		if before != nil {
			before.exited = true
		}
		return
	}
	// The earlier state of the process itself counts: when a setuid program executes another program, the privileges
	// are not new.
	from := before
	if from == nil {
		// A process that exited is not the parent: its PID was reused.
		if from = t.lookupPID(p.PPID); from != nil && from.exited {
			from = nil
		}
	} else {
		p.PrivilegesGained = false
	}
	if p.EUID == 0 && (from != nil && from.euid != 0 && from.capabilities&capSetuidMask == 0 || p.HasSetIDBits &&
		p.UID != 0 && e.Kind == sensors.KindExec) {
		p.PrivilegesGained = true
	}
	switch {
	case e.Kind == sensors.KindExec || before == nil:
		t.byPID.Add(p.PID, &processInfo{
			name: p.Name, exe: p.Exe, args: limitArgs(p.Args), startTime: p.StartNS,
			executed: e.Kind == sensors.KindExec, euid: p.EUID, capabilities: p.Capabilities,
		})
	default:
		before.euid, before.capabilities = p.EUID, p.Capabilities
		if len(p.Args) < len(before.args) || !slices.Equal(p.Args[:len(before.args)], before.args) {
			p.Args = before.args
		}
	}
}

// HasExecuted reports whether the process with this PID and start time is known to have executed a program.
func (t *ProcessTable) HasExecuted(pid uint32, start uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.lookup(pid, start)
	return p != nil && p.executed
}

// lookup returns the process with this PID and start time, or nil.
func (t *ProcessTable) lookup(pid uint32, start uint64) *processInfo {
	if p := t.lookupPID(pid); p != nil && p.startTime == start {
		return p
	}
	return nil
}

// lookupPID returns the process that was last seen with a PID, or nil.
func (t *ProcessTable) lookupPID(pid uint32) *processInfo {
	if p, ok := t.byPID.Peek(pid); ok && p.startTime != 0 {
		return p
	}
	return nil
}

// AddAncestors fills in the executables and arguments of the event's ancestors, if they are known.
func (t *ProcessTable) AddAncestors(e *sensors.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range e.Process.Ancestors {
		a := &e.Process.Ancestors[i]
		if p := t.lookupOrLoad(a.PID, a.Name); p != nil {
			a.Exe, a.Args = p.exe, p.args
		}
	}
}

func (t *ProcessTable) lookupOrLoad(pid uint32, name string) *processInfo {
	// If the name changed, the PID was reused or the process renamed itself: read it again.
	if p, ok := t.byPID.Get(pid); ok && p.name == name {
		return p
	}
	dir := t.procRoot + "/" + strconv.FormatUint(uint64(pid), 10)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return nil
	}
	p := &processInfo{name: name, exe: strings.TrimSuffix(exe, " (deleted)")}
	if read := t.readCmdline(dir + "/cmdline"); len(read) > 0 {
		line := strings.ToValidUTF8(strings.TrimRight(string(read), "\x00"), "\uFFFD")
		p.args = strings.Split(line, "\x00")
	}
	if old := t.lookupPID(pid); old != nil && !old.exited {
		p.startTime, p.executed, p.euid, p.capabilities = old.startTime, old.executed, old.euid, old.capabilities
	}
	t.byPID.Add(pid, p)
	return p
}

const (
	// cmdlineTimeout limits the read of a command line. It is in the memory of the process, which may be backed by a
	// file system that never responds, and every event waits for it.
	cmdlineTimeout = 50 * time.Millisecond
	// maxPendingReads is the maximum number of stuck reads. Beyond it, no command line is read until one of them ends.
	maxPendingReads = 4
)

// readCmdline returns the beginning of a command line, or nil if the read times out.
func (t *ProcessTable) readCmdline(path string) []byte {
	if t.pendingReads.Add(1) > maxPendingReads {
		t.pendingReads.Add(-1)
		return nil
	}
	done := make(chan []byte, 1)
	go func() {
		defer t.pendingReads.Add(-1)
		buf := make([]byte, maxAncestorArgsBytes)
		f, err := os.Open(path)
		if err != nil {
			done <- nil
			return
		}
		defer f.Close()
		n, err := f.Read(buf)
		if err != nil {
			n = 0 // the process has exited or has no command line
		}
		done <- buf[:n]
	}()
	timer := time.NewTimer(cmdlineTimeout)
	defer timer.Stop()
	select {
	case read := <-done:
		return read
	case <-timer.C:
		return nil
	}
}

func limitArgs(args []string) []string {
	n := 0
	for i, a := range args {
		if n += len(a) + 1; n > maxAncestorArgsBytes {
			return args[:i:i]
		}
	}
	return args
}
