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

// thawOrder is what a thawer is started with.
type thawOrder struct {
	LeaseID          string    `json:"lease"`
	TargetID         string    `json:"target"`
	ExpiresAt        time.Time `json:"until"`
	ExpiryBootTimeNS int64     `json:"expiry_boot_time_ns"` // nanoseconds of CLOCK_BOOTTIME
	// AdoptExisting replaces the thawer of a cgroup that Stanch froze already.
	AdoptExisting bool `json:"adopt_existing,omitempty"`
}

// thawerResponse is what a thawer reports once the cgroup stands still, or will not.
type thawerResponse struct {
	PID     int    `json:"pid"`
	Refused string `json:"refused,omitempty"`
	NoMark  bool   `json:"no_mark,omitempty"`
	Err     string `json:"err,omitempty"`
}

const (
	cgroupDirFD = 3 // the cgroup's directory
	responseFD  = 4 // a pipe to whoever started the thawer
)

type thawer struct {
	thawOrder
	cgroupDir, freezeFile, eventsFile *os.File
	inotifyFD                         int // inotify; -1 if the machine has no instance left
	timerFD                           int
	stopSignal                        *os.File // readable after SIGTERM
}

// refusalError says why a cgroup is not frozen.
type refusalError string

func (r refusalError) Error() string { return string(r) }

// RunThawer is the thawer's whole work. The process should end then. text is its order.
func RunThawer(text string) error {
	out := os.NewFile(responseFD, "answer")
	t, err := newThawer(text)
	if err == nil {
		err = t.freezeOrAdopt()
	}
	a := thawerResponse{PID: os.Getpid()}
	var r refusalError
	switch {
	case errors.As(err, &r):
		a.Refused = string(r)
	case errors.Is(err, errNotFrozenByStanch):
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
	return t.waitAndThaw()
}

func newThawer(text string) (*thawer, error) {
	t := &thawer{cgroupDir: os.NewFile(cgroupDirFD, "cgroup"), inotifyFD: -1}
	if err := json.Unmarshal([]byte(text), &t.thawOrder); err != nil {
		return nil, fmt.Errorf("read the thawer's order: %w", err)
	}
	// Also descriptors 3 and 4 must not reach further than this process.
	unix.CloseOnExec(cgroupDirFD)
	unix.CloseOnExec(responseFD)
	// The kernel should kill anything else first. Without CAP_SYS_RESOURCE that cannot be asked for.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	if err := leaveCgroupV1(); err != nil {
		return nil, err
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the thawer: %w", err)
	}
	t.stopSignal = r
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		_ = w.Close()
	}()
	if t.freezeFile, err = openCgroupFile(t.cgroupDir, "cgroup.freeze", unix.O_RDWR); err != nil {
		return nil, err
	}
	if t.eventsFile, err = openCgroupFile(t.cgroupDir, "cgroup.events", unix.O_RDONLY); err != nil {
		return nil, err
	}
	if t.timerFD, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("start the thawer: %w", err)
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(t.ExpiryBootTimeNS, 1))}
	if err := unix.TimerfdSettime(t.timerFD, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return nil, fmt.Errorf("start the thawer: %w", err)
	}
	return t, nil
}

// freezeOrAdopt freezes, or adopts what is frozen. Until it returns nil, nothing that Stanch froze stays frozen.
func (t *thawer) freezeOrAdopt() error {
	if !t.AdoptExisting {
		if err := t.checkForeignFreeze(); err != nil {
			return err
		}
	}
	// Containers that run as root share the limit of inotify instances with this process. One of them must not prevent
	// its own freeze by using them up: without the watch, somebody else's pause is not recognized.
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", t.freezeFile.Fd()), unix.IN_MODIFY|unix.IN_CLOSE_WRITE); err == nil {
			t.inotifyFD = fd
		}
	}
	own := freezeMarker{LeaseID: t.LeaseID, TargetID: t.TargetID, ExpiresAt: t.ExpiresAt, ExpiryBootTimeNS: t.ExpiryBootTimeNS, ThawerPID: os.Getpid(), ThawerStartTicks: processStartTicks(os.Getpid())}
	if t.AdoptExisting {
		return t.adoptFreeze(own)
	}
	asked, err := readCgroupFile(t.freezeFile)
	if err != nil {
		return err
	}
	if strings.TrimSpace(asked) == "1" {
		return refusalError("its cgroup is frozen already, and not by Stanch; whoever froze it can thaw it")
	}
	err = writeFreezeMarker(t.cgroupDir, own, unix.XATTR_CREATE)
	if errors.Is(err, unix.EEXIST) {
		return refusalError(ErrFrozenByOtherLease.Error())
	}
	if err != nil {
		return err
	}
	if err := t.applyFreeze(); err != nil {
		return errors.Join(err, writeFreeze(t.freezeFile, "0"), removeFreezeMarker(t.cgroupDir, own.ThawerPID))
	}
	return nil
}

func (t *thawer) adoptFreeze(own freezeMarker) error {
	err := writeFreezeMarker(t.cgroupDir, own, unix.XATTR_REPLACE)
	if errors.Is(err, unix.ENODATA) {
		return errNotFrozenByStanch // its thawer has ended: at the end, or because another process froze or thawed it
	}
	if err != nil {
		return err
	}
	if asked, err := readCgroupFile(t.freezeFile); err != nil || strings.TrimSpace(asked) != "1" {
		return errors.Join(err, removeFreezeMarker(t.cgroupDir, own.ThawerPID), errNotFrozenByStanch)
	}
	return nil
}

// applyFreeze freezes and waits until every process stands still.
func (t *thawer) applyFreeze() error {
	if err := writeFreeze(t.freezeFile, "1"); err != nil {
		return err
	}
	// This process keeps its descriptor open, so a close is another's.
	if t.sawFreezeEvent(unix.IN_CLOSE_WRITE) {
		return errors.New("another process wrote cgroup.freeze in the same moment; try again")
	}
	deadline := time.Now().Add(freezeTimeout)
	for {
		events, err := readCgroupFile(t.eventsFile)
		if err != nil {
			return err
		}
		if strings.Contains("\n"+events, "\nfrozen 1") {
			return nil
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("freeze the cgroup: not all of its processes stand still after %s", duration.Format(freezeTimeout))
		}
		// The kernel wakes whoever polls for a change of cgroup.events.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(t.eventsFile.Fd()), Events: unix.POLLPRI}}, 20); err != nil && !errors.Is(err, unix.EINTR) { //nolint:gosec // a descriptor
			return fmt.Errorf("freeze the cgroup: %w", err)
		}
	}
}

// freezeTimeout is how long processes may take to stand still.
const freezeTimeout = 5 * time.Second

// sawFreezeEvent reads what happened to cgroup.freeze and reports whether one of the events of mask did.
func (t *thawer) sawFreezeEvent(mask uint32) bool {
	if t.inotifyFD < 0 {
		return false
	}
	found := false
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(t.inotifyFD, b)
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

// waitAndThaw waits for the end, or for SIGTERM, and thaws; or until another process takes the freeze over.
func (t *thawer) waitAndThaw() error {
	polled := []unix.PollFd{
		{Fd: int32(t.timerFD), Events: unix.POLLIN},         //nolint:gosec // a descriptor
		{Fd: int32(t.stopSignal.Fd()), Events: unix.POLLIN}, //nolint:gosec // a descriptor
		{Fd: int32(t.inotifyFD), Events: unix.POLLIN},       //nolint:gosec // a descriptor; the kernel skips -1
	}
	for {
		if _, err := unix.Poll(polled, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return errors.Join(fmt.Errorf("wait for the end of a freeze: %w", err), t.thaw())
		}
		if t.sawFreezeEvent(unix.IN_MODIFY) {
			return removeFreezeMarker(t.cgroupDir, os.Getpid())
		}
		if polled[0].Revents != 0 || polled[1].Revents != 0 {
			return t.thaw()
		}
	}
}

// thaw thaws what this process froze. A thaw that fails is tried again: nobody else does it.
func (t *thawer) thaw() error {
	for left := 50; ; left-- {
		m, err := readFreezeMarker(t.cgroupDir)
		if errors.Is(err, errNotFrozenByStanch) || (err == nil && m.ThawerPID != os.Getpid()) {
			return nil // another thawer's now
		}
		if err == nil {
			err = writeFreeze(t.freezeFile, "0")
		}
		if err == nil {
			return removeFreezeMarker(t.cgroupDir, os.Getpid())
		}
		if left == 0 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
