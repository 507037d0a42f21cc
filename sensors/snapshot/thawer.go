package snapshot

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/duration"
)

// A thawer is a process that freezes one cgroup and thaws it at the end. It outlives the sensor: it has a session and a
// cgroup of its own, and needs no file but the descriptor of the cgroup that it was given.
//
// A cgroup has one bit for everybody who freezes it. The thawer therefore watches cgroup.freeze: once another process
// has written to it, the freeze is that process's, and the thawer ends without a thaw.

// order is what a thawer is started with.
type order struct {
	Lease  string    `json:"lease"`
	Target string    `json:"target"`
	Until  time.Time `json:"until"`
	End    int64     `json:"end"` // nanoseconds of CLOCK_BOOTTIME
	// Adopt replaces the thawer of a cgroup that Stanch froze already.
	Adopt bool `json:"adopt,omitempty"`
}

// answer is what a thawer reports once the cgroup stands still, or will not.
type answer struct {
	PID     int    `json:"pid"`
	Refused string `json:"refused,omitempty"`
	NoMark  bool   `json:"no_mark,omitempty"`
	Err     string `json:"err,omitempty"`
}

const (
	dirFD    = 3 // the cgroup's directory
	answerFD = 4 // a pipe to whoever started the thawer
)

type thawer struct {
	order
	dir, freeze, events *os.File
	watch               int // inotify; -1 if the machine has no instance left
	timer               int
	stop                *os.File // readable after SIGTERM
}

// refusal says why a cgroup is not frozen.
type refusal string

func (r refusal) Error() string { return string(r) }

// ServeThaw is the thawer's whole work. The process should end then. text is its order.
func ServeThaw(text string) error {
	out := os.NewFile(answerFD, "answer")
	t, err := newThawer(text)
	if err == nil {
		err = t.begin()
	}
	a := answer{PID: os.Getpid()}
	var r refusal
	switch {
	case errors.As(err, &r):
		a.Refused = string(r)
	case errors.Is(err, errNoMark):
		a.NoMark = true
	case err != nil:
		a.Err = err.Error()
	}
	// Whoever asked may be dead by now. The thawer goes on.
	_ = json.NewEncoder(out).Encode(a)
	_ = out.Close()
	if err != nil {
		return err
	}
	debug.FreeOSMemory()
	return t.wait()
}

func newThawer(text string) (*thawer, error) {
	t := &thawer{dir: os.NewFile(dirFD, "cgroup"), watch: -1}
	if err := json.Unmarshal([]byte(text), &t.order); err != nil {
		return nil, fmt.Errorf("read the thawer's order: %w", err)
	}
	// Also descriptors 3 and 4 must not reach further than this process.
	unix.CloseOnExec(dirFD)
	unix.CloseOnExec(answerFD)
	// The kernel should kill anything else first. Without CAP_SYS_RESOURCE that cannot be asked for.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	if err := leaveV1(); err != nil {
		return nil, err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the thawer: %w", err)
	}
	t.stop = r
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		_ = w.Close()
	}()
	if t.freeze, err = openIn(t.dir, "cgroup.freeze", unix.O_RDWR); err != nil {
		return nil, err
	}
	if t.events, err = openIn(t.dir, "cgroup.events", unix.O_RDONLY); err != nil {
		return nil, err
	}
	if t.timer, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("start the thawer: %w", err)
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(t.End, 1))}
	if err := unix.TimerfdSettime(t.timer, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return nil, fmt.Errorf("start the thawer: %w", err)
	}
	return t, nil
}

// begin freezes, or adopts what is frozen. Until it returns nil, nothing that Stanch froze stays frozen.
func (t *thawer) begin() error {
	if !t.Adopt {
		if err := t.foreignFreeze(); err != nil {
			return err
		}
	}
	// Containers that run as root share the limit of inotify instances with this process. One of them must not prevent
	// its own freeze by using them up: without the watch, somebody else's pause is not recognized.
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", t.freeze.Fd()), unix.IN_MODIFY|unix.IN_CLOSE_WRITE); err == nil {
			t.watch = fd
		}
	}
	own := mark{Lease: t.Lease, Target: t.Target, Until: t.Until, End: t.End, PID: os.Getpid(), Start: started(os.Getpid())}
	if t.Adopt {
		return t.adopt(own)
	}
	asked, err := readSmall(t.freeze)
	if err != nil {
		return err
	}
	if strings.TrimSpace(asked) == "1" {
		return refusal("its cgroup is frozen already, and not by Stanch; whoever froze it can thaw it")
	}
	err = writeMark(t.dir, own, unix.XATTR_CREATE)
	if errors.Is(err, unix.EEXIST) {
		return refusal(ErrFrozen.Error())
	}
	if err != nil {
		return err
	}
	if err := t.apply(); err != nil {
		return errors.Join(err, writeFreeze(t.freeze, "0"), removeMark(t.dir, own.PID))
	}
	return nil
}

func (t *thawer) adopt(own mark) error {
	err := writeMark(t.dir, own, unix.XATTR_REPLACE)
	if errors.Is(err, unix.ENODATA) {
		return errNoMark // its thawer has ended: at the end, or because another process froze or thawed it
	}
	if err != nil {
		return err
	}
	if asked, err := readSmall(t.freeze); err != nil || strings.TrimSpace(asked) != "1" {
		return errors.Join(err, removeMark(t.dir, own.PID), errNoMark)
	}
	return nil
}

// apply freezes and waits until every process stands still.
func (t *thawer) apply() error {
	if err := writeFreeze(t.freeze, "1"); err != nil {
		return err
	}
	// This process keeps its descriptor open, so a close is another's.
	if t.changed(unix.IN_CLOSE_WRITE) {
		return errors.New("another process wrote cgroup.freeze in the same moment; try again")
	}
	deadline := time.Now().Add(freezeLimit)
	for {
		events, err := readSmall(t.events)
		if err != nil {
			return err
		}
		if strings.Contains("\n"+events, "\nfrozen 1") {
			return nil
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("freeze the cgroup: not all of its processes stand still after %s", duration.Format(freezeLimit))
		}
		// The kernel wakes whoever polls for a change of cgroup.events.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(t.events.Fd()), Events: unix.POLLPRI}}, 20); err != nil && !errors.Is(err, unix.EINTR) { //nolint:gosec // a descriptor
			return fmt.Errorf("freeze the cgroup: %w", err)
		}
	}
}

// freezeLimit is how long processes may take to stand still.
const freezeLimit = 5 * time.Second

// changed reads what happened to cgroup.freeze and reports whether one of the events of mask did.
func (t *thawer) changed(mask uint32) bool {
	if t.watch < 0 {
		return false
	}
	found := false
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(t.watch, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n < unix.SizeofInotifyEvent {
			return found
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			// struct inotify_event: wd, mask, cookie, len; the name is empty for a watched file.
			found = found || binary.NativeEndian.Uint32(b[at+4:])&mask != 0
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[at+12:]))
		}
	}
}

// wait waits for the end, or for SIGTERM, and thaws; or until another process takes the freeze over.
func (t *thawer) wait() error {
	polled := []unix.PollFd{
		{Fd: int32(t.timer), Events: unix.POLLIN},     //nolint:gosec // a descriptor
		{Fd: int32(t.stop.Fd()), Events: unix.POLLIN}, //nolint:gosec // a descriptor
		{Fd: int32(t.watch), Events: unix.POLLIN},     //nolint:gosec // a descriptor; the kernel skips -1
	}
	for {
		if _, err := unix.Poll(polled, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return errors.Join(fmt.Errorf("wait for the end of a freeze: %w", err), t.thaw())
		}
		if t.changed(unix.IN_MODIFY) {
			return removeMark(t.dir, os.Getpid())
		}
		if polled[0].Revents != 0 || polled[1].Revents != 0 {
			return t.thaw()
		}
	}
}

// thaw thaws what this process froze. A thaw that fails is tried again: nobody else does it.
func (t *thawer) thaw() error {
	for left := 50; ; left-- {
		m, err := readMark(t.dir)
		if errors.Is(err, errNoMark) || (err == nil && m.PID != os.Getpid()) {
			return nil // another thawer's now
		}
		if err == nil {
			err = writeFreeze(t.freeze, "0")
		}
		if err == nil {
			return removeMark(t.dir, os.Getpid())
		}
		if left == 0 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
