package identity

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

// Table remembers which program each process runs, so that an event can name its ancestors. It learns from exec
// events and reads /proc once for processes that are older than it.
type Table struct {
	mu       sync.Mutex
	capacity int
	byPID    map[uint32]*list.Element
	order    *list.List // of *program, the most recently used in front
	proc     string
	waiting  atomic.Int32 // reads of command lines under way
}

type program struct {
	pid   uint32
	name  string
	exe   string
	args  []string
	start uint64 // 0: not learnt from an event of its own
	ran   bool   // it executed this program, and was not only made as a copy of its parent
	euid  uint32 // as last seen
	caps  uint64
	ended bool // its number may be another's by now
}

// NewTable makes a table that holds at most capacity processes (zero: 16384).
func NewTable(capacity int) *Table {
	if capacity <= 0 {
		capacity = 16384
	}
	return &Table{capacity: capacity, byPID: map[uint32]*list.Element{}, order: list.New(), proc: "/proc"}
}

// ancestorArgs bounds how many bytes of an ancestor's command line are kept.
const ancestorArgs = 512

// capSetuid lets a process become any user.
const capSetuid = 1 << 7

// Learn remembers an exec event, and says of every event what only who remembers can: whether the process has rights
// that what it came from had not and could not take, and under which command line it was started (a process can
// overwrite its own).
func (t *Table) Learn(e *sensors.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &e.Process
	before := t.own(p.PID, p.StartNS)
	if e.Kind == sensors.KindExit {
		if before != nil {
			before.ended = true
		}
		return
	}
	// What it was itself before counts: a set-uid program that executes another one gave the rights already.
	from := before
	if from == nil {
		// Who ended is nobody's parent: its number is another's now.
		if from = t.learnt(p.PPID); from != nil && from.ended {
			from = nil
		}
	} else {
		p.Gained = false
	}
	if p.EUID == 0 && (from != nil && from.euid != 0 && from.caps&capSetuid == 0 || p.Setid && p.UID != 0 && e.Kind == sensors.KindExec) {
		p.Gained = true
	}
	switch {
	case e.Kind == sensors.KindExec || before == nil:
		t.put(&program{pid: p.PID, name: p.Name, exe: p.Exe, args: clip(p.Args), start: p.StartNS, ran: e.Kind == sensors.KindExec, euid: p.EUID, caps: p.Capabilities})
	default:
		before.euid, before.caps = p.EUID, p.Capabilities
		if len(p.Args) < len(before.args) || !slices.Equal(p.Args[:len(before.args)], before.args) {
			p.Args = before.args
		}
	}
}

// Ran tells whether a process is known to have executed a program.
func (t *Table) Ran(pid uint32, start uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.own(pid, start)
	return p != nil && p.ran
}

// own is what is known of one process, by an identity that is never reused.
func (t *Table) own(pid uint32, start uint64) *program {
	if p := t.learnt(pid); p != nil && p.start == start {
		return p
	}
	return nil
}

// learnt is the process that was last seen under a pid.
func (t *Table) learnt(pid uint32) *program {
	if el, ok := t.byPID[pid]; ok {
		if p, _ := el.Value.(*program); p.start != 0 {
			return p
		}
	}
	return nil
}

// Enrich fills in what the ancestors of an event's process run.
func (t *Table) Enrich(e *sensors.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range e.Process.Ancestors {
		a := &e.Process.Ancestors[i]
		if p := t.get(a.PID, a.Name); p != nil {
			a.Exe, a.Args = p.exe, p.args
		}
	}
}

func (t *Table) get(pid uint32, name string) *program {
	if el, ok := t.byPID[pid]; ok {
		p, _ := el.Value.(*program)
		// A pid that now bears another name was reused, or its process renamed itself: look again.
		if p.name == name {
			t.order.MoveToFront(el)
			return p
		}
	}
	dir := t.proc + "/" + strconv.FormatUint(uint64(pid), 10)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return nil
	}
	p := &program{pid: pid, name: name, exe: strings.TrimSuffix(exe, " (deleted)")}
	if read := t.cmdline(dir + "/cmdline"); len(read) > 0 {
		line := strings.ToValidUTF8(strings.TrimRight(string(read), "\x00"), "\uFFFD")
		p.args = strings.Split(line, "\x00")
	}
	if old := t.learnt(pid); old != nil && !old.ended {
		p.start, p.ran, p.euid, p.caps = old.start, old.ran, old.euid, old.caps
	}
	t.put(p)
	return p
}

const (
	// cmdlineTime bounds the read of a command line: it is in the process's own memory, which may be backed by a file system
	// that never answers, and every event waits for it.
	cmdlineTime = 50 * time.Millisecond
	// maxWaiting bounds how many such reads are left behind; past it no command line is read until one of them ends.
	maxWaiting = 4
)

// cmdline reads the beginning of a command line; nil if it does not come in time.
func (t *Table) cmdline(path string) []byte {
	if t.waiting.Add(1) > maxWaiting {
		t.waiting.Add(-1)
		return nil
	}
	done := make(chan []byte, 1)
	go func() {
		defer t.waiting.Add(-1)
		buf := make([]byte, ancestorArgs)
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
	timer := time.NewTimer(cmdlineTime)
	defer timer.Stop()
	select {
	case read := <-done:
		return read
	case <-timer.C:
		return nil
	}
}

func (t *Table) put(p *program) {
	if el, ok := t.byPID[p.pid]; ok {
		el.Value = p
		t.order.MoveToFront(el)
		return
	}
	t.byPID[p.pid] = t.order.PushFront(p)
	for t.order.Len() > t.capacity {
		last := t.order.Back()
		if old, ok := last.Value.(*program); ok {
			delete(t.byPID, old.pid)
		}
		t.order.Remove(last)
	}
}

func clip(args []string) []string {
	n := 0
	for i, a := range args {
		if n += len(a) + 1; n > ancestorArgs {
			return args[:i:i]
		}
	}
	return args
}
