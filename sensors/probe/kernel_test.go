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

func TestExecAndExitAreSeenFromTheFirstOn(t *testing.T) {
	needKernel(t)
	w := watch(t, Options{Node: "n1"})
	dir, id := cgroup(t, "")
	before := time.Now()
	cmd := inCgroup(t, dir, exec.Command("/bin/sh", "-c", "cd /tmp; /bin/sleep 0 'two words'; exit 7"))
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Fatal(err)
	}
	e := w.wait(t, "exec of sh", func(e *sensors.Event) bool {
		return kindIn(sensors.KindExec, id)(e) && e.Process.PID == uint32(cmd.Process.Pid)
	})
	real, _ := filepath.EvalSymlinks("/bin/sh")
	wd, _ := os.Getwd()
	p := e.Process
	if p.Exe != real || p.Name != "sh" || strings.Join(p.Args, "|") != "/bin/sh|-c|cd /tmp; /bin/sleep 0 'two words'; exit 7" || p.Cwd != wd ||
		p.PPID != uint32(os.Getpid()) || p.UID != 0 || p.UpperLayer || p.Memfd || p.Deleted || p.StdioSockets != 0 || p.StartNS == 0 {
		t.Errorf("exec: %+v", p)
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil || st.Ino != p.Inode || st.Dev != p.Device {
		t.Errorf("inode %d device %#x, want %d %#x (%v)", p.Inode, p.Device, st.Ino, st.Dev, err)
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
	child := w.wait(t, "exec of sleep", func(e *sensors.Event) bool {
		return kindIn(sensors.KindExec, id)(e) && e.Process.ExeName() == "sleep"
	})
	if child.Process.Cwd != "/tmp" || child.Process.Args[2] != "two words" || child.Process.Ancestors[0].Args[0] != "/bin/sh" {
		t.Errorf("child: %+v", child.Process)
	}
	exit := w.wait(t, "exit of sh", func(e *sensors.Event) bool {
		return kindIn(sensors.KindExit, id)(e) && e.Process.PID == uint32(cmd.Process.Pid)
	})
	if exit.ExitCode != 7 || exit.Process.StartNS != p.StartNS {
		t.Errorf("exit: %+v", exit)
	}
}

func TestTheHostIsFiltered(t *testing.T) {
	needKernel(t)
	w := watch(t, Options{})
	dir, id := cgroup(t, "")
	if err := exec.Command("/bin/true").Run(); err != nil {
		t.Fatal(err)
	}
	if err := inCgroup(t, dir, exec.Command("/bin/true")).Run(); err != nil {
		t.Fatal(err)
	}
	w.wait(t, "exec in the cgroup", kindIn(sensors.KindExec, id))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Container.CgroupPath == "/" || e.Container.CgroupID == 0 {
			t.Errorf("an event of the host: %+v", e)
		}
	}
	for _, h := range w.probe.Status().Hooks {
		if !h.On {
			t.Errorf("hook %s is off: %s", h.Hook, h.Reason)
		}
	}
}

func TestLongArgumentsAreCutAndSaidSo(t *testing.T) {
	needKernel(t)
	w := watch(t, Options{})
	dir, id := cgroup(t, "")
	if err := inCgroup(t, dir, exec.Command("/bin/true", strings.Repeat("x", 5000))).Run(); err != nil {
		t.Fatal(err)
	}
	e := w.wait(t, "exec", kindIn(sensors.KindExec, id))
	if !e.Process.ArgsTruncated || len(e.Process.Args) != 2 || len(e.Process.Args[1]) < 1500 {
		t.Errorf("%+v", e.Process)
	}
}

func TestFilelessDeletedAndSocketsAsStdio(t *testing.T) {
	needKernel(t)
	w := watch(t, Options{})
	dir, id := cgroup(t, "")
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
		if err := inCgroup(t, dir, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), "0")).Run(); err != nil {
			t.Fatal(err)
		}
		e := w.wait(t, "exec of a memfd", func(e *sensors.Event) bool { return kindIn(sensors.KindExec, id)(e) && e.Process.Memfd })
		if e.Process.Exe != "memfd:payload" || e.Process.Deleted {
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
		if err := inCgroup(t, dir, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), "0")).Run(); err != nil {
			t.Fatal(err)
		}
		e := w.wait(t, "exec of a deleted file", func(e *sensors.Event) bool { return kindIn(sensors.KindExec, id)(e) && e.Process.Deleted })
		if e.Process.Exe != path || e.Process.Memfd {
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
		cmd := inCgroup(t, dir, exec.Command("/bin/sh", "-c", "exit 0"))
		cmd.Stdin, cmd.Stdout = f, f
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		e := w.wait(t, "exec with sockets", func(e *sensors.Event) bool {
			return kindIn(sensors.KindExec, id)(e) && e.Process.PID == uint32(cmd.Process.Pid)
		})
		if e.Process.StdioSockets != 3 {
			t.Errorf("stdio sockets %b, want 011", e.Process.StdioSockets)
		}
	})
}

func TestDriftIsTheUpperLayerAndNotACopyUp(t *testing.T) {
	needKernel(t)
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The upper layer must not lie on an overlay itself.
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
		skip(t, "overlayfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	if err := os.Chmod(filepath.Join(merged, "chmodded"), 0o711); err != nil {
		t.Fatal(err)
	}
	body = append(body, "changed"...)
	write("merged/replaced")
	write("merged/new")

	w := watch(t, Options{})
	dir, id := cgroup(t, "")
	for name, upper := range map[string]bool{"image": false, "chmodded": false, "replaced": true, "new": true} {
		if err := inCgroup(t, dir, exec.Command(filepath.Join(merged, name))).Run(); err != nil {
			t.Fatal(err)
		}
		e := w.wait(t, "exec of "+name, func(e *sensors.Event) bool {
			return kindIn(sensors.KindExec, id)(e) && e.Process.ExeName() == name
		})
		if e.Process.UpperLayer != upper || e.Process.Exe != filepath.Join(merged, name) {
			t.Errorf("%s: upper layer %v, want %v (%+v)", name, e.Process.UpperLayer, upper, e.Process)
		}
	}
}

func TestConnections(t *testing.T) {
	needKernel(t)
	w := watch(t, Options{})
	dir, id := cgroup(t, "")
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
		out, err := inCgroup(t, dir, self("connect", c.host, fmt.Sprint(port))).CombinedOutput()
		e := w.wait(t, "connect to "+c.host+" "+string(out)+fmt.Sprint(err), kindIn(sensors.KindConnect, id))
		want := sensors.Network{Protocol: "tcp", Family: c.family, Address: c.address, Port: uint16(port)}
		if e.Network != want || e.Process.Args[1] != "connect" {
			t.Errorf("to %s: %+v by %+v", c.host, e.Network, e.Process)
		}
	}
}

func TestSensitiveFilesByWhatWasOpened(t *testing.T) {
	needKernel(t)
	w := watch(t, Options{})
	dir, id := cgroup(t, "")
	base := t.TempDir()
	token := filepath.Join(base, "run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(filepath.Join(token, "..2026_01_01"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"..data": "..2026_01_01", "token": "..data/token", "innocent": "..data/token"} {
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
	// By another name, and as a bare name from inside: the file counts. One that is only called token does not.
	if err := inCgroup(t, dir, exec.Command("/bin/cat", plain, filepath.Join(token, "innocent"))).Run(); err != nil {
		t.Fatal(err)
	}
	e := w.wait(t, "open of the token", kindIn(sensors.KindOpen, id))
	if e.File.Path != secret || e.File.Sensitive != sensitiveToken || e.File.Write || e.Process.ExeName() != "cat" {
		t.Errorf("%+v", e)
	}
	if err := inCgroup(t, dir, exec.Command("/bin/cat", "/etc/shadow")).Run(); err != nil {
		t.Fatal(err)
	}
	e = w.wait(t, "open of shadow", func(e *sensors.Event) bool { return kindIn(sensors.KindOpen, id)(e) && e.File.Path == "/etc/shadow" })
	if e.File.Sensitive != sensitiveShadow {
		t.Errorf("%+v", e.File)
	}
}

func TestAFullRingIsCounted(t *testing.T) {
	needKernel(t)
	p, err := Load(Options{AlertBytes: 4096 * 2})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dir, _ := cgroup(t, "")
	// Nobody reads.
	if err := inCgroup(t, dir, exec.Command("/bin/sh", "-c", "for i in $(seq 60); do /bin/true; done")).Run(); err != nil {
		t.Fatal(err)
	}
	if n := p.Status().Drops["alerts ring full"]; n == 0 {
		t.Errorf("drops: %+v", p.Status().Drops)
	}
}
