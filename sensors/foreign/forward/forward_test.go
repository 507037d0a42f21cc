package forward_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/foreign"
	"stanch/sensors/foreign/forward"
)

// As a child, the test's own program forwards a file until it is killed.
const childEnv = "FORWARD_CHILD"

func TestMain(m *testing.M) {
	if raw := os.Getenv(childEnv); raw != "" {
		var o forward.Options
		if err := json.Unmarshal([]byte(raw), &o); err != nil {
			panic(err)
		}
		_, err := forward.Run(context.Background(), o)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// door is a gateway as far as a sender can tell: it decodes what comes with the decoders of the real one, and answers as
// the real one does.
type door struct {
	*httptest.Server
	mu    sync.Mutex
	ids   map[string]int // how often an alert came
	lines int
	codes []int
	// meet decides before anything is taken; 0 takes it. hangUp takes it and hangs up without an answer.
	meet   func(n int) int
	hangUp func(n int) bool
	n      int
}

func newDoor(t *testing.T) *door {
	t.Helper()
	d := &door{ids: map[string]int{}}
	d.Server = httptest.NewServer(http.HandlerFunc(d.serve))
	t.Cleanup(d.Close)
	return d
}

func (d *door) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
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
	if d.meet != nil {
		if code := d.meet(d.n); code != 0 {
			answer(code, "not now", nil)
			return
		}
	}
	records, err := foreign.Split(body, 1000)
	if err != nil {
		answer(http.StatusBadRequest, err.Error(), nil)
		return
	}
	accepted, telemetry := 0, 0
	var refused []map[string]any
	for _, record := range records {
		d.lines++
		report, err := foreign.DecoderOf(strings.TrimPrefix(r.URL.Path, "/v1/"))(record.Raw)
		switch {
		case err != nil:
			refused = append(refused, map[string]any{"line": record.Line, "reason": err.Error()})
		case report.Alert != nil:
			accepted++
			d.ids[report.Alert.ID]++
		default:
			telemetry++
		}
	}
	if d.hangUp != nil && d.hangUp(d.n) {
		panic(http.ErrAbortHandler)
	}
	code := http.StatusAccepted
	if len(refused) > 0 {
		code = http.StatusMultiStatus
	}
	answer(code, "accepted", map[string]any{"accepted": accepted, "telemetry": telemetry, "refused": refused})
}

// has tells how many different alerts came.
func (d *door) has() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ids)
}

type place struct {
	t    *testing.T
	dir  string
	door *door
	o    forward.Options
	said struct {
		sync.Mutex
		lines []string
	}
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir(), door: newDoor(t)}
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "token"), []byte("the-token\n"), 0o600))
	p.o = forward.Options{
		Kind: "falco", To: p.door.URL, TokenFile: filepath.Join(p.dir, "token"), File: filepath.Join(p.dir, "events.log"), State: filepath.Join(p.dir, "state"), Beginning: true,
		Poll: 2 * time.Millisecond, Linger: 2 * time.Millisecond, BackoffMin: time.Millisecond, BackoffMax: 4 * time.Millisecond,
		Say: func(format string, args ...any) {
			p.said.Lock()
			defer p.said.Unlock()
			p.said.lines = append(p.said.lines, fmt.Sprintf(format, args...))
		},
	}
	return p
}

func (p *place) heard() string {
	p.said.Lock()
	defer p.said.Unlock()
	return strings.Join(p.said.lines, "\n")
}

func alert(n int) string {
	return fmt.Sprintf(`{"uuid":"id-%d","priority":"Warning","rule":"Run shell untrusted","time":"2026-11-23T03:00:00Z","output_fields":{"container.id":"abc","n":"%d"}}`, n, n) + "\n"
}

// write appends alerts from a number up to before another.
func (p *place) write(from, to int) {
	p.t.Helper()
	file, err := os.OpenFile(p.o.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(p.t, err)
	for n := from; n < to; n++ {
		_, err = file.WriteString(alert(n))
		require.NoError(p.t, err)
	}
	require.NoError(p.t, file.Close())
}

// run forwards in the background; what it returns ends it.
func (p *place) run() (end func() forward.Summary) {
	ctx, cancel := context.WithCancel(context.Background())
	type result struct {
		forward.Summary
		error
	}
	done := make(chan result, 1)
	go func() {
		s, err := forward.Run(ctx, p.o)
		done <- result{s, err}
	}()
	return func() forward.Summary {
		cancel()
		r := <-done
		require.NoError(p.t, r.error)
		return r.Summary
	}
}

func (p *place) eventually(n int, what string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.door.has() == n }, 20*time.Second, 5*time.Millisecond, "%s: %d of %d\n%s", what, p.door.has(), n, p.heard())
}

func TestAFileIsFollowedAsItGrowsAndThroughItsRotations(t *testing.T) {
	p := newPlace(t)
	end := p.run()
	p.write(0, 10)
	p.eventually(10, "it may begin after its reader")
	file, err := os.OpenFile(p.o.File, os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	half := alert(10)
	_, err = file.WriteString(half[:40])
	require.NoError(t, err)
	p.write(11, 11)
	_, err = file.WriteString(half[40:])
	require.NoError(t, err)
	p.eventually(11, "a line counts when it is whole")

	require.NoError(t, os.Rename(p.o.File, p.o.File+".1"))
	_, err = file.WriteString(alert(11)) // its writer does not know yet
	require.NoError(t, err)
	p.write(12, 20)
	p.eventually(20, "renamed")
	require.NoError(t, file.Close())

	require.NoError(t, os.Truncate(p.o.File, 0))
	p.write(20, 22)
	p.eventually(22, "truncated")
	s := end()
	require.Equal(t, 22, s.Accepted)
	for id, n := range p.door.ids {
		require.Equal(t, 1, n, id)
	}
}

func TestReadingGoesOnWhereItEnded(t *testing.T) {
	p := newPlace(t)
	p.write(0, 5)
	end := p.run()
	p.eventually(5, "before")
	end()
	p.write(5, 8)
	require.NoError(t, os.Rename(p.o.File, filepath.Join(p.dir, "events-2026-11-23T03-00-00.log")))
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "events-other.log"), []byte(alert(900)), 0o600))
	p.write(8, 9)
	end = p.run()
	p.eventually(9, "it was rotated away meanwhile")
	end()
	for id, n := range p.door.ids {
		require.Equal(t, 1, n, id)
	}

	// A copy was made of it and it was truncated: the copy is read on.
	q := newPlace(t)
	q.write(0, 5)
	end = q.run()
	q.eventually(5, "before")
	end()
	q.write(5, 7)
	copied, err := os.ReadFile(q.o.File)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(q.o.File+".1", copied, 0o600))
	require.NoError(t, os.Truncate(q.o.File, 0))
	q.write(7, 8)
	end = q.run()
	q.eventually(8, "copied and truncated meanwhile")
	end()
	for id, n := range q.door.ids {
		require.Equal(t, 1, n, id)
	}

	// Another file with the same inode and more bytes is another file.
	require.NoError(t, os.Truncate(p.o.File, 0))
	p.write(100, 110)
	end = p.run()
	p.eventually(19, "rewritten meanwhile")
	end()
	require.Contains(t, p.heard(), "read from its beginning")

	require.NoError(t, os.WriteFile(p.o.State, []byte("{"), 0o600))
	_, err = forward.Run(t.Context(), p.o)
	require.ErrorContains(t, err, "remove it to begin anew")
}

func TestWithoutAPlaceOnlyWhatIsNewIsRead(t *testing.T) {
	p := newPlace(t)
	p.o.Beginning = false
	p.write(0, 5)
	end := p.run()
	require.Eventually(t, func() bool {
		p.write(5, 6)
		return p.door.has() > 0
	}, 10*time.Second, 10*time.Millisecond)
	end()
	require.NotContains(t, p.door.ids, "id-4")
	require.Contains(t, p.door.ids, "id-5")

	p = newPlace(t)
	p.o.Beginning, p.o.Once = false, true
	p.write(0, 5)
	file, err := os.OpenFile(p.o.File, os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = file.WriteString(strings.TrimSpace(alert(5)))
	require.NoError(t, errors.Join(err, file.Close()))
	s, err := forward.Run(t.Context(), p.o)
	require.NoError(t, err)
	require.Equal(t, 6, s.Accepted, "once, to a last line without an end")
}

func TestWhileTheGatewayIsAwayNothingIsLostAndNothingIsReadAhead(t *testing.T) {
	p := newPlace(t)
	away := true
	p.door.meet = func(n int) int {
		switch {
		case n == 1:
			return 0
		case away:
			return []int{503, 429, 500, 502}[n%4]
		}
		return 0
	}
	p.door.hangUp = func(n int) bool { return n%5 == 4 }
	p.o.File, p.o.State, p.o.Beginning = "", "", false
	reader, writer := io.Pipe()
	p.o.Stdin = reader
	written := make(chan int, 5000)
	go func() {
		for n := range 3000 {
			_, _ = io.WriteString(writer, alert(n))
			written <- n
		}
		_ = writer.Close()
	}()
	end := p.run()
	require.Eventually(t, func() bool { p.door.mu.Lock(); defer p.door.mu.Unlock(); return len(p.door.codes) > 20 }, 10*time.Second, 5*time.Millisecond)
	require.Less(t, len(written), 2500, "it does not read what it cannot carry")
	p.door.mu.Lock()
	away = false
	p.door.mu.Unlock()
	p.eventually(3000, "all came")
	s := end()
	require.Equal(t, 3000, s.Lines)
	require.Positive(t, s.Retries)
	require.Contains(t, p.heard(), "it is tried again until it works")
	require.Contains(t, p.heard(), "takes lines again")
}

func TestWhatIsRefusedIsToldAndCostsNothingElse(t *testing.T) {
	p := newPlace(t)
	p.o.File, p.o.State, p.o.Beginning = "", "", false
	p.o.Stdin = strings.NewReader(alert(1) + "nonsense\x1b[2K\n\n" + `{"a":"` + strings.Repeat("a", foreign.MaxRecord) + "\"}\n" + alert(2) +
		"2026-11-23T03:00:00.1Z stdout P " + alert(3)[:50] + "\n2026-11-23T03:00:00.1Z stdout F " + alert(3)[50:])
	s, err := forward.Run(t.Context(), p.o)
	require.NoError(t, err)
	require.Equal(t, 3, s.Accepted)
	require.Equal(t, 2, s.Refused)
	require.Equal(t, 5, s.Lines)
	require.Contains(t, p.heard(), "longer than any record")
	require.NotContains(t, p.heard(), "\x1b", "what is told cannot write on a terminal")
	require.Contains(t, p.door.ids, "id-3", "what a runtime cut in parts is whole again")
}

func TestWhatWaitingCannotMendEndsIt(t *testing.T) {
	p := newPlace(t)
	p.write(0, 1)
	for want, change := range map[string]func(*forward.Options){
		"there is no sensor":           func(o *forward.Options) { o.Kind = "snort" },
		"is not the gateway's address": func(o *forward.Options) { o.To = "stanch:8443" },
		"in the clear":                 func(o *forward.Options) { o.To = "http://stanch.example:8443" },
		"read the token":               func(o *forward.Options) { o.TokenFile = filepath.Join(p.dir, "none") },
		"holds no certificate":         func(o *forward.Options) { o.CA = o.TokenFile },
		"no regular file":              func(o *forward.Options) { o.File = p.dir },
		"401 Unauthorized":             func(o *forward.Options) { o.TokenFile = filepath.Join(p.dir, "wrong") },
	} {
		require.NoError(t, os.WriteFile(filepath.Join(p.dir, "wrong"), []byte("another-token"), 0o600))
		o := p.o
		change(&o)
		_, err := forward.Run(t.Context(), o)
		require.ErrorContains(t, err, want)
	}
}

// A token that is replaced while it runs is mended by waiting.
func TestATokenMayBeReplaced(t *testing.T) {
	p := newPlace(t)
	p.write(0, 1)
	end := p.run()
	p.eventually(1, "before")
	require.NoError(t, os.WriteFile(p.o.TokenFile, []byte("another-token"), 0o600))
	p.write(1, 2)
	require.Eventually(t, func() bool { return strings.Contains(p.heard(), "401") }, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, os.WriteFile(p.o.TokenFile, []byte("the-token"), 0o600))
	p.eventually(2, "after")
	end()
}

// Before the first batch is carried it knows where it began, so that a rotation meanwhile loses nothing.
func TestWhatIsRotatedBeforeAnythingIsCarriedIsFoundAgain(t *testing.T) {
	p := newPlace(t)
	p.door.meet = func(int) int { return http.StatusServiceUnavailable }
	p.write(0, 5)
	end := p.run()
	require.Eventually(t, func() bool { return strings.Contains(p.heard(), "503") }, 10*time.Second, 5*time.Millisecond)
	end()
	require.NoError(t, os.Rename(p.o.File, p.o.File+".1"))
	p.write(5, 6)
	p.door.mu.Lock()
	p.door.meet = nil
	p.door.mu.Unlock()
	end = p.run()
	p.eventually(6, "from both files")
	end()
}

// Killed at any moment, it loses nothing; what it sends again has the same ids.
func TestKilledItLosesNothing(t *testing.T) {
	p := newPlace(t)
	away := false
	p.door.hangUp = func(n int) bool { return n%7 == 0 }
	p.door.meet = func(int) int {
		if away {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	met := func() (posts, alerts int) {
		p.door.mu.Lock()
		defer p.door.mu.Unlock()
		return p.door.n, len(p.door.ids)
	}
	o := p.o
	o.Say, o.Stdin = nil, nil
	raw, err := json.Marshal(map[string]any{
		"Kind": o.Kind, "To": o.To, "TokenFile": o.TokenFile, "File": o.File, "State": o.State, "Beginning": true,
		"Poll": o.Poll, "Linger": o.Linger, "BackoffMin": o.BackoffMin, "BackoffMax": o.BackoffMax,
	})
	require.NoError(t, err)
	const all = 6000
	var written int
	for round := range 8 {
		child := exec.Command(os.Args[0]) //nolint:gosec,noctx // itself
		child.Env = append(os.Environ(), childEnv+"="+string(raw))
		p.door.mu.Lock()
		away = round%2 == 1 // then it is killed with a batch that nobody took
		p.door.mu.Unlock()
		posts, alerts := met()
		require.NoError(t, child.Start())
		p.write(written, written+all/8)
		written += all / 8
		if round == 3 {
			require.NoError(t, os.Rename(p.o.File, p.o.File+".1"))
		}
		require.Eventually(t, func() bool {
			n, taken := met()
			return taken > alerts || away && n > posts
		}, 20*time.Second, time.Millisecond)
		require.NoError(t, child.Process.Kill())
		_ = child.Wait()
	}
	p.door.mu.Lock()
	away = false
	p.door.mu.Unlock()
	end := p.run()
	p.eventually(all, "all came")
	end()
	again := 0
	for _, n := range p.door.ids {
		again += n - 1
	}
	t.Logf("%d alerts over 8 kills, %d came again under the same id", all, again)
}
