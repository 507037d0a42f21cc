package probe

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stanch/bpf"
)

func TestSecondSensorCannotOpenTheLock(t *testing.T) {
	requireKernel(t)
	_, id := newCgroup(t, "")
	dir := newLockDir(t)
	l := openTestLock(t, dir)
	data, err := os.Create(filepath.Join(t.TempDir(), "lock")) // as a Stanch process locks its data directory
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = data.Close() }()
	st, err := l.Apply(EgressLockRequest{LeaseID: "a", Cgroups: []uint64{id}, ExpiresAt: time.Now().Add(time.Hour)})
	if err != nil || !st.Active {
		t.Fatalf("%+v, %v", st, err)
	}
	// A second process that lists or releases would overwrite the latest expiry with its own view, and remove locks
	// that it does not know.
	second, err := OpenEgressLock(dir)
	if second != nil || !errors.Is(err, ErrInUse) {
		t.Fatalf("a second sensor: %v", err)
	}
	free := CheckNotInUse(dir)
	if !errors.Is(free, ErrInUse) {
		t.Fatalf("it is reported as unused: %v", free)
	}
	for _, word := range []string{
		dir, "--no-sensor", strconv.Itoa(os.Getpid()),
		"data directory " + filepath.Dir(data.Name()),
	} {
		if !strings.Contains(err.Error(), word) || !strings.Contains(free.Error(), word) {
			t.Errorf("%q and %q do not contain %q", err, free, word)
		}
	}
	// A process that only reads is allowed, and sees the active locks.
	held, err := ReadLocks(dir)
	if err != nil || len(held) != 1 || held[0].LeaseID != "a" || !held[0].Active {
		t.Errorf("ReadLocks: %+v, %v", held, err)
	}
	var latest uint64
	if err := l.ebpfMap(bpf.LockMapLatestExpiry).Lookup(uint32(0), &latest); err != nil || latest <= uint64(sinceBoot()) {
		t.Errorf("the lock is not in force: %d, %v", latest, err)
	}
	if none, err := ReadLocks(dir + "-nothing"); err != nil || len(none) != 0 {
		t.Errorf("in an empty directory: %+v, %v", none, err)
	}
}

func TestNextSensorAdoptsLockOfKilledSensor(t *testing.T) {
	n := newNetworkLab(t)
	dir := newLockDir(t)
	w := n.veths[0]
	owner := selfCommand("lock", dir, strconv.FormatUint(n.podID, 10), strconv.Itoa(w.Index), formatMAC(w.MAC), "1m")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEgressLock(dir); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(),
		strconv.Itoa(owner.Process.Pid)) {
		t.Errorf("while another process uses it: %v", err)
	}
	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	if err := CheckNotInUse(dir); err != nil {
		t.Errorf("a killed process blocks: %v", err)
	}
	l := openTestLock(t, dir)
	if st, err := l.StateOfLease("owner"); err != nil || !st.Active || !st.VethLocked {
		t.Errorf("%+v, %v", st, err)
	}
}
