package containermeta

import (
	"container/list"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stanch/sensors"
)

// ProcessTable remembers which program each process runs, so that an event can name its ancestors. It learns from exec
// events and reads /proc once for processes that are older than it.
type ProcessTable struct {
	mu           sync.Mutex
	capacity     int
	byPID        map[uint32]*list.Element
	lru          *list.List // of *program, the most recently used in front
	procRoot     string
	pendingReads atomic.Int32 // reads of command lines under way
}

type processInfo struct {
	pid          uint32
	name         string
	exe          string
	args         []string
	startTime    uint64 // 0: not learnt from an event of its own
	executed     bool   // it executed this program, and was not only made as a copy of its parent
	euid         uint32 // as last seen
	capabilities uint64
	exited       bool // its number may be another's by now
}

// NewProcessTable makes a table that holds at most capacity processes (zero: 16384).
func NewProcessTable(capacity int) *ProcessTable {
	if capacity <= 0 {
		capacity = 16384
	}
	return &ProcessTable{capacity: capacity, byPID: map[uint32]*list.Element{}, lru: list.New(), procRoot: "/proc"}
}

// maxAncestorArgsBytes bounds how many bytes of an ancestor's command line are kept.
const maxAncestorArgsBytes = 512

// capSetuidMask lets a process become any user.
const capSetuidMask = 1 << 7

// RecordEvent remembers an exec event, and says of every event what only who remembers can: whether the process has rights
// that what it came from had not and could not take, and under which command line it was started (a process can
// overwrite its own).
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
	// What it was itself before counts: a set-uid program that executes another one gave the rights already.
	from := before
	if from == nil {
		// Who ended is nobody's parent: its number is another's now.
		if from = t.lookupPID(p.PPID); from != nil && from.exited {
			from = nil
		}
	} else {
		p.PrivilegesGained = false
	}
	if p.EUID == 0 && (from != nil && from.euid != 0 && from.capabilities&capSetuidMask == 0 || p.HasSetIDBits && p.UID != 0 && e.Kind == sensors.KindExec) {
		p.PrivilegesGained = true
	}
	switch {
	case e.Kind == sensors.KindExec || before == nil:
		t.store(&processInfo{pid: p.PID, name: p.Name, exe: p.Exe, args: limitArgs(p.Args), startTime: p.StartNS, executed: e.Kind == sensors.KindExec, euid: p.EUID, capabilities: p.Capabilities})
	default:
		before.euid, before.capabilities = p.EUID, p.Capabilities
		if len(p.Args) < len(before.args) || !slices.Equal(p.Args[:len(before.args)], before.args) {
			p.Args = before.args
		}
	}
}

// HasExecuted tells whether a process is known to have executed a program.
func (t *ProcessTable) HasExecuted(pid uint32, start uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.lookup(pid, start)
	return p != nil && p.executed
}

// lookup is what is known of one process, by an identity that is never reused.
func (t *ProcessTable) lookup(pid uint32, start uint64) *processInfo {
	if p := t.lookupPID(pid); p != nil && p.startTime == start {
		return p
	}
	return nil
}

// lookupPID is the process that was last seen under a pid.
func (t *ProcessTable) lookupPID(pid uint32) *processInfo {
	if el, ok := t.byPID[pid]; ok {
		if p, _ := el.Value.(*processInfo); p.startTime != 0 {
			return p
		}
	}
	return nil
}

// AddAncestors fills in what the ancestors of an event's process run.
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
	if el, ok := t.byPID[pid]; ok {
		p, _ := el.Value.(*processInfo)
		// A pid that now bears another name was reused, or its process renamed itself: look again.
		if p.name == name {
			t.lru.MoveToFront(el)
			return p
		}
	}
	dir := t.procRoot + "/" + strconv.FormatUint(uint64(pid), 10)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return nil
	}
	p := &processInfo{pid: pid, name: name, exe: strings.TrimSuffix(exe, " (deleted)")}
	if read := t.readCmdline(dir + "/cmdline"); len(read) > 0 {
		line := strings.ToValidUTF8(strings.TrimRight(string(read), "\x00"), "\uFFFD")
		p.args = strings.Split(line, "\x00")
	}
	if old := t.lookupPID(pid); old != nil && !old.exited {
		p.startTime, p.executed, p.euid, p.capabilities = old.startTime, old.executed, old.euid, old.capabilities
	}
	t.store(p)
	return p
}

const (
	// cmdlineTimeout bounds the read of a command line: it is in the process's own memory, which may be backed by a file system
	// that never answers, and every event waits for it.
	cmdlineTimeout = 50 * time.Millisecond
	// maxPendingReads bounds how many such reads are left behind; past it no command line is read until one of them ends.
	maxPendingReads = 4
)

// readCmdline reads the beginning of a command line; nil if it does not come in time.
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
			n = 0 // it has ended, or has no command line
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

func (t *ProcessTable) store(p *processInfo) {
	if el, ok := t.byPID[p.pid]; ok {
		el.Value = p
		t.lru.MoveToFront(el)
		return
	}
	t.byPID[p.pid] = t.lru.PushFront(p)
	for t.lru.Len() > t.capacity {
		last := t.lru.Back()
		if old, ok := last.Value.(*processInfo); ok {
			delete(t.byPID, old.pid)
		}
		t.lru.Remove(last)
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
