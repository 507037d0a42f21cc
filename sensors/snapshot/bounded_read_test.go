package snapshot

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/testenv/prereq"
)

const (
	snapshotHelperEnv = "STANCH_TEST_SNAPSHOT_HELPER"
	hangingFSEnv      = "STANCH_TEST_SILENT_FILES" // the directory to mount them at
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == thawCommand {
		if err := RunThawer(os.Args[2]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(freezeCgroupEnv); path != "" {
		freezeForever(path, os.Getenv(freezeUntilEnv))
	}
	if os.Getenv(snapshotHelperEnv) == "1" {
		if err := ServeHelper(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(hangingFSEnv); dir != "" {
		if err := serveHangingFS(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hangingFS is a file system with one executable, as a container could mount. In silent mode it does not respond. It
// runs in a separate process, because a process that executes its file waits for it.
type hangingFS struct {
	data []byte
	fd   int

	mu              sync.Mutex
	hanging         bool
	pendingRequests [][]byte
}

// hangingFSProcess is that process. It executes commands, one word per line.
type hangingFSProcess struct {
	dir string
	in  io.WriteCloser
	out *bufio.Reader
}

func startHangingFS(t *testing.T, program string) *hangingFSProcess {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		prereq.SkipOrFail(t, "/dev/fuse: %v", err)
	}
	f := &hangingFSProcess{dir: t.TempDir()}
	cmd := exec.Command("/proc/self/exe", program)
	cmd.Env = append(os.Environ(), hangingFSEnv+"="+f.dir)
	cmd.Stderr = os.Stderr
	var err error
	if f.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = f.in.Close()
		_ = cmd.Wait()
		_ = unix.Unmount(f.dir, unix.MNT_DETACH)
	})
	if line, err := f.out.ReadString('\n'); err != nil || line != "ready\n" {
		prereq.SkipOrFail(t, "a FUSE mount: %v", err)
	}
	return f
}

func (f *hangingFSProcess) sendCommand(t *testing.T, word string) {
	t.Helper()
	fmt.Fprintln(f.in, word)
	if line, err := f.out.ReadString('\n'); err != nil || line != word+"\n" {
		t.Fatalf("%s: %q, %v", word, line, err)
	}
}

func serveHangingFS(dir string) error {
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s := &hangingFS{data: data, fd: fd}
	if err := unix.Mount("stanch-test", dir, "fuse", 0,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		return err
	}
	go s.serve()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); fmt.Println(in.Text()) {
		s.mu.Lock()
		if s.hanging = in.Text() == "hush"; !s.hanging {
			for _, request := range s.pendingRequests {
				s.reply(request)
			}
			s.pendingRequests = nil
		}
		s.mu.Unlock()
	}
	return nil // the exit of this process unmounts the file system
}

func (s *hangingFS) serve() {
	for {
		request := make([]byte, 1<<20)
		n, err := unix.Read(s.fd, request)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.hanging {
			s.pendingRequests = append(s.pendingRequests, request[:n])
		} else {
			s.reply(request[:n])
		}
		s.mu.Unlock()
	}
}

// reply implements the part of the protocol in linux/fuse.h that an executable needs.
func (s *hangingFS) reply(request []byte) {
	const lookup, forget, getattr, open, read, initialize, opendir = 1, 2, 3, 14, 15, 26, 27
	opcode, unique, node := binary.NativeEndian.Uint32(request[4:]), binary.NativeEndian.Uint64(request[8:]),
		binary.NativeEndian.Uint64(request[16:])
	body, errno := []byte{}, 0
	switch opcode {
	case initialize:
		body = make([]byte, 64)
		binary.NativeEndian.PutUint32(body, 7)
		binary.NativeEndian.PutUint32(body[4:], 31)
		binary.NativeEndian.PutUint32(body[20:], 1<<16) // max_write
	case lookup:
		if strings.TrimRight(string(request[40:]), "\x00") != "tool" {
			errno = int(unix.ENOENT)
			break
		}
		body = make([]byte, 40)
		binary.NativeEndian.PutUint64(body, 2)
		body = append(body, s.nodeAttributes(2)...)
	case getattr:
		body = append(make([]byte, 16), s.nodeAttributes(node)...)
	case open, opendir:
		body = make([]byte, 16)
		binary.NativeEndian.PutUint32(body[8:], 1) // FOPEN_DIRECT_IO: every read reaches the file system
		if opcode == open {
			binary.NativeEndian.PutUint32(body[8:], 0)
		}
	case read:
		at, size := binary.NativeEndian.Uint64(request[48:]), uint64(binary.NativeEndian.Uint32(request[56:]))
		at = min(at, uint64(len(s.data)))
		body = s.data[at:min(at+size, uint64(len(s.data)))]
	case forget:
		return
	default:
		errno = int(unix.ENOSYS)
	}
	out := make([]byte, 16, 16+len(body))
	binary.NativeEndian.PutUint32(out, uint32(16+len(body)))
	binary.NativeEndian.PutUint32(out[4:], uint32(-errno))
	binary.NativeEndian.PutUint64(out[8:], unique)
	_, _ = unix.Write(s.fd, append(out, body...)) // the requester may be gone
}

func (s *hangingFS) nodeAttributes(node uint64) []byte {
	a := make([]byte, 88)
	mode, size := uint32(unix.S_IFDIR|0o755), uint64(0)
	if node == 2 {
		mode, size = unix.S_IFREG|0o755, uint64(len(s.data))
	}
	binary.NativeEndian.PutUint64(a, node)
	binary.NativeEndian.PutUint64(a[8:], size)
	binary.NativeEndian.PutUint32(a[60:], mode)
	binary.NativeEndian.PutUint32(a[64:], 1)
	return a
}

// startHangingContainer starts one process whose executable is on such a file system, and one ordinary process.
func startHangingContainer(t *testing.T) (dir string, files *hangingFSProcess, silent, ordinary int) {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	dir = newCgroup(t)
	files = startHangingFS(t, sleep)
	a := startInCgroup(t, dir, exec.Command(filepath.Join(files.dir, "tool"), "600"))
	b := startInCgroup(t, dir, exec.Command(sleep, "600"))
	waitUntil(t, "both run", func() bool {
		for _, c := range []*exec.Cmd{a, b} {
			raw, err := os.ReadFile(procDir(c.Process.Pid) + "/status")
			if err != nil || !strings.Contains(string(raw), "(sleeping)") {
				return false
			}
		}
		return true
	})
	files.sendCommand(t, "hush")
	t.Cleanup(func() { files.sendCommand(t, "answer") }) // before its process is killed, which blocks too
	return dir, files, a.Process.Pid, b.Process.Pid
}

func TestHangingFileDoesNotAffectTheRestOfASnapshot(t *testing.T) {
	dir, _, silent, ordinary := startHangingContainer(t)
	began := time.Now()
	taken, _, err := Take(context.Background(), Target{CgroupDirs: []string{dir}}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
	if findProcess(t, taken, silent).ExeSHA256 != "" || findProcess(t, taken, ordinary).ExeSHA256 == "" {
		t.Errorf("hashes: %+v", taken.Processes)
	}
	if !strings.Contains(strings.Join(taken.Missing, "\n"), errReadStuck.Error()) {
		t.Errorf("the missing part is not listed: %q", taken.Missing)
	}
}

func TestStuckSnapshotHelpersAreLimited(t *testing.T) {
	dir, files, _, ordinary := startHangingContainer(t)
	t.Setenv(snapshotHelperEnv, "1")
	h := NewHelperPool("/proc/self/exe")
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		waitUntil(t, "no helper is left", func() bool { return len(h.slots) == 0 })
	})
	h.Prewarm()
	target := Target{CgroupDirs: []string{dir}}
	for range maxHelpers {
		taken, _, err := h.Take(context.Background(), target, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if findProcess(t, taken, ordinary).ExeSHA256 == "" {
			t.Errorf("hashes: %+v", taken.Processes)
		}
	}
	if len(h.slots) == maxHelpers && h.prewarmed == nil { // this kernel cannot end a process that is blocked in a read
		if _, _, err := h.Take(context.Background(), target, Limits{}); !errors.Is(err, ErrTooManyHelpers) {
			t.Errorf("one more: %v", err)
		}
	}
	files.sendCommand(t, "answer")
	waitUntil(t, "they exit after the response", func() bool { return len(h.slots) <= 1 })
	if _, _, err := h.Take(context.Background(), target, Limits{}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := h.Take(ctx, target, Limits{}); err == nil {
		t.Error("a canceled call returned a result")
	}
}
