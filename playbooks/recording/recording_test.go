package recording_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks/recording"
	"stanch/sensors"
)

func exampleRecording() recording.Recording {
	d := sensors.Detection{
		ID: "d1", Rule: "miner-process", Title: "Crypto-miner started", Severity: sensors.SeverityHigh, Confidence: 0.9,
		Objective: sensors.ObjectiveCryptoMining, Node: "node-berlin",
		Time: time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC),
		Event: sensors.Event{Kind: sensors.KindExec, Node: "node-berlin", Process: sensors.Process{
			Exe: "/usr/bin/curl", Args: []string{"curl", "-u", "bob:hunter2", "https://x"},
			Ancestors: []sensors.Ancestor{{Name: "sh", Args: []string{"sh", "-c", "TOKEN=abc env"}}}, StartNS: 1<<62 + 1,
		}, Container: sensors.Container{ID: "c0ffee", Pod: sensors.Pod{
			Namespace: "payments", Name: "checkout-7f", UID: "u-1",
			Annotations: map[string]string{"last-applied": "password: hunter2"},
		}}},
	}
	return recording.Recording{
		Version: recording.FormatVersion,
		Incident: recording.Incident{
			ID: "INC-01JABCDEFGHJKMNPQRSTVWXYZ0", GroupingKey: "prod/payments/Pod/checkout-7f",
			Cluster: "prod", Scope: "web", Phase: 2, Opened: d.Time,
		},
		Detections: []recording.Detection{{OffsetMS: 0, BatchNumber: 1, Detection: d}},
		Playbooks: []recording.Playbook{{
			Name: "miner", File: "miner.yaml", SourceHash: strings.Repeat("a", 64),
			WorkflowID: "playbook/1",
		}},
		ActionResults: []recording.ActionResult{
			{
				Operation:     recording.OperationObserve,
				Action:        "pod.manifest",
				Target:        "pod:u-1",
				AttemptNumber: 1,
				Outcome:       "changed",
				Reason:        "of checkout-7f on node-berlin",
				Outputs: json.RawMessage(
					`{"env":{"DB":"hunter2"},"db_password":"hunter2","count":4611686018427387905,"note":"token=hunter2 seen"}`,
				),
			},
		},
		Votes: []recording.Vote{{
			WorkflowID: "playbook/1", Step: "s#1", Person: "alice",
			AuthenticatedBy: "uid 1000 on the local socket", Approved: true, Reason: "alice knows",
		}},
		Steps: []recording.StepResult{{
			Playbook: "miner", Step: "s", Action: "pod.isolate", Target: "pod:u-1",
			Outcome: "denied", Reason: "alice (uid 1000 on the local socket) said no",
		}},
	}
}

func TestRecordingRoundTrip(t *testing.T) {
	raw, err := recording.Encode(exampleRecording())
	require.NoError(t, err)
	got, err := recording.Decode(raw)
	require.NoError(t, err)
	want := exampleRecording()
	want.SHA256 = got.SHA256
	again, err := recording.Encode(got)
	require.NoError(t, err)
	require.Equal(t, string(raw), string(again))
	require.Equal(t, want.Votes, got.Votes)
}

func TestDecodeRejectsAnyFlippedByte(t *testing.T) {
	raw, err := recording.Encode(exampleRecording())
	require.NoError(t, err)
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1
		_, err := recording.Decode(changed)
		require.Error(t, err, "byte %d of %q", i, raw[max(0, i-20):min(len(raw), i+20)])
	}
}

func TestDecodeErrorsNameTheCause(t *testing.T) {
	raw, err := recording.Encode(exampleRecording())
	require.NoError(t, err)
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"truncated", "truncated", raw[:len(raw)/2]},
		{"empty", "truncated", nil},
		{
			"another version", "version 7; this program supports version 2",
			bytes.Replace(raw, []byte(`"version": 2`), []byte(`"version": 7`), 1),
		},
		{"no version", "missing version", []byte(`{}`)},
		{"unknown key", `unknown field "extra"`, bytes.Replace(raw, []byte(`"version": 2`),
			[]byte(`"extra": 1, "version": 2`), 1)},
		{
			"changed", "was changed after it was created",
			bytes.Replace(raw, []byte(`"confidence": 0.9`), []byte(`"confidence": 0.1`), 1),
		},
		{"no hash", "a valid SHA-256 hash", bytes.Replace(raw, []byte(`"sha256": "`), []byte(`"sha256": "x`), 1)},
		{"more after it", "after top-level value", append(bytes.Clone(raw), "{}"...)},
		{"deep", "nested", []byte(strings.Repeat(`[`, 100))},
	} {
		_, err := recording.Decode(c.file)
		require.ErrorContains(t, err, c.want, c.name)
	}
	large := exampleRecording()
	for range recording.MaxDetections + 1 {
		large.Detections = append(large.Detections, large.Detections[0])
	}
	_, err = recording.Encode(large)
	require.ErrorContains(t, err, "too many entries")
}

func TestRedactRemovesSecrets(t *testing.T) {
	raw, err := recording.Encode(recording.Redact(exampleRecording()))
	require.NoError(t, err)
	require.NotContains(t, string(raw), "hunter2")
	require.NotContains(t, string(raw), "TOKEN=abc")
	require.Contains(t, string(raw), "4611686018427387905", "numbers keep every digit")
	require.Contains(t, string(raw), "alice", "people's names are kept")
}

func TestAnonymizeReplacesNames(t *testing.T) {
	r, err := recording.Anonymize(recording.Redact(exampleRecording()))
	require.NoError(t, err)
	raw, err := recording.Encode(r)
	require.NoError(t, err)
	for _, name := range []string{"alice", "node-berlin", "checkout-7f", "payments", "prod/", "uid 1000"} {
		require.NotContains(t, string(raw), name)
	}
	require.Contains(t, r.ActionResults[0].Reason, "pod-1 on host-1", "the same name is the same number everywhere")
	require.EqualValues(t, 1<<62+1, r.Detections[0].Detection.Event.Process.StartNS)
	require.Equal(t, "miner-process", r.Detections[0].Detection.Rule)
}

// Outside Kubernetes, people choose the names of containers. People are named in many places: approvers who never
// answered, actors, reasons in free text, paths and ids.
func TestAnonymizeReplacesNamesInEveryField(t *testing.T) {
	r := exampleRecording()
	d := r.Detections[0].Detection
	d.ID, d.Node, d.Event.Node = "d2", "vm-hamburg", "vm-hamburg"
	d.Event.Actor = "kubernetes:carol@example.com"
	d.Event.Container = sensors.Container{
		ID: "billing-worker", Name: "billing-worker", CgroupPath: "/runc/billing-worker",
		Image: "registry.example/billing:7",
	}
	d.Event.Process.Args = []string{"curl", "http://billing-worker.local", "--user=dave"}
	d.Reasons = []string{"Carol started billing-worker"}
	r.Detections = append(r.Detections, recording.Detection{OffsetMS: 5, BatchNumber: 2, Detection: d})
	r.Playbooks[0].File = "/home/dave/playbooks/miner.yaml"
	r.ApprovalRequests = []recording.ApprovalRequest{{
		WorkflowID: "playbook/INC/1/billing-worker", Step: "s",
		Approvers: recording.Approvers{Users: []string{"dave", "Erin Smith"}},
		Actions:   []string{"container.isolate on container billing-worker"},
	}}
	r.ActionResults = append(r.ActionResults, recording.ActionResult{
		Operation:     recording.OperationPlan,
		Action:        "pod.isolate",
		Target:        "container:billing-worker",
		AttemptNumber: 1,
		Changes:       []string{"cut off billing-worker"},
		GuardDecision: &recording.GuardDecision{
			Verdict: "run", Reason: "granted by Frank (uid 1002 on the local socket)",
			Approvers: recording.Approvers{Users: []string{"frank"}},
		},
		PriorState: json.RawMessage(
			`{"lease":"lease/prod/container:billing-worker/network","by_container":{"billing-worker":1},"kind":"billing-worker"}`,
		),
	})
	r.LeaseChanges = []recording.LeaseChange{{
		LeaseID:   "lease/prod/container:billing-worker/network",
		GrantedBy: []string{"grace (uid 1003 on the local socket)"},
	}}
	r.Steps = append(r.Steps, recording.StepResult{
		Playbook: "miner", Step: "s", Action: "pod.isolate",
		Target: "container:billing-worker", Reason: "erin smith said no: grace and dave know /srv/billing-worker/data",
	})
	out, err := recording.Anonymize(recording.Redact(r))
	require.NoError(t, err)
	raw, err := recording.Encode(out)
	require.NoError(t, err)
	for _, name := range []string{
		"billing-worker", "carol", "dave", "erin", "frank", "grace", "alice", "vm-hamburg",
		"checkout-7f", "payments", "uid 100",
	} {
		require.NotContains(t, strings.ToLower(string(raw)), name)
	}
	require.Equal(t, "container:container-1", out.Steps[1].Target)
	require.Equal(t, "miner.yaml", out.Playbooks[0].File)
	require.Equal(t, "/home/dave/playbooks/miner.yaml", r.Playbooks[0].File, "the original is not changed")
	require.Equal(t, "pod.isolate", out.ActionResults[1].Action)
}

func TestCommittedRecordingsDecode(t *testing.T) {
	files, err := filepath.Glob("../../testenv/recordings/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		r, err := recording.Decode(raw)
		require.NoError(t, err, file)
		require.NotEmpty(t, r.Steps)
	}
}

func FuzzDecode(f *testing.F) {
	raw, err := recording.Encode(exampleRecording())
	require.NoError(f, err)
	f.Add(raw)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"sha256":"00"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := recording.Decode(raw)
		if err != nil {
			return
		}
		again, err := recording.Encode(r)
		require.NoError(t, err, "a decoded recording can be encoded")
		_, err = recording.Decode(again)
		require.NoError(t, err)
		_, err = recording.Anonymize(recording.Redact(r))
		require.NoError(t, err)
	})
}
