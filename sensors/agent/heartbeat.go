package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/containermeta"
)

// HeartbeatStatus says whether the sensor receives the events that it causes itself.
type HeartbeatStatus struct {
	// LastReceived is when the last heartbeat was received. LatencyMS is how long it took, in milliseconds.
	LastReceived time.Time `json:"last,omitzero"`
	LatencyMS    float64   `json:"latency_ms,omitempty"`
	// ConsecutiveMisses counts the latest heartbeats in a row that were not received. Failing reports whether they are
	// too many.
	ConsecutiveMisses int    `json:"consecutive_misses,omitempty"`
	Failing           bool   `json:"failing,omitempty"`
	FailureReason     string `json:"failure_reason,omitempty"` // the last error
}

// heartbeat proves that the sensor receives events. It executes a program that exits at once, with a random nonce, in
// a cgroup that the probe watches. The event must come back through the kernel hook, the ring buffer and the decoder.
type heartbeat struct {
	interval time.Duration
	timeout  time.Duration // 0 means heartbeatTimeout
	dir      string        // where the program is stored if the host forbids executing memory files
	log      *slog.Logger

	mu       sync.Mutex
	status   HeartbeatStatus
	nonce    string
	pid      uint32 // process of the received heartbeat, to recognize its exit event
	sentAt   time.Time
	received chan struct{}
	// sensorID names the commitments of this sensor. peers are the heartbeats of other sensors on the machine.
	sensorID string
	peers    []peerHeartbeat
}

const (
	heartbeatInterval = 30 * time.Second
	// heartbeatTimeout is how long a heartbeat may take. It is generous, because a node under load is slow but not
	// blind.
	heartbeatTimeout = 5 * time.Second
	// maxMissedHeartbeats is how many misses in a row mean failure.
	maxMissedHeartbeats = 3
	// heartbeatName is the name of the program, and of its cgroup below the root.
	heartbeatName = "stanch-heartbeat"
)

// run sends heartbeats until ctx ends, and then removes its cgroup.
func (y *heartbeat) run(ctx context.Context) {
	defer func() {
		if root, err := containermeta.FindCgroupRoot(); err == nil {
			_ = os.Remove(filepath.Join(root, heartbeatName)) // fails if another sensor uses the cgroup
		}
	}()
	every := y.interval
	if every == 0 {
		every = heartbeatInterval
	}
	wait := y.timeout
	if wait == 0 {
		wait = heartbeatTimeout
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		y.recordResult(y.sendAndWait(ctx, wait))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// errHeartbeatMissed means that a heartbeat was executed but its event was not received.
var errHeartbeatMissed = errors.New("the heartbeat was executed, but its event was not received from the kernel")

// sendAndWait executes a heartbeat and waits for its event.
func (y *heartbeat) sendAndWait(ctx context.Context, wait time.Duration) error {
	back := make(chan struct{})
	y.mu.Lock()
	y.nonce, y.received, y.sentAt = rand.Text(), back, time.Now()
	nonce := y.nonce
	y.mu.Unlock()
	if err := y.execute(nonce); err != nil {
		return fmt.Errorf("run the heartbeat program: %w", err)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errHeartbeatMissed
	}
}

func (y *heartbeat) recordResult(err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	switch {
	case err == nil:
		if y.status.Failing {
			y.log.Info("the sensor receives its heartbeat again")
		}
		y.status.ConsecutiveMisses, y.status.Failing, y.status.FailureReason = 0, false, ""
		return
	case errors.Is(err, context.Canceled):
		return
	}
	y.status.ConsecutiveMisses++
	y.status.FailureReason = err.Error()
	if y.status.ConsecutiveMisses >= maxMissedHeartbeats && !y.status.Failing {
		y.status.Failing = true
		y.log.Error("the sensor does not receive its own heartbeat", "missed", y.status.ConsecutiveMisses, "error", err)
	}
}

// isHeartbeatEvent reports whether an event belongs to this sensor's heartbeat, or to a verified heartbeat of another
// sensor. Other events in the heartbeat's cgroup are not ignored.
func (y *heartbeat) isHeartbeatEvent(e *sensors.Event) bool {
	if y == nil || e.Container.CgroupPath != "/"+heartbeatName {
		return false
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	args := e.Process.Args
	switch {
	case e.Kind == sensors.KindExec && y.nonce != "" && len(args) == 2 && args[0] == heartbeatName && args[1] == y.nonce:
		y.pid, y.nonce = e.Process.PID, ""
		y.status.LastReceived = time.Now()
		y.status.LatencyMS = float64(y.status.LastReceived.Sub(y.sentAt).Microseconds()) / 1000
		close(y.received)
		return true
	case e.Kind == sensors.KindExit && e.Process.PID == y.pid && y.pid != 0:
		return true
	}
	return y.isPeerHeartbeat(e)
}

// Status returns the current status.
func (y *heartbeat) Status() HeartbeatStatus {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.status
}

// execute runs the heartbeat program with the nonce as its argument.
func (y *heartbeat) execute(nonce string) error {
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, heartbeatName)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create the heartbeat's cgroup: %w", err)
	}
	if y.sensorID == "" {
		y.sensorID = rand.Text()
	}
	if err := publishCommitment(dir, y.sensorID, nonce); err != nil {
		y.log.Debug("other sensors will not recognize the heartbeat", "error", err)
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the heartbeat's cgroup: %w", err)
	}
	defer func() { _ = cgroup.Close() }()
	program, err := y.openProgram()
	if err != nil {
		return err
	}
	defer func() { _ = program.Close() }()
	err = startInCgroup(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), nonce, int(cgroup.Fd()))
	runtime.KeepAlive(program)
	if err != nil && y.dir != "" && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
		// Some hosts forbid executing memory files.
		path := filepath.Join(y.dir, heartbeatName)
		if err := os.WriteFile(path, heartbeatProgram(), 0o700); err != nil { //nolint:gosec // it must be executable
			return fmt.Errorf("write the heartbeat program: %w", err)
		}
		err = startInCgroup(path, nonce, int(cgroup.Fd()))
	}
	return err
}

// startInCgroup executes a program in a cgroup and waits for its exit.
func startInCgroup(path, nonce string, cgroup int) error {
	process, err := os.StartProcess(path, []string{heartbeatName, nonce}, &os.ProcAttr{
		Env: []string{}, Sys: &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: cgroup, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return fmt.Errorf("run the heartbeat program: %w", err)
	}
	if _, err := process.Wait(); err != nil {
		return fmt.Errorf("wait for the heartbeat program: %w", err)
	}
	return nil
}

// openProgram returns the program in an executable memory file.
func (y *heartbeat) openProgram() (*os.File, error) {
	fd, err := unix.MemfdCreate(heartbeatName, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3
		fd, err = unix.MemfdCreate(heartbeatName, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("create a memfd for the heartbeat program: %w", err)
	}
	f := os.NewFile(uintptr(fd), heartbeatName)
	if _, err := f.Write(heartbeatProgram()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write the heartbeat program: %w", err)
	}
	return f, nil
}

// heartbeatProgram returns a minimal ELF executable that calls exit(0). Executing the sensor itself, which includes
// Temporal under `stanch up`, would cost a hundred times as much.
func heartbeatProgram() []byte {
	machine, code := uint16(62), []byte{
		0x31, 0xff, // xor edi, edi
		0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60 (exit)
		0x0f, 0x05, // syscall
	}
	if runtime.GOARCH == "arm64" {
		machine, code = 183, []byte{
			0x00, 0x00, 0x80, 0xd2, // mov x0, #0
			0xa8, 0x0b, 0x80, 0xd2, // mov x8, #93 (exit)
			0x01, 0x00, 0x00, 0xd4, // svc #0
		}
	}
	const base, header, segment = 0x400000, 64, 56
	le := binary.LittleEndian
	out := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	out = le.AppendUint16(out, 2) // e_type: ET_EXEC
	out = le.AppendUint16(out, machine)
	out = le.AppendUint32(out, 1)
	out = le.AppendUint64(out, base+header+segment) // e_entry
	out = le.AppendUint64(out, header)              // e_phoff
	out = le.AppendUint64(out, 0)
	out = le.AppendUint32(out, 0)
	for _, n := range []uint16{header, segment, 1, 64, 0, 0} {
		out = le.AppendUint16(out, n)
	}
	size := uint64(header + segment + len(code))
	out = le.AppendUint32(out, 1) // p_type: PT_LOAD
	out = le.AppendUint32(out, 5) // p_flags: read and execute
	for _, n := range []uint64{0, base, base, size, size, 0x1000} {
		out = le.AppendUint64(out, n)
	}
	return append(out, code...)
}
