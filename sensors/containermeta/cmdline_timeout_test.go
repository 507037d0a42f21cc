package containermeta

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
)

func TestBlockedCommandLineReadDoesNotDelayEvents(t *testing.T) {
	table := NewProcessTable(0)
	table.procRoot = t.TempDir()
	const processes = 3 * maxPendingReads
	for pid := 1; pid <= processes; pid++ {
		dir := filepath.Join(table.procRoot, strconv.Itoa(pid))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/bin/old", dir+"/exe"); err != nil {
			t.Fatal(err)
		}
		// An open of this file blocks until another process opens it for writing.
		if err := unix.Mkfifo(dir+"/cmdline", 0o600); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	for pid := uint32(1); pid <= processes; pid++ {
		e := sensors.Event{Process: sensors.Process{Ancestors: []sensors.Ancestor{{PID: pid, Name: "old"}}}}
		table.AddAncestors(&e)
		if e.Process.Ancestors[0].Exe != "/bin/old" {
			t.Errorf("process %d: %+v", pid, e.Process.Ancestors[0])
		}
	}
	if took, most := time.Since(began), (maxPendingReads+2)*cmdlineTimeout*4; took > most {
		t.Errorf("it took %v, more than %v", took, most)
	}
	if got := table.pendingReads.Load(); got != maxPendingReads {
		t.Errorf("%d blocked reads, want %d", got, maxPendingReads)
	}
	for pid := 1; pid <= processes; pid++ { // unblock the reads
		fd, err := unix.Open(filepath.Join(table.procRoot, strconv.Itoa(pid), "cmdline"), unix.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
}
