package probe

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
)

func TestExecAndExitAreObservedFromTheStart(t *testing.T) {
	requireKernel(t)
	w := startCollector(t, Options{Node: "n1"})
	dir, id := newCgroup(t, "")
	before := time.Now()
	cmd := startCommandInCgroup(t, dir, exec.Command("/bin/sh", "-c", "cd /tmp; /bin/sleep 0 'two words'; exit 7"))
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Fatal(err)
	}
	e := w.waitForEvent(t, "exec of sh", func(e *sensors.Event) bool {
		return matchKindInCgroup(sensors.KindExec, id)(e) && e.Process.PID == uint32(cmd.Process.Pid)
	})
	real, _ := filepath.EvalSymlinks("/bin/sh")
	wd, _ := os.Getwd()
	p := e.Process
	if p.Exe != real || p.Name != "sh" || strings.Join(p.Args,
		"|") != "/bin/sh|-c|cd /tmp; /bin/sleep 0 'two words'; exit 7" || p.Cwd != wd ||
		p.PPID != uint32(os.Getpid()) || p.UID != 0 || p.ExeInUpperLayer || p.ExeIsMemfd || p.ExeDeleted ||
		p.StdioSockets != 0 || p.StartNS == 0 {
		t.Errorf("exec: %+v", p)
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil || st.Ino != p.ExeInode || st.Dev != p.ExeDevice {
		t.Errorf("inode %d device %#x, want %d %#x (%v)", p.ExeInode, p.ExeDevice, st.Ino, st.Dev, err)
	}
	if e.Time.Before(before.Add(-50*time.Millisecond)) || e.Time.After(time.Now().Add(50*time.Millisecond)) {
		t.Errorf("time %v is not within the test (%v on)", e.Time, before)
	}
	if len(p.Ancestors) == 0 || p.Ancestors[0].PID != uint32(os.Getpid()) || p.Ancestors[0].Exe == "" {
		t.Errorf("ancestors: %+v", p.Ancestors)
	}
	if e.Container.CgroupPath != "/"+filepath.Base(dir) || e.Node != "n1" || e.ID == "" {
		t.Errorf("event: %+v", e)
	}
	child := w.waitForEvent(t, "exec of sleep", func(e *sensors.Event) bool {
		return matchKindInCgroup(sensors.KindExec, id)(e) && e.Process.ExeName() == "sleep"
	})
	if child.Process.Cwd != "/tmp" || child.Process.Args[2] != "two words" ||
		child.Process.Ancestors[0].Args[0] != "/bin/sh" {
		t.Errorf("child: %+v", child.Process)
	}
	exit := w.waitForEvent(t, "exit of sh", func(e *sensors.Event) bool {
		return matchKindInCgroup(sensors.KindExit, id)(e) && e.Process.PID == uint32(cmd.Process.Pid)
	})
	if exit.ExitCode != 7 || exit.Process.StartNS != p.StartNS {
		t.Errorf("exit: %+v", exit)
	}
}

func TestHostEventsAreFiltered(t *testing.T) {
	requireKernel(t)
	w := startCollector(t, Options{})
	dir, id := newCgroup(t, "")
	if err := exec.Command("/bin/true").Run(); err != nil {
		t.Fatal(err)
	}
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/true")).Run(); err != nil {
		t.Fatal(err)
	}
	w.waitForEvent(t, "exec in the cgroup", matchKindInCgroup(sensors.KindExec, id))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Container.CgroupPath == "/" || e.Container.CgroupID == 0 {
			t.Errorf("a host event: %+v", e)
		}
	}
	for _, h := range w.probe.Status().Hooks {
		if !h.Enabled {
			t.Errorf("hook %s is disabled: %s", h.Hook, h.Reason)
		}
	}
}

func TestLongArgumentsAreTruncatedAndMarked(t *testing.T) {
	requireKernel(t)
	w := startCollector(t, Options{})
	dir, id := newCgroup(t, "")
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/true", strings.Repeat("x", 5000))).Run(); err != nil {
		t.Fatal(err)
	}
	e := w.waitForEvent(t, "exec", matchKindInCgroup(sensors.KindExec, id))
	if !e.Process.ArgsTruncated || len(e.Process.Args) != 2 || len(e.Process.Args[1]) < 1500 {
		t.Errorf("%+v", e.Process)
	}
}

func TestMemfdDeletedExecutableAndSocketStdio(t *testing.T) {
	requireKernel(t)
	w := startCollector(t, Options{})
	dir, id := newCgroup(t, "")
	body, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}

	t.Run("memfd", func(t *testing.T) {
		fd, err := unix.MemfdCreate("payload", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "payload")
		defer f.Close()
		if _, err := f.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := startCommandInCgroup(t, dir, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd),
			"0")).Run(); err != nil {
			t.Fatal(err)
		}
		e := w.waitForEvent(t, "exec of a memfd", func(e *sensors.Event) bool {
			return matchKindInCgroup(sensors.KindExec,
				id)(e) && e.Process.ExeIsMemfd
		})
		if e.Process.Exe != "memfd:payload" || e.Process.ExeDeleted {
			t.Errorf("%+v", e.Process)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "gone")
		if err := os.WriteFile(path, body, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := startCommandInCgroup(t, dir, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()),
			"0")).Run(); err != nil {
			t.Fatal(err)
		}
		e := w.waitForEvent(t, "exec of a deleted file",
			func(e *sensors.Event) bool { return matchKindInCgroup(sensors.KindExec, id)(e) && e.Process.ExeDeleted })
		if e.Process.Exe != path || e.Process.ExeIsMemfd {
			t.Errorf("%+v", e.Process)
		}
	})
	t.Run("reverse shell", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		tcp, _ := conn.(*net.TCPConn)
		f, err := tcp.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := startCommandInCgroup(t, dir, exec.Command("/bin/sh", "-c", "exit 0"))
		cmd.Stdin, cmd.Stdout = f, f
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		e := w.waitForEvent(t, "exec with sockets", func(e *sensors.Event) bool {
			return matchKindInCgroup(sensors.KindExec, id)(e) && e.Process.PID == uint32(cmd.Process.Pid)
		})
		if e.Process.StdioSockets != 3 {
			t.Errorf("stdio sockets %b, want 011", e.Process.StdioSockets)
		}
	})
}

func TestUpperLayerIsReportedExceptCopyUp(t *testing.T) {
	requireKernel(t)
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The upper layer must not be on an overlay itself.
	if err := unix.Mount("tmpfs", filepath.Join(base), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	body, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(base, name), body, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("lower/image")
	write("lower/chmodded")
	write("lower/replaced")
	merged := filepath.Join(base, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0,
		fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", base, base, base)); err != nil {
		skipOrFail(t, "overlayfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	if err := os.Chmod(filepath.Join(merged, "chmodded"), 0o711); err != nil {
		t.Fatal(err)
	}
	body = append(body, "changed"...)
	write("merged/replaced")
	write("merged/new")

	w := startCollector(t, Options{})
	dir, id := newCgroup(t, "")
	for name, upper := range map[string]bool{"image": false, "chmodded": false, "replaced": true, "new": true} {
		if err := startCommandInCgroup(t, dir, exec.Command(filepath.Join(merged, name))).Run(); err != nil {
			t.Fatal(err)
		}
		e := w.waitForEvent(t, "exec of "+name, func(e *sensors.Event) bool {
			return matchKindInCgroup(sensors.KindExec, id)(e) && e.Process.ExeName() == name
		})
		if e.Process.ExeInUpperLayer != upper || e.Process.Exe != filepath.Join(merged, name) {
			t.Errorf("%s: upper layer %v, want %v (%+v)", name, e.Process.ExeInUpperLayer, upper, e.Process)
		}
	}
}

func TestConnections(t *testing.T) {
	requireKernel(t)
	w := startCollector(t, Options{})
	dir, id := newCgroup(t, "")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	port := ln.Addr().(*net.TCPAddr).Port
	for _, c := range []struct{ host, family, address string }{
		{"127.0.0.1", "ipv4", "127.0.0.1"},
		{"::ffff:127.0.0.1", "ipv4", "127.0.0.1"},
		{"::1", "ipv6", "::1"},
	} {
		w.mu.Lock()
		w.events = nil
		w.mu.Unlock()
		out, err := startCommandInCgroup(t, dir, selfCommand("connect", c.host, fmt.Sprint(port))).CombinedOutput()
		e := w.waitForEvent(t, "connect to "+c.host+" "+string(out)+fmt.Sprint(err), matchKindInCgroup(sensors.KindConnect,
			id))
		want := sensors.Network{Protocol: "tcp", Family: c.family, Address: c.address, Port: uint16(port)}
		if e.Network != want || e.Process.Args[1] != "connect" {
			t.Errorf("to %s: %+v by %+v", c.host, e.Network, e.Process)
		}
	}
}

func TestSensitiveFilesAreRecognizedByTheOpenedFile(t *testing.T) {
	requireKernel(t)
	w := startCollector(t, Options{})
	dir, id := newCgroup(t, "")
	base := t.TempDir()
	token := filepath.Join(base, "run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(filepath.Join(token, "..2026_01_01"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"..data": "..2026_01_01", "token": "..data/token",
		"innocent": "..data/token",
	} {
		if err := os.Symlink(target, filepath.Join(token, name)); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(token, "..2026_01_01/token")
	plain := filepath.Join(base, "token")
	for _, f := range []string{secret, plain} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The file is recognized under another name and by a relative path. A file that is merely named token is not.
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/cat", plain,
		filepath.Join(token, "innocent"))).Run(); err != nil {
		t.Fatal(err)
	}
	e := w.waitForEvent(t, "open of the token", matchKindInCgroup(sensors.KindFileOpen, id))
	if e.File.Path != secret || e.File.SensitiveClass != sensitiveServiceAccountToken || e.File.OpenedForWrite ||
		e.Process.ExeName() != "cat" {
		t.Errorf("%+v", e)
	}
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/cat", "/etc/shadow")).Run(); err != nil {
		t.Fatal(err)
	}
	e = w.waitForEvent(t, "open of shadow", func(e *sensors.Event) bool {
		return matchKindInCgroup(sensors.KindFileOpen, id)(e) && e.File.Path == "/etc/shadow"
	})
	if e.File.SensitiveClass != sensitiveShadow {
		t.Errorf("%+v", e.File)
	}
}

func TestFullRingBufferCountsDrops(t *testing.T) {
	requireKernel(t)
	p, err := Load(Options{AlertRingBytes: 4096 * 2})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dir, _ := newCgroup(t, "")
	// The ring buffer is not read.
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/sh", "-c",
		"for i in $(seq 60); do /bin/true; done")).Run(); err != nil {
		t.Fatal(err)
	}
	if n := p.Status().Drops["alerts ring full"]; n == 0 {
		t.Errorf("drops: %+v", p.Status().Drops)
	}
}
