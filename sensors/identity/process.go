package identity

import (
	"container/list"
	"os"
	"strconv"
	"strings"
	"sync"

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
}

type program struct {
	pid  uint32
	name string
	exe  string
	args []string
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

// Learn remembers an exec event.
func (t *Table) Learn(e *sensors.Event) {
	if e.Kind != sensors.KindExec {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(&program{pid: e.Process.PID, name: e.Process.Name, exe: e.Process.Exe, args: clip(e.Process.Args)})
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
	if f, err := os.Open(dir + "/cmdline"); err == nil {
		buf := make([]byte, ancestorArgs)
		n, _ := f.Read(buf)
		_ = f.Close()
		if n > 0 {
			line := strings.ToValidUTF8(strings.TrimRight(string(buf[:n]), "\x00"), "\uFFFD")
			p.args = strings.Split(line, "\x00")
		}
	}
	t.put(p)
	return p
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
