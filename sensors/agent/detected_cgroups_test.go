package agent

import (
	"fmt"
	"slices"
	"testing"

	"stanch/sensors"
	"stanch/sensors/containermeta"
)

// A user with a delegated cgroup creates many cgroups that are named after the target's ID, and causes a detection in
// each.
func TestDecoyCgroupsDoNotEvictTheCgroupOfATarget(t *testing.T) {
	s, err := openDetectedCgroups("", "boot")
	if err != nil {
		t.Fatal(err)
	}
	s.trustRank = func(b containermeta.NamedCgroup) int {
		if b.CgroupID == 1 {
			return 2 // created by root
		}
		return 1
	}
	at := func(id uint64, path string) {
		if err := s.record(&sensors.Container{ID: "victim", CgroupID: id, CgroupPath: path}); err != nil {
			t.Fatal(err)
		}
	}
	at(1, "/system.slice/docker-victim.scope")
	for i := range uint64(maxCgroupsPerTarget + 1) {
		at(i+2, fmt.Sprintf("/user.slice/%d/docker-victim.scope", i))
	}
	if got := s.cgroupsOf("container:victim"); !slices.ContainsFunc(got,
		func(b containermeta.NamedCgroup) bool { return b.CgroupID == 1 }) {
		t.Errorf("the target's own cgroup was evicted: %+v", got)
	}
}

// A user causes detections under thousands of invented IDs.
func TestOtherTargetsDoNotEvictATarget(t *testing.T) {
	s, err := openDetectedCgroups("", "boot")
	if err != nil {
		t.Fatal(err)
	}
	s.trustRank = func(b containermeta.NamedCgroup) int {
		if b.CgroupID == 1 {
			return 2 // created by root
		}
		return 1
	}
	note := func(target string, id uint64) {
		if err := s.record(&sensors.Container{ID: target, CgroupID: id, CgroupPath: "/x/" + target}); err != nil {
			t.Fatal(err)
		}
	}
	note("victim", 1)
	for i := range uint64(maxDetectedTargets + 100) {
		note(fmt.Sprintf("made-up-%d", i), i+2)
	}
	if len(s.cgroupsOf("container:victim")) == 0 {
		t.Error("the target was evicted")
	}
	if len(s.byTarget) > maxDetectedTargets || len(s.targetOrder) != len(s.byTarget) {
		t.Errorf("%d targets in %d cgroups, at most %d", len(s.byTarget), len(s.targetOrder), maxDetectedTargets)
	}
}
