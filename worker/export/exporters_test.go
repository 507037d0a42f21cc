package export_test

import (
	"bufio"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/worker/config"
	"stanch/worker/export"
)

func newDetection(id string) sensors.Detection {
	at := time.Date(2026, 11, 23, 3, 0, 0, 5, time.UTC)
	return sensors.Detection{
		ID: id, Rule: "miner-process", Title: "Crypto-miner started", Severity: sensors.SeverityHigh, Confidence: 0.9,
		Objective: sensors.ObjectiveCryptoMining,
		Technique: "T1496.001", Reasons: []string{"The program is a miner."}, Source: "stanch", Time: at, Node: "n1",
		Event: sensors.Event{
			ID: id, Kind: sensors.KindExec, Time: at, Node: "n1",
			Process: sensors.Process{
				PID: 7, PPID: 5, Exe: "/tmp/xmrig", Name: "xmrig",
				Args: []string{"xmrig", "-o", "pool:3333"}, Ancestors: []sensors.Ancestor{{PID: 5, Name: "sh", Exe: "/bin/sh"}},
			},
			Container: sensors.Container{
				ID: "c1", Name: "main", Image: "registry:5000/shop:2", ImageDigest: "sha256:ab",
				Pod: sensors.Pod{Namespace: "shop", Name: "web-1", UID: "u1"}, Workload: sensors.Workload{
					Kind: "Deployment",
					Name: "web",
				},
			},
		},
	}
}

// decodeJSON encodes v as JSON and decodes it again.
func decodeJSON(t *testing.T, v any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	var out map[string]any
	require.NoError(t, json.Unmarshal(raw, &out))
	return out
}

func TestOCSFDetectionFinding(t *testing.T) {
	o := decodeJSON(t, export.OCSFDetectionFinding(newDetection("d1"), "v1"))
	for name, want := range map[string]float64{
		"class_uid": 2004, "category_uid": 2, "activity_id": 1, "type_uid": 200401,
		"severity_id": 4, "confidence_id": 3, "confidence_score": 90,
	} {
		require.InDelta(t, want, o[name], 0, name)
	}
	require.InDelta(t, float64(newDetection("").Time.UnixMilli()), o["time"], 0)
	info := o["finding_info"].(map[string]any)
	require.Equal(t, "d1", info["uid"])
	require.Equal(t, []any{map[string]any{
		"technique": map[string]any{"uid": "T1496.001"},
		"tactic":    map[string]any{"uid": "TA0040", "name": "Impact"},
	}}, info["attacks"])
	evidence := o["evidences"].([]any)[0].(map[string]any)
	require.Equal(t, "xmrig -o pool:3333", evidence["process"].(map[string]any)["cmd_line"])
	require.Equal(t, "sha256:ab", evidence["container"].(map[string]any)["image"].(map[string]any)["uid"])
	require.NotContains(t, evidence, "dst_endpoint", "unknown fields are omitted")
}

func TestOCSFTechniquesHaveTheirTactic(t *testing.T) {
	stolen := playbooks.DetectionSummary{Objective: sensors.ObjectiveCredentialAccess, Technique: "T1552.007"}
	mined := playbooks.DetectionSummary{Objective: sensors.ObjectiveCryptoMining, Technique: "T1496.001"}
	out := export.OCSFIncident(playbooks.Incident{
		ID: "INC-1", Objective: sensors.ObjectiveCredentialAccess, Techniques: []string{"T1552.007", "T1496.001"},
		Detections: []playbooks.DetectionSummary{stolen, mined, stolen},
	}, "v1")
	require.Equal(t, []any{
		map[string]any{"technique": map[string]any{"uid": "T1552.007"}, "tactic": map[string]any{
			"uid":  "TA0006",
			"name": "Credential Access",
		}},
		map[string]any{"technique": map[string]any{"uid": "T1496.001"}, "tactic": map[string]any{
			"uid":  "TA0040",
			"name": "Impact",
		}},
	}, decodeJSON(t, out[0])["finding_info"].(map[string]any)["attacks"])
}

func TestOCSFIncidentHasFindingAndRemediations(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	out := export.OCSFIncident(playbooks.Incident{
		ID: "INC-1", Opened: at, Updated: at, Closed: at.Add(time.Hour), Severity: sensors.SeverityHigh,
		Objective: sensors.ObjectiveEscape, Techniques: []string{"T1611", "T1068"}, Confidence: 0.6,
		Leases: []playbooks.LeaseReport{
			{
				ID: "l1", Action: "pod.isolate", Facet: "network", Target: "pod shop/web", Outcome: playbooks.OutcomeChanged,
				State: "held", At: at,
			},
			{ID: "l2", Action: "pod.label", Facet: "labels", Outcome: playbooks.OutcomeFailed, Reason: "gone", At: at},
		},
	}, "v1")
	require.Len(t, out, 3)
	finding := decodeJSON(t, out[0])
	require.InDelta(t, 200403, finding["type_uid"], 0, "closed")
	require.Len(t, finding["finding_info"].(map[string]any)["attacks"], 2)
	isolated, failed := decodeJSON(t, out[1]), decodeJSON(t, out[2])
	require.InDelta(t, 700301, isolated["type_uid"], 0)
	require.InDelta(t, 1, isolated["status_id"], 0)
	require.InDelta(t, 700399, failed["type_uid"], 0)
	require.Equal(t, "gone", failed["status_detail"])
}

func TestFalcoEventIsDecodedAsFalcoAlert(t *testing.T) {
	raw, err := json.Marshal(export.FalcoEvent(newDetection("d1"), "Detect crypto miners using the Stratum protocol"))
	require.NoError(t, err)
	report, err := integrations.DecodeFalco(raw)
	require.NoError(t, err)
	require.NotNil(t, report.Alert)
	d := report.Alert
	require.Equal(t, "Detect crypto miners using the Stratum protocol", d.Rule)
	require.Equal(t, sensors.SeverityHigh, d.Severity)
	require.Equal(t, "c1", d.Event.Container.ID)
	require.Equal(t, "registry:5000/shop:2", d.Event.Container.Image)
	require.Equal(t, "web-1", d.Event.Container.Pod.Name)
	require.Equal(t, "/tmp/xmrig", d.Event.Process.Exe)
	require.Equal(t, newDetection("").Time, d.Time)
}

// fakeReceiver returns configured responses, and stores what it accepted.
type fakeReceiver struct {
	mu             sync.Mutex
	statusCodes    []int
	receivedBodies []string
	tokens         []string
}

func (r *fakeReceiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	raw, _ := io.ReadAll(request.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	code := http.StatusOK
	if len(r.statusCodes) > 0 {
		code, r.statusCodes = r.statusCodes[0], r.statusCodes[1:]
	}
	if code == http.StatusOK {
		r.receivedBodies = append(r.receivedBodies, string(raw))
	}
	r.tokens = append(r.tokens, request.Header.Get("Authorization"))
	w.WriteHeader(code)
}

func (r *fakeReceiver) receivedCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.receivedBodies)
}

func TestDetectionsAreSentOrCounted(t *testing.T) {
	there := &fakeReceiver{statusCodes: []int{
		http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusOK,
		http.StatusBadRequest,
	}}
	server := httptest.NewServer(there)
	defer server.Close()
	dir := t.TempDir()
	token, file := filepath.Join(dir, "token"), filepath.Join(dir, "out.jsonl")
	require.NoError(t, os.WriteFile(token, []byte("a token of sixteen\n"), 0o600))
	e, err := export.Open([]config.Export{
		{Name: "siem", Format: config.ExportFormatFalco, URL: server.URL, TokenFile: token},
		{Name: "file", Format: config.ExportFormatOCSF, File: file},
	}, "v1", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for _, id := range []string{"a", "b", "c"} {
		e.Enqueue(newDetection(id))
	}
	require.Eventually(t, func() bool {
		return there.receivedCount() == 2 && e.CountsByTarget()["siem"].Failed == 1 && e.CountsByTarget()["file"].Sent == 3
	}, 10*time.Second, 5*time.Millisecond)
	require.Contains(t, there.receivedBodies[0], `"uuid":"a"`, "after two temporary failures")
	require.Contains(t, there.receivedBodies[1], `"uuid":"c"`, "a permanently refused detection does not block others")
	require.Contains(t, there.receivedBodies[0], "Detect crypto miners using the Stratum protocol",
		"the rule has its Falco name")
	require.Equal(t, "Bearer a token of sixteen", there.tokens[0])
	e.Close()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		require.True(t, json.Valid(s.Bytes()))
	}
	require.Equal(t, 3, lines)
}

func TestHangingReceiverDoesNotBlock(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	e, err := export.Open([]config.Export{{Name: "slow", Format: config.ExportFormatStanch, URL: server.URL}}, "v1",
		slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	began := time.Now()
	for range 12_000 {
		e.Enqueue(newDetection("a"))
	}
	require.Less(t, time.Since(began), 2*time.Second)
	require.Greater(t, e.CountsByTarget()["slow"].Dropped, uint64(1000))
	e.Close()
	var none *export.Exporters
	none.Enqueue(newDetection("a"))
	none.Close()
}

func TestOpenReportsInvalidTarget(t *testing.T) {
	_, err := export.Open([]config.Export{{Name: "x", Format: config.ExportFormatOCSF, File: "/nowhere/at/all"}}, "",
		slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "export x")
	_, err = export.Open([]config.Export{{
		Name: "x", Format: config.ExportFormatOCSF, URL: "https://127.0.0.1:1",
		TokenFile: "/nowhere",
	}}, "", slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "export x")
}

// A request in progress is completed when Stanch stops.
func TestCloseCompletesRequestInProgress(t *testing.T) {
	began := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(began)
		select {
		case <-r.Context().Done():
			w.WriteHeader(http.StatusInternalServerError)
		case <-time.After(200 * time.Millisecond): // a slow receiver
		}
	}))
	t.Cleanup(server.Close)
	e, err := export.Open([]config.Export{{Name: "slow", Format: config.ExportFormatStanch, URL: server.URL}}, "test",
		slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	e.Enqueue(sensors.Detection{ID: "a"})
	<-began
	e.Close()
	require.Equal(t, export.DeliveryCounts{Sent: 1}, e.CountsByTarget()["slow"])
}
