package snapshot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
)

const (
	thawCommand     = "thaw-at-end"
	freezeCgroupEnv = "STANCH_TEST_FREEZE"       // the cgroup to freeze
	freezeUntilEnv  = "STANCH_TEST_FREEZE_UNTIL" // in nanoseconds since the Unix epoch
)

// The sensor's pod is deleted during a freeze, and the container runtime kills every process in its cgroups.
func TestFreezeEndsOnTimeAfterEveryProcessOfTheSensorIsKilled(t *testing.T) {
	dir, pod := startWorkload(t), newCgroup(t)
	until := time.Now().Add(3 * time.Second)
	sensor := exec.Command("/proc/self/exe")
	sensor.Env = append(os.Environ(), freezeCgroupEnv+"="+dir, freezeUntilEnv+"="+strconv.FormatInt(until.UnixNano(), 10))
	out, err := sensor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startInCgroup(t, pod, sensor)
	line := make([]byte, 200)
	if n, _ := out.Read(line); string(line[:n]) != "frozen\n" || !isFrozen(dir) {
		t.Fatalf("it does not freeze: %s", line[:n])
	}
	m := freezeMarkerOf(t, dir)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", m.ThawerPID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[2] != "/" && (f[0] != "0" || f[2] != "/"+thawerCgroup) {
			t.Errorf("the thawer is in %s, which ends with the sensor", line)
		}
	}
	if group, err := unix.Getpgid(m.ThawerPID); err != nil || group != m.ThawerPID {
		t.Errorf("the thawer is in process group %d (%v)", group, err)
	}

	_ = unix.Kill(sensor.Process.Pid, unix.SIGKILL)
	writeFile(t, filepath.Join(pod, "cgroup.kill"), "1")
	_ = sensor.Wait()
	if !isFrozen(dir) {
		t.Error("it thaws when the sensor is killed")
	}
	requireThawedOnTime(t, dir, until)
	waitUntil(t, "the thawer ends", func() bool { return !isThawerRunning(m) })
}

func TestFreezeEndsOnTimeWhileTheSensorRuns(t *testing.T) {
	dir, f := startWorkload(t), newTestFreezer(t)
	until := time.Now().Add(time.Second)
	freezeForTest(t, f, "a", dir, until)
	err := f.Freeze(t.Context(), CgroupFreeze{LeaseID: "b", CgroupDir: dir, ExpiresAt: time.Now().Add(time.Minute)})
	if !errors.Is(err, ErrFrozenByOtherLease) || !IsRefused(err) {
		t.Errorf("another lease: %v", err)
	}
	h, ok, err := f.FindFreeze(dir)
	if err != nil || !ok || h.LeaseID != "a" || h.TargetID != "container:c" || !h.ExpiresAt.Equal(until) {
		t.Errorf("frozen for %+v, %v, %v", h, ok, err)
	}
	requireThawedOnTime(t, dir, until)
	waitUntil(t, "no freeze is reported", func() bool { _, ok, err := f.FindFreeze(dir); return err == nil && !ok })
}

func TestFreezeCanBeExtendedAndShortened(t *testing.T) {
	dir, f := startWorkload(t), newTestFreezer(t)
	first := time.Now().Add(1500 * time.Millisecond)
	freezeForTest(t, f, "a", dir, first)
	old := freezeMarkerOf(t, dir)
	freezeForTest(t, f, "a", dir, time.Now().Add(time.Minute))
	waitUntil(t, "the first thawer ends", func() bool { return !isThawerRunning(old) })
	waitUntilTime(t, first.Add(100*time.Millisecond))
	if !isFrozen(dir) {
		t.Fatal("it thaws at its first expiry")
	}
	last := time.Now().Add(time.Second)
	freezeForTest(t, f, "a", dir, last)
	requireThawedOnTime(t, dir, last)
}

func TestFreezeIsReleasedEarly(t *testing.T) {
	dir, other, f := startWorkload(t), startWorkload(t), newTestFreezer(t)
	freezeForTest(t, f, "a", dir, time.Now().Add(time.Minute))
	freezeForTest(t, f, "b", other, time.Now().Add(time.Minute))
	m := freezeMarkerOf(t, dir)
	if err := f.Thaw(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if isFrozen(dir) || isThawerRunning(m) {
		t.Error("it is frozen after its release")
	}
	if !isFrozen(other) {
		t.Error("another lease's freeze ended too")
	}
	if err := f.Thaw(t.Context(), "a"); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := f.ThawAll(t.Context()); err != nil || isFrozen(other) {
		t.Errorf("thaw all: %v", err)
	}
}

func TestPauseByAnotherProcessSurvivesTheEndOfAFreeze(t *testing.T) {
	for name, sensorAlive := range map[string]bool{"with the sensor": true, "without the sensor": false} {
		t.Run(name, func(t *testing.T) {
			dir, f := startWorkload(t), newTestFreezer(t)
			until := time.Now().Add(1500 * time.Millisecond)
			freezeForTest(t, f, "a", dir, until)
			if !sensorAlive {
				_ = f.Close()
			}
			m := freezeMarkerOf(t, dir)
			writeFile(t, filepath.Join(dir, "cgroup.freeze"), "1") // an operator pauses it
			waitUntil(t, "Stanch no longer reports a freeze",
				func() bool { _, ok, err := f.FindFreeze(dir); return err == nil && !ok && !isThawerRunning(m) })
			waitUntilTime(t, until.Add(200*time.Millisecond))
			if err := f.Thaw(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if !isFrozen(dir) {
				t.Error("the operator's pause was removed")
			}
			if err := f.Freeze(t.Context(), CgroupFreeze{
				LeaseID: "a", CgroupDir: dir,
				ExpiresAt: time.Now().Add(time.Minute),
			}); !IsRefused(err) {
				t.Errorf("a cgroup that another process paused was frozen: %v", err)
			}
		})
	}
}

func TestFreezeThatAnotherProcessThawedIsNotReported(t *testing.T) {
	dir, f := startWorkload(t), newTestFreezer(t)
	freezeForTest(t, f, "a", dir, time.Now().Add(time.Minute))
	writeFile(t, filepath.Join(dir, "cgroup.freeze"), "0")
	waitUntil(t, "Stanch no longer reports a freeze",
		func() bool { _, ok, err := f.FindFreeze(dir); return err == nil && !ok })
	freezeForTest(t, f, "a", dir, time.Now().Add(time.Minute)) // the lease applies it again
	if err := f.Thaw(t.Context(), "a"); err != nil || isFrozen(dir) {
		t.Errorf("%v", err)
	}
}

func TestFreezeIsRefusedWhereAnotherProcessFroze(t *testing.T) {
	cases := map[string]func(t *testing.T, dir string) (thaw string, off string){
		"the cgroup": func(t *testing.T, dir string) (string, string) {
			writeFile(t, filepath.Join(dir, "cgroup.freeze"), "1")
			return filepath.Join(dir, "cgroup.freeze"), "0"
		},
		"parent cgroup": func(t *testing.T, dir string) (string, string) {
			above := filepath.Join(filepath.Dir(dir), "cgroup.freeze")
			writeFile(t, above, "1")
			return above, "0"
		},
		"cgroup v1 freezer": func(t *testing.T, dir string) (string, string) {
			return freezeWithCgroupV1(t, dir), "THAWED"
		},
	}
	for name, pause := range cases {
		t.Run(name, func(t *testing.T) {
			f := newTestFreezer(t)
			parent := newCgroup(t)
			dir := filepath.Join(parent, "container")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { waitUntil(t, "the cgroup goes away", func() bool { return os.Remove(dir) == nil }) })
			startInCgroup(t, dir, exec.Command("/bin/sleep", "60"))
			thaw, off := pause(t, dir)
			t.Cleanup(func() { writeFile(t, thaw, off) })
			err := f.Freeze(t.Context(), CgroupFreeze{LeaseID: "a", CgroupDir: dir, ExpiresAt: time.Now().Add(time.Minute)})
			if !IsRefused(err) || !strings.Contains(err.Error(), "already") {
				t.Fatalf("%v", err)
			}
			if _, ok, err := f.FindFreeze(dir); ok || err != nil {
				t.Errorf("held: %v, %v", ok, err)
			}
			writeFile(t, thaw, off)
			freezeForTest(t, f, "a", dir, time.Now().Add(time.Minute))
			if err := f.Thaw(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFreezeIsFoundAfterSensorRestart(t *testing.T) {
	dir, orphan, f := startWorkload(t), startWorkload(t), newTestFreezer(t)
	until := time.Now().Add(2 * time.Second)
	freezeForTest(t, f, "a", dir, until)
	freezeForTest(t, f, "b", orphan, until)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !isFrozen(dir) {
		t.Fatal("it thaws when the sensor stops")
	}
	dead := freezeMarkerOf(t, orphan)
	if err := unix.Kill(dead.ThawerPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "a thawer is killed", func() bool { return !isThawerRunning(dead) })

	next := newTestFreezer(t)
	if err := next.RecoverFreezes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h, ok, err := next.FindFreeze(dir); err != nil || !ok || h.LeaseID != "a" || !h.ExpiresAt.Equal(until) {
		t.Errorf("frozen for %+v, %v, %v", h, ok, err)
	}
	if h, ok, err := next.FreezeOfLease("a"); err != nil || !ok || h.CgroupDir != dir {
		t.Errorf("the lease has %+v, %v, %v", h, ok, err)
	}
	waitUntil(t, "another thawer replaces the dead one", func() bool { return isThawerRunning(freezeMarkerOf(t, orphan)) })
	requireThawedOnTime(t, dir, until)
	requireThawedOnTime(t, orphan, until)
}

func TestFreezeWhoseThawerIsKilledEndsOnTime(t *testing.T) {
	dir, f := startWorkload(t), newTestFreezer(t)
	until := time.Now().Add(1500 * time.Millisecond)
	freezeForTest(t, f, "a", dir, until)
	m := freezeMarkerOf(t, dir)
	if err := unix.Kill(m.ThawerPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	requireThawedOnTime(t, dir, until)
}

func TestFreezeRequiresTheCgroupID(t *testing.T) {
	dir, f := startWorkload(t), newTestFreezer(t)
	id, err := containermeta.CgroupID(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Freeze(t.Context(), CgroupFreeze{
		LeaseID: "a", CgroupDir: dir, CgroupID: id + 1,
		ExpiresAt: time.Now().Add(time.Minute),
	}); err == nil || isFrozen(dir) {
		t.Errorf("another cgroup at the same path was frozen: %v", err)
	}
	until := time.Now().Add(time.Second)
	freezeForTest(t, f, "a", dir, until)
	m := freezeMarkerOf(t, dir)
	writeFile(t, filepath.Join(dir, "cgroup.kill"), "1")
	waitUntil(t, "the cgroup is removed", func() bool { return os.Remove(dir) == nil })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "cgroup.freeze"), "1") // another cgroup with the same name
	waitUntil(t, "the thawer ends", func() bool { return !isThawerRunning(m) })
	if st, err := ReadFreezeState(dir); err != nil || !st.Requested {
		t.Errorf("another cgroup of the same name was thawed: %v", err)
	}
}

func TestCgroupV1RootsIgnoreOtherMounts(t *testing.T) {
	got := cgroupV1Roots(`30 25 0:26 /../../.. /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 25 0:26 / /mnt/own rw - cgroup cgroup rw,freezer
33 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 25 0:26 /kubepods/x /mnt/part rw - cgroup cgroup rw,freezer
`)
	if len(got) != 2 || got["rw,freezer"] != "/sys/fs/cgroup/freezer" ||
		got["rw,xattr,name=systemd"] != "/sys/fs/cgroup/systemd" {
		t.Errorf("%v", got)
	}
}
