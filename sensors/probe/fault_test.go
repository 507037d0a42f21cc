package probe

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"stanch/bpf"
	"stanch/sensors"
)

func TestUnsupportedHookDoesNotAffectOthers(t *testing.T) {
	requireKernel(t)
	p, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	spec, err := bpf.LoadObserve()
	if err != nil {
		t.Fatal(err)
	}
	rejected := spec.Programs[bpf.ObserveProgObserveOpenat]
	rejected.Instructions = rejected.Instructions[len(rejected.Instructions)-1:]
	hooks := []hookAttachment{
		{HookExec, bpf.ObserveProgObserveExec, false, attachTracing},
		{HookOpen, bpf.ObserveProgObserveOpenat, false, attachSyscall("sys_exit_openat")},
		{HookOpen, bpf.ObserveProgObserveCreat, false, attachSyscall("sys_exit_nonesuch")},
		{HookListen, bpf.ObserveProgObserveListen, false, attachSyscall("sys_exit_listen")},
	}
	loaded := loadEach(spec, hooks, p.collection.Maps)
	before := len(p.links)
	for i, want := range []string{"", "verifier", "no such hook", ""} {
		err := p.attachHook(hooks[i], loaded[i])
		if (err == nil) != (want == "") || err != nil && !strings.Contains(shortReason(err), want) {
			t.Errorf("%s: %v, want %q", hooks[i].program, err, want)
		}
	}
	if got := len(p.links) - before; got != 2 {
		t.Errorf("%d programs are attached, want 2", got)
	}
}

func TestDisabledHookIsReportedInStatus(t *testing.T) {
	requireKernel(t)
	others := slices.DeleteFunc(slices.Clone(Hooks), func(h Hook) bool { return h == HookExec })
	w := startCollector(t, Options{DisabledHooks: others})
	for _, h := range w.probe.Status().Hooks {
		if h.Enabled != (h.Hook == HookExec) || h.Enabled == (h.Reason != "") {
			t.Errorf("%+v", h)
		}
	}
	dir, id := newCgroup(t, "")
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/cat", "/etc/shadow")).Run(); err != nil {
		t.Fatal(err)
	}
	w.waitForEvent(t, "exec", matchKindInCgroup(sensors.KindExec, id))
	if err := w.probe.IgnoreCgroup(id); err != nil {
		t.Fatal(err)
	}
	before := w.probe.Status().Events[sensors.KindExec]
	if err := startCommandInCgroup(t, dir, exec.Command("/bin/true")).Run(); err != nil {
		t.Fatal(err)
	}
	other, otherID := newCgroup(t, "")
	if err := startCommandInCgroup(t, other, exec.Command("/bin/true")).Run(); err != nil {
		t.Fatal(err)
	}
	w.waitForEvent(t, "exec elsewhere", matchKindInCgroup(sensors.KindExec, otherID))
	if after := w.probe.Status().Events[sensors.KindExec]; after != before+1 {
		t.Errorf("%d events after Ignore, want 1", after-before)
	}
	if _, err := Load(Options{DisabledHooks: Hooks}); err == nil {
		t.Error("a probe without hooks was loaded")
	}
}

// TestDescribeBySelf runs the shared kernel code without its hooks. Where BPF_PROG_TEST_RUN works and hooks do not, it
// still tests the process fields of a record.
func TestDescribeBySelf(t *testing.T) {
	requireKernel(t)
	spec, err := bpf.LoadObserve()
	if err != nil {
		t.Fatal(err)
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{bpf.ObserveProgObserveSelf: spec.Programs[bpf.ObserveProgObserveSelf]}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	ring, err := ringbuf.NewReader(coll.Maps[bpf.ObserveMapAlerts])
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if _, err := coll.Programs[bpf.ObserveProgObserveSelf].Run(&ebpf.RunOptions{Context: make([]byte, 16)}); err != nil {
		t.Fatal(err)
	}
	ring.SetDeadline(time.Now().Add(5 * time.Second))
	rec, err := ring.Read()
	if err != nil {
		t.Fatal(err)
	}
	d, err := decodeRecord(rec.RawSample)
	if err != nil || d.event.Process.ExeName() != "probe.test" || len(d.event.Process.Args) == 0 ||
		d.event.Process.Cwd == "" {
		t.Errorf("%+v, %v", d.event.Process, err)
	}
}

func TestRemovedVethIsReported(t *testing.T) {
	n := newNetworkLab(t)
	l := openTestLock(t, newLockDir(t))
	r := EgressLockRequest{
		LeaseID: "w", Cgroups: []uint64{n.podID}, Veths: n.veths,
		ExpiresAt: time.Now().Add(time.Minute),
	}
	if st, err := l.Apply(r); err != nil || !st.VethLocked {
		t.Fatalf("%+v, %v", st, err)
	}
	runIPCommand(t, "link", "del", n.veths[0].Name)
	waitUntil(t, "the veth is removed",
		func() bool { st, err := l.StateOfCgroup(n.podID); return err == nil && st.Active && !st.VethLocked })
	if st, err := l.Apply(r); err != nil || st.VethLocked || st.VethError == "" || !st.Active {
		t.Errorf("%+v, %v", st, err)
	}
}

// loadedPrograms returns the programs of probes that are in the kernel.
func loadedPrograms(t *testing.T) map[ebpf.ProgramID]bool {
	t.Helper()
	found := map[ebpf.ProgramID]bool{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(info.Name, "observe_") {
			found[id] = true
		}
		_ = p.Close()
	}
	return found
}

// The kernel detaches in the background, so Close does not wait. What it detaches is gone soon.
func TestCloseDetachesAllPrograms(t *testing.T) {
	requireKernel(t)
	before := loadedPrograms(t)
	p, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	own := loadedPrograms(t)
	maps.DeleteFunc(own, func(id ebpf.ProgramID, _ bool) bool { return before[id] })
	if len(own) < len(hookAttachments)/2 {
		t.Fatalf("only %d programs are attached", len(own))
	}
	if len(p.attached.open) > 0 {
		t.Errorf("closing %d links waits for the kernel", len(p.attached.open))
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); len(own) > 0; {
		left := loadedPrograms(t)
		maps.DeleteFunc(own, func(id ebpf.ProgramID, _ bool) bool { return !left[id] })
		if time.Now().After(end) {
			t.Fatalf("%d programs are still in the kernel", len(own))
		}
	}
}
