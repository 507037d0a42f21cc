package agent

import (
	"testing"

	"stanch/sensors"
)

func TestSensorIgnoresItsOwnProcess(t *testing.T) {
	o := selfProcess{pid: 100}
	event := func(pid, ppid uint32, args ...string) *sensors.Event {
		return &sensors.Event{Process: sensors.Process{PID: pid, PPID: ppid, Args: args}}
	}
	for name, c := range map[string]struct {
		event *sensors.Event
		own   bool
	}{
		"itself":                                {event(100, 1, "/stanch-sensor"), true},
		"snapshot helper":                       {event(101, 100, "/proc/self/exe", SnapshotCommand), true},
		"shell started by the sensor":           {event(102, 100, "sh"), false},
		"another process with the same command": {event(103, 7, "/proc/self/exe", SnapshotCommand), false},
	} {
		if got := o.caused(c.event); got != c.own {
			t.Errorf("%s: %t", name, got)
		}
	}
	if (selfProcess{}).caused(event(0, 0)) {
		t.Error("a sensor without its PID treats events of others as its own")
	}
}
