package integrations_test

import (
	"encoding/json"
	"testing"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

// fuzzAlertDecoder checks the invariants of every decoder: exactly one field of the record is set, an alert has all
// that a detection requires and can be stored, and the same bytes give the same alert.
func fuzzAlertDecoder(f *testing.F, decode integrations.Decoder) {
	f.Helper()
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decode(raw)
		again, errAgain := decode(raw)
		if (err == nil) != (errAgain == nil) {
			t.Fatalf("accepted once and rejected once: %v, %v", err, errAgain)
		}
		if err != nil {
			return
		}
		parts := 0
		for _, set := range []bool{r.Alert != nil, r.Health != nil, r.Telemetry} {
			if set {
				parts++
			}
		}
		if parts != 1 {
			t.Fatalf("%d parts: %+v", parts, r)
		}
		if r.Health != nil {
			if _, err := json.Marshal(r.Health); err != nil {
				t.Fatal(err)
			}
		}
		if r.Alert == nil {
			return
		}
		d := r.Alert
		first, err := json.Marshal(d)
		if err != nil {
			t.Fatal("it cannot be stored: ", err)
		}
		second, err := json.Marshal(again.Alert)
		if err != nil || string(first) != string(second) {
			t.Fatalf("the same bytes are two alerts:\n%s\n%s", first, second)
		}
		c := d.Event.Container
		target := c.ID != "" || c.Pod.Name != "" || d.Event.Audit.Resource != "" || d.Event.Cloud.Principal != ""
		switch {
		case d.ID == "" || d.Rule == "" || d.Title == "" || d.Time.IsZero() || d.Objective == "" || !target:
			t.Fatalf("a field is missing: %s", first)
		case d.Severity.Rank() < 0 || d.Confidence <= 0 || d.Confidence > 1 || len(d.Reasons) < 2:
			t.Fatalf("severity or confidence is missing: %s", first)
		case len(d.ID) > 256 || len(d.Rule) > 200 || len(d.Title) > 500 || len(c.Pod.Labels) > 64 ||
			len(d.Event.Process.Ancestors) > sensors.MaxAncestors || len(d.Event.Process.Args) > 128:
			t.Fatalf("it is not bounded: %s", first)
		}
	})
}

func FuzzFalco(f *testing.F) {
	f.Add([]byte(falcoAlertSample))
	f.Add([]byte(falcoAlert("Run shell untrusted", "k8s_audit",
		`"ka.user.name":"alice","ka.target.resource":"pods","ka.target.name":"web-1"`)))
	f.Add([]byte(falcoAlert("Read sensitive file untrusted", "syscall",
		`"evt.type":"openat","fd.name":"/etc/shadow","proc.aname[2]":"sh","proc.tty":34816`)))
	fuzzAlertDecoder(f, integrations.DecodeFalco)
}

func FuzzTetragon(f *testing.F) {
	for _, text := range tetragonLines {
		f.Add([]byte(text))
	}
	fuzzAlertDecoder(f, integrations.DecodeTetragon)
}

func FuzzTracee(f *testing.F) {
	for _, text := range traceeLines {
		f.Add([]byte(text))
	}
	fuzzAlertDecoder(f, integrations.DecodeTracee)
}

func FuzzKubeArmor(f *testing.F) {
	for _, text := range kubeArmorLines {
		f.Add([]byte(text))
	}
	fuzzAlertDecoder(f, integrations.DecodeKubeArmor)
}
