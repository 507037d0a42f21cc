package forward_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/integrations"
	"stanch/sensors/integrations/forward"
)

// fakeGateway decodes and responds like a real gateway, with the real decoders.
type fakeGateway struct {
	*httptest.Server
	mu          sync.Mutex
	alertCounts map[string]int // how often each alert arrived
	lines       int
	codes       []int
	// respondWith returns the status of a response before the lines are accepted; 0 accepts them. hangUp accepts them
	// and closes the connection without a response.
	respondWith  func(n int) int
	hangUp       func(n int) bool
	requestCount int
}

func newFakeGateway(t *testing.T) *fakeGateway {
	t.Helper()
	d := &fakeGateway{alertCounts: map[string]int{}}
	d.Server = httptest.NewServer(http.HandlerFunc(d.serve))
	t.Cleanup(d.Close)
	return d
}

func (d *fakeGateway) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requestCount++
	answer := func(code int, status string, more map[string]any) {
		d.codes = append(d.codes, code)
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(code)
		a := map[string]any{"status": status}
		maps.Copy(a, more)
		_ = json.NewEncoder(w).Encode(a)
	}
	if r.Header.Get("Authorization") != "Bearer the-token" {
		answer(http.StatusUnauthorized, "no", nil)
		return
	}
	if d.respondWith != nil {
		if code := d.respondWith(d.requestCount); code != 0 {
			answer(code, "not now", nil)
			return
		}
	}
	records, err := integrations.SplitRecords(body, 1000)
	if err != nil {
		answer(http.StatusBadRequest, err.Error(), nil)
		return
	}
	accepted, telemetry := 0, 0
	var refused []map[string]any
	for _, record := range records {
		d.lines++
		report, err := integrations.DecoderForKind(strings.TrimPrefix(r.URL.Path, "/v1/"))(record.Raw)
		switch {
		case err != nil:
			refused = append(refused, map[string]any{"line": record.Line, "reason": err.Error()})
		case report.Alert != nil:
			accepted++
			d.alertCounts[report.Alert.ID]++
		default:
			telemetry++
		}
	}
	if d.hangUp != nil && d.hangUp(d.requestCount) {
		panic(http.ErrAbortHandler)
	}
	code := http.StatusAccepted
	if len(refused) > 0 {
		code = http.StatusMultiStatus
	}
	answer(code, "accepted", map[string]any{"accepted": accepted, "telemetry": telemetry, "refused": refused})
}

// distinctAlerts returns the number of distinct alerts that arrived.
func (d *fakeGateway) distinctAlerts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.alertCounts)
}

type testForwarder struct {
	t       *testing.T
	dir     string
	gateway *fakeGateway
	options forward.Options
	logs    struct {
		sync.Mutex
		lines []string
	}
}

func newTestForwarder(t *testing.T) *testForwarder {
	t.Helper()
	p := &testForwarder{t: t, dir: t.TempDir(), gateway: newFakeGateway(t)}
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "token"), []byte("the-token\n"), 0o600))
	p.options = forward.Options{
		Kind: "falco", To: p.gateway.URL, TokenFile: filepath.Join(p.dir, "token"), File: filepath.Join(p.dir, "events.log"),
		State: filepath.Join(p.dir, "state"), Beginning: true,
		Poll: 2 * time.Millisecond, Linger: 2 * time.Millisecond, BackoffMin: time.Millisecond,
		BackoffMax: 4 * time.Millisecond,
		Logf: func(format string, args ...any) {
			p.logs.Lock()
			defer p.logs.Unlock()
			p.logs.lines = append(p.logs.lines, fmt.Sprintf(format, args...))
		},
	}
	return p
}

func (p *testForwarder) logText() string {
	p.logs.Lock()
	defer p.logs.Unlock()
	return strings.Join(p.logs.lines, "\n")
}

func alertJSON(n int) string {
	return fmt.Sprintf(
		`{"uuid":"id-%d","priority":"Warning","rule":"Run shell untrusted","time":"2026-11-23T03:00:00Z","output_fields":{"container.id":"abc","n":"%d"}}`,
		n,
		n,
	) + "\n"
}

// appendAlerts appends the alerts with the numbers from (inclusive) to to (exclusive).
func (p *testForwarder) appendAlerts(from, to int) {
	p.t.Helper()
	file, err := os.OpenFile(p.options.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(p.t, err)
	for n := from; n < to; n++ {
		_, err = file.WriteString(alertJSON(n))
		require.NoError(p.t, err)
	}
	require.NoError(p.t, file.Close())
}

// start runs the forwarder in the background. The returned function stops it.
func (p *testForwarder) start() (end func() forward.Summary) {
	ctx, cancel := context.WithCancel(context.Background())
	type result struct {
		forward.Summary
		error
	}
	done := make(chan result, 1)
	go func() {
		s, err := forward.Run(ctx, p.options)
		done <- result{s, err}
	}()
	return func() forward.Summary {
		cancel()
		r := <-done
		require.NoError(p.t, r.error)
		return r.Summary
	}
}

func (p *testForwarder) waitForAlerts(n int, what string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.gateway.distinctAlerts() == n }, 20*time.Second, 5*time.Millisecond,
		"%s: %d of %d\n%s", what, p.gateway.distinctAlerts(), n, p.logText())
}
