package snapshot

import (
	"context"
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

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"stanch/sensors/duration"
)

// A thawer is a process that freezes one cgroup and thaws it at the end. It outlives the sensor: it has its own
// session and cgroup, and needs no file except the descriptors that it inherited.
//
// A cgroup has one freeze bit for all users. The thawer therefore watches cgroup.freeze: if another process writes to
// it, the freeze belongs to that process, and the thawer exits without a thaw.

// thawOrder is the argument of a thawer.
type thawOrder struct {
	LeaseID          string    `json:"lease"`
	TargetID         string    `json:"target"`
	ExpiresAt        time.Time `json:"until"`
	ExpiryBootTimeNS int64     `json:"expiry_boot_time_ns"` // in nanoseconds of CLOCK_BOOTTIME
	// AdoptExisting replaces the thawer of a cgroup that Stanch has frozen already.
	AdoptExisting bool `json:"adopt_existing,omitempty"`
}

// thawerResponse is what a thawer reports when the cgroup is frozen, or cannot be.
type thawerResponse struct {
	PID     int    `json:"pid"`
	Refused string `json:"refused,omitempty"`
	NoMark  bool   `json:"no_mark,omitempty"`
	Err     string `json:"err,omitempty"`
}

const (
	cgroupDirFD = 3 // the cgroup directory
	responseFD  = 4 // a pipe to the process that started the thawer
)

type thawer struct {
	thawOrder
	cgroupDir, freezeFile, eventsFile *os.File
	inotifyFD                         int // -1 if the machine has no inotify instance left
	timerFD                           int
	stopSignal                        *os.File // becomes readable after SIGTERM
}

// refusalError says why freezing a cgroup is not allowed.
type refusalError string

// Error returns the reason.
func (r refusalError) Error() string { return string(r) }

// RunThawer is the main function of a thawer. text is its JSON-encoded order, which the freezer appends to the command
// line. It freezes the cgroup that it inherited, thaws it at the end, and returns. The process should exit afterwards.
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
	// The process that started this one may be dead by now. The thawer continues.
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
		return nil, fmt.Errorf("read the thawer's request: %w", err)
	}
	// The two inherited descriptors must not be inherited further.
	unix.CloseOnExec(cgroupDirFD)
	unix.CloseOnExec(responseFD)
	// The kernel should kill every other process first when it runs out of memory. This fails without
	// CAP_SYS_RESOURCE.
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

// freezeOrAdopt freezes the cgroup, or adopts its existing freeze. If it returns an error, nothing that Stanch froze
// stays frozen.
func (t *thawer) freezeOrAdopt() error {
	if !t.AdoptExisting {
		if err := t.checkForeignFreeze(); err != nil {
			return err
		}
	}
	// Root processes in containers share the limit of inotify instances with this process. A container must not
	// prevent its own freeze by exhausting them: without the watch, a freeze by another process is merely not
	// recognized.
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", t.freezeFile.Fd()),
			unix.IN_MODIFY|unix.IN_CLOSE_WRITE); err == nil {
			t.inotifyFD = fd
		}
	}
	own := freezeMarker{
		LeaseID: t.LeaseID, TargetID: t.TargetID, ExpiresAt: t.ExpiresAt,
		ExpiryBootTimeNS: t.ExpiryBootTimeNS, ThawerPID: os.Getpid(), ThawerStartTicks: processStartTicks(os.Getpid()),
	}
	if t.AdoptExisting {
		return t.adoptFreeze(own)
	}
	asked, err := readCgroupFile(t.freezeFile)
	if err != nil {
		return err
	}
	if strings.TrimSpace(asked) == "1" {
		return refusalError("the cgroup is already frozen, but not by Stanch; thaw it with the tool that froze it")
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
		// Its thawer has exited: at the end, or because another process froze or thawed the cgroup
		return errNotFrozenByStanch
	}
	if err != nil {
		return err
	}
	if asked, err := readCgroupFile(t.freezeFile); err != nil || strings.TrimSpace(asked) != "1" {
		return errors.Join(err, removeFreezeMarker(t.cgroupDir, own.ThawerPID), errNotFrozenByStanch)
	}
	return nil
}

// applyFreeze freezes the cgroup and waits until every process is stopped.
func (t *thawer) applyFreeze() error {
	if err := writeFreeze(t.freezeFile, "1"); err != nil {
		return err
	}
	// This process keeps its descriptor open, so another process closed the file.
	if t.sawFreezeEvent(unix.IN_CLOSE_WRITE) {
		return errors.New("another process wrote cgroup.freeze at the same time; try again")
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
			return fmt.Errorf("freeze the cgroup: not all processes stopped within %s", duration.Format(freezeTimeout))
		}
		// A poll for POLLPRI returns when cgroup.events changes.
		if _, err := unix.Poll(
			[]unix.PollFd{{Fd: int32(t.eventsFile.Fd()), Events: unix.POLLPRI}},
			20,
		); err != nil &&
			!errors.Is(err, unix.EINTR) {
			return fmt.Errorf("freeze the cgroup: %w", err)
		}
	}
}

// freezeTimeout is how long the processes may take to stop.
const freezeTimeout = 5 * time.Second

// sawFreezeEvent reads the pending inotify events of cgroup.freeze, and reports whether one of them matches mask.
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
			// struct inotify_event has wd, mask, cookie and len. The name is empty for a watched file.
			found = found || binary.NativeEndian.Uint32(b[at+4:])&mask != 0
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[at+12:]))
		}
	}
}

// waitAndThaw waits for the end or SIGTERM and then thaws. It returns without a thaw if another process takes over the
// freeze.
func (t *thawer) waitAndThaw() error {
	polled := []unix.PollFd{
		{Fd: int32(t.timerFD), Events: unix.POLLIN},
		{Fd: int32(t.stopSignal.Fd()), Events: unix.POLLIN},
		{Fd: int32(t.inotifyFD), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(polled, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return errors.Join(fmt.Errorf("wait for the expiry of a freeze: %w", err), t.thaw())
		}
		if t.sawFreezeEvent(unix.IN_MODIFY) {
			return removeFreezeMarker(t.cgroupDir, os.Getpid())
		}
		if polled[0].Revents != 0 || polled[1].Revents != 0 {
			return t.thaw()
		}
	}
}

// thaw thaws the cgroup, unless another thawer has taken over. It tries 51 times, 100 ms apart, because no other
// process does; a try that blocks for long does not shorten that.
func (t *thawer) thaw() error {
	_, err := backoff.Retry(context.Background(), func() (struct{}, error) {
		m, err := readFreezeMarker(t.cgroupDir)
		if errors.Is(err, errNotFrozenByStanch) || (err == nil && m.ThawerPID != os.Getpid()) {
			return struct{}{}, nil // another thawer has taken over
		}
		if err == nil {
			err = writeFreeze(t.freezeFile, "0")
		}
		if err != nil {
			return struct{}{}, err
		}
		if err := removeFreezeMarker(t.cgroupDir, os.Getpid()); err != nil {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, nil
	}, backoff.WithBackOff(backoff.NewConstantBackOff(100*time.Millisecond)), backoff.WithMaxTries(51),
		backoff.WithMaxElapsedTime(0))
	return err
}
