package agent

import (
	"testing"

	"stanch/sensors"
)

func TestTheSensorsOwnProcessIsNoAttacker(t *testing.T) {
	o := selfProcess{pid: 100}
	event := func(pid, ppid uint32, args ...string) *sensors.Event {
		return &sensors.Event{Process: sensors.Process{PID: pid, PPID: ppid, Args: args}}
	}
	for name, c := range map[string]struct {
		event *sensors.Event
		own   bool
	}{
		"itself":                          {event(100, 1, "/stanch-sensor"), true},
		"its process for a snapshot":      {event(101, 100, "/proc/self/exe", SnapshotCommand), true},
		"a shell that it was made to run": {event(102, 100, "sh"), false},
		"another with the same command":   {event(103, 7, "/proc/self/exe", SnapshotCommand), false},
	} {
		if got := o.caused(c.event); got != c.own {
			t.Errorf("%s: %t", name, got)
		}
	}
	if (selfProcess{}).caused(event(0, 0)) {
		t.Error("a sensor that does not know its number takes others' events for its own")
	}
}
