package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
	"stanch/testenv/prereq"
)

func requireKernel(t *testing.T) string {
	t.Helper()
	root, err := containermeta.FindCgroupRoot()
	prereq.RequireRoot(t)
	if err != nil {
		prereq.SkipOrFail(t, "%v", err)
	}
	return root
}

func newCgroup(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(requireKernel(t), "stanch-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		waitUntil(t, "the cgroup goes away", func() bool {
			err := os.Remove(dir)
			return err == nil ||
				errors.Is(err, os.ErrNotExist)
		})
	})
	return dir
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func startInCgroup(t *testing.T, dir string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func findProcess(t *testing.T, s Snapshot, pid int) Process {
	t.Helper()
	i := slices.IndexFunc(s.Processes, func(p Process) bool { return p.PID == pid })
	if i < 0 {
		t.Fatalf("process %d is not in %+v", pid, s)
	}
	return s.Processes[i]
}

func TestSnapshotContainsVolatileStateButNoSecrets(t *testing.T) {
	dir := newCgroup(t)
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tcp, _ := ln.(*net.TCPListener)
	listener, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	plain := exec.Command("/bin/sh", "-c", "read x", "--password=hunter22", "postgres://bob:hunter22@db/x")
	plain.Env = []string{"API_TOKEN=hunter22", "HOME=/"}
	plain.ExtraFiles = []*os.File{listener}
	in, err := plain.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	startInCgroup(t, dir, plain)

	fd, err := unix.MemfdCreate("payload", 0)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(fd), "payload")
	defer mem.Close()
	if _, err := mem.Write(sleep); err != nil {
		t.Fatal(err)
	}
	fileless := startInCgroup(t, dir, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), "60"))

	path := filepath.Join(t.TempDir(), "gone")
	if err := os.WriteFile(path, append(sleep, "another"...), 0o700); err != nil {
		t.Fatal(err)
	}
	gone := startInCgroup(t, dir, exec.Command(path, "60"))
	waitUntil(t, "it runs", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", gone.Process.Pid))
		return err == nil && string(b) == "gone\n"
	})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	s, blobs, err := Take(context.Background(), Target{CgroupDirs: []string{dir}}, Limits{})
	if err != nil || len(s.Missing) != 0 || len(s.Processes) != 3 {
		t.Fatalf("%+v, %v", s, err)
	}
	p := findProcess(t, s, plain.Process.Pid)
	if !slices.Equal(p.EnvNames, []string{"API_TOKEN", "HOME"}) || p.PPID != os.Getpid() || p.ExeSHA256 == "" ||
		p.Cwd == "" || p.State == "" ||
		p.Cgroup != "/"+filepath.Base(dir) || time.Since(p.StartedAt) > time.Minute ||
		time.Since(p.StartedAt) < -2*time.Second {
		t.Errorf("%+v", p)
	}
	if m := findProcess(t, s, fileless.Process.Pid); !m.ExeIsMemfd || m.Exe != "memfd:payload" {
		t.Errorf("%+v", m)
	}
	if g := findProcess(t, s, gone.Process.Pid); !g.ExeDeleted || g.Exe != path {
		t.Errorf("%+v", g)
	}
	whys := map[string]int{}
	for _, b := range blobs {
		whys[b.Reason]++
		if !bytes.HasPrefix(b.Data, sleep) || b.FileSize != int64(len(b.Data)) {
			t.Errorf("blob %+v is not the executable", b)
		}
	}
	if len(whys) != 2 || whys["memfd"] != 1 || whys["deleted"] != 1 {
		t.Errorf("blobs: %v", whys)
	}
	listening := slices.ContainsFunc(s.Sockets, func(k Socket) bool {
		return k.Protocol == "tcp" && k.Local == ln.Addr().String() && k.State == "listen" &&
			slices.Contains(k.PIDs, plain.Process.Pid)
	})
	if !listening {
		t.Errorf("sockets: %+v", s.Sockets)
	}
	b, err := json.Marshal(s)
	if err != nil || bytes.Contains(b, []byte("hunter22")) {
		t.Errorf("a secret is in %s (%v)", b, err)
	}
}

func TestSnapshotListsWhatExceedsTheLimits(t *testing.T) {
	dir := newCgroup(t)
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, sleep, 0o700); err != nil {
		t.Fatal(err)
	}
	startInCgroup(t, dir, exec.Command(path, "60"))
	startInCgroup(t, dir, exec.Command("/bin/sleep", "60"))
	waitUntil(t, "it runs", func() bool { p, _ := containermeta.ListPIDs(dir); return len(p) == 2 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	take := func(ctx context.Context, lim Limits) (string, []ExecutableCopy) {
		s, blobs, err := Take(ctx, Target{CgroupDirs: []string{dir}}, lim)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.Missing, "\n"), blobs
	}
	for name, c := range map[string]struct {
		lim  Limits
		want string
	}{
		"processes": {Limits{MaxProcesses: 1}, "1 of 2 processes"},
		"files":     {Limits{MaxFilesPerProcess: 1}, "open files: more than the limit"},
		"copy":      {Limits{MaxExecutableBytes: 10}, "copied 10 of"},
		"hash":      {Limits{MaxHashBytes: 10}, "not hashed"},
	} {
		if got, _ := take(context.Background(), c.lim); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q does not contain %q", name, got, c.want)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if got, _ := take(ended, Limits{}); !strings.Contains(got, "timed out") {
		t.Errorf("a canceled context: %q", got)
	}
	if _, _, err := Take(context.Background(), Target{CgroupDirs: []string{dir + "-none"}}, Limits{}); err == nil {
		t.Error("a missing cgroup returned a snapshot")
	}
}

func FuzzParseSocketLine(f *testing.F) {
	f.Add("0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 12345", "tcp")
	f.Add("ffff 3 3 0003 2 1 0 0 99", "packet")
	f.Fuzz(func(_ *testing.T, line, protocol string) {
		for _, table := range procNetTables {
			parseSocketLine(strings.Fields(line), protocol, table.inode)
		}
	})
}

func TestSocketLine(t *testing.T) {
	f := strings.Fields("0: 0100007F:1F90 0200000A:0050 01 0:0 0:0 0 0 0 12345 1")
	s, ok := parseSocketLine(f, "tcp", 9)
	if !ok || s.Local != "127.0.0.1:8080" || s.Remote != "10.0.0.2:80" || s.State != "established" || s.Inode != 12345 {
		t.Errorf("%+v", s)
	}
}
