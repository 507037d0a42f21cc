package forward_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/integrations"
	"stanch/sensors/integrations/forward"
)

// childEnv makes the test binary run as a child process that forwards a file until it is killed.
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

func TestFileIsFollowedThroughRotations(t *testing.T) {
	p := newTestForwarder(t)
	end := p.start()
	p.appendAlerts(0, 10)
	p.waitForAlerts(10, "it may begin after its reader")
	file, err := os.OpenFile(p.options.File, os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	half := alertJSON(10)
	_, err = file.WriteString(half[:40])
	require.NoError(t, err)
	p.appendAlerts(11, 11)
	_, err = file.WriteString(half[40:])
	require.NoError(t, err)
	p.waitForAlerts(11, "a line counts when it is whole")

	require.NoError(t, os.Rename(p.options.File, p.options.File+".1"))
	_, err = file.WriteString(alertJSON(11)) // its writer does not know about the rotation yet
	require.NoError(t, err)
	p.appendAlerts(12, 20)
	p.waitForAlerts(20, "renamed")
	require.NoError(t, file.Close())

	require.NoError(t, os.Truncate(p.options.File, 0))
	p.appendAlerts(20, 22)
	p.waitForAlerts(22, "truncated")
	s := end()
	require.Equal(t, 22, s.Accepted)
	for id, n := range p.gateway.alertCounts {
		require.Equal(t, 1, n, id)
	}
}

func TestReadingResumesAtTheSavedOffset(t *testing.T) {
	p := newTestForwarder(t)
	p.appendAlerts(0, 5)
	end := p.start()
	p.waitForAlerts(5, "before")
	end()
	p.appendAlerts(5, 8)
	require.NoError(t, os.Rename(p.options.File, filepath.Join(p.dir, "events-2026-11-23T03-00-00.log")))
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "events-other.log"), []byte(alertJSON(900)), 0o600))
	p.appendAlerts(8, 9)
	end = p.start()
	p.waitForAlerts(9, "it was rotated away meanwhile")
	end()
	for id, n := range p.gateway.alertCounts {
		require.Equal(t, 1, n, id)
	}

	// The file was copied and truncated: the rest of the copy is read.
	q := newTestForwarder(t)
	q.appendAlerts(0, 5)
	end = q.start()
	q.waitForAlerts(5, "before")
	end()
	q.appendAlerts(5, 7)
	copied, err := os.ReadFile(q.options.File)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(q.options.File+".1", copied, 0o600))
	require.NoError(t, os.Truncate(q.options.File, 0))
	q.appendAlerts(7, 8)
	end = q.start()
	q.waitForAlerts(8, "copied and truncated meanwhile")
	end()
	for id, n := range q.gateway.alertCounts {
		require.Equal(t, 1, n, id)
	}

	// A file with the same inode and more bytes can be another file.
	require.NoError(t, os.Truncate(p.options.File, 0))
	p.appendAlerts(100, 110)
	end = p.start()
	p.waitForAlerts(19, "rewritten meanwhile")
	end()
	require.Contains(t, p.logText(), "from its beginning")

	require.NoError(t, os.WriteFile(p.options.State, []byte("{"), 0o600))
	_, err = forward.Run(t.Context(), p.options)
	require.ErrorContains(t, err, "remove the file to start again")
}

func TestOnlyNewLinesAreReadWithoutSavedState(t *testing.T) {
	p := newTestForwarder(t)
	p.options.Beginning = false
	p.appendAlerts(0, 5)
	end := p.start()
	require.Eventually(t, func() bool {
		p.appendAlerts(5, 6)
		return p.gateway.distinctAlerts() > 0
	}, 10*time.Second, 10*time.Millisecond)
	end()
	require.NotContains(t, p.gateway.alertCounts, "id-4")
	require.Contains(t, p.gateway.alertCounts, "id-5")

	p = newTestForwarder(t)
	p.options.Beginning, p.options.Once = false, true
	p.appendAlerts(0, 5)
	file, err := os.OpenFile(p.options.File, os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = file.WriteString(strings.TrimSpace(alertJSON(5)))
	require.NoError(t, errors.Join(err, file.Close()))
	s, err := forward.Run(t.Context(), p.options)
	require.NoError(t, err)
	require.Equal(t, 6, s.Accepted, "once, up to a last line without a newline")
}

func TestUnavailableGatewayPausesReadingAndLosesNothing(t *testing.T) {
	p := newTestForwarder(t)
	away := true
	p.gateway.respondWith = func(n int) int {
		switch {
		case n == 1:
			return 0
		case away:
			return []int{503, 429, 500, 502}[n%4]
		}
		return 0
	}
	p.gateway.hangUp = func(n int) bool { return n%5 == 4 }
	p.options.File, p.options.State, p.options.Beginning = "", "", false
	reader, writer := io.Pipe()
	p.options.Stdin = reader
	written := make(chan int, 5000)
	go func() {
		for n := range 3000 {
			_, _ = io.WriteString(writer, alertJSON(n))
			written <- n
		}
		_ = writer.Close()
	}()
	end := p.start()
	require.Eventually(
		t,
		func() bool { p.gateway.mu.Lock(); defer p.gateway.mu.Unlock(); return len(p.gateway.codes) > 20 },
		10*time.Second,
		5*time.Millisecond,
	)
	require.Less(t, len(written), 2500, "it does not read ahead of delivery")
	p.gateway.mu.Lock()
	away = false
	p.gateway.mu.Unlock()
	p.waitForAlerts(3000, "all came")
	s := end()
	require.Equal(t, 3000, s.Lines)
	require.Positive(t, s.Retries)
	require.Contains(t, p.logText(), "retrying until it succeeds")
	require.Contains(t, p.logText(), "is accepting lines again")
}

func TestRefusedLinesAreLoggedAndOthersAccepted(t *testing.T) {
	p := newTestForwarder(t)
	p.options.File, p.options.State, p.options.Beginning = "", "", false
	p.options.Stdin = strings.NewReader(alertJSON(1) + "nonsense\x1b[2K\n\n" + `{"a":"` + strings.Repeat("a",
		integrations.MaxRecordBytes) + "\"}\n" + alertJSON(2) +
		"2026-11-23T03:00:00.1Z stdout P " + alertJSON(3)[:50] + "\n2026-11-23T03:00:00.1Z stdout F " + alertJSON(3)[50:])
	s, err := forward.Run(t.Context(), p.options)
	require.NoError(t, err)
	require.Equal(t, 3, s.Accepted)
	require.Equal(t, 2, s.Refused)
	require.Equal(t, 5, s.Lines)
	require.Contains(t, p.logText(), "exceeds the maximum record size")
	require.NotContains(t, p.logText(), "\x1b", "log lines contain no control characters")
	require.Contains(t, p.gateway.alertCounts, "id-3", "lines that the runtime split are joined")
}

func TestPermanentErrorEndsForwarding(t *testing.T) {
	p := newTestForwarder(t)
	p.appendAlerts(0, 1)
	for want, change := range map[string]func(*forward.Options){
		"unknown sensor":          func(o *forward.Options) { o.Kind = "snort" },
		"invalid gateway URL":     func(o *forward.Options) { o.To = "stanch:8443" },
		"unencrypted":             func(o *forward.Options) { o.To = "http://stanch.example:8443" },
		"read the token":          func(o *forward.Options) { o.TokenFile = filepath.Join(p.dir, "none") },
		"contains no certificate": func(o *forward.Options) { o.CA = o.TokenFile },
		"is not a regular file":   func(o *forward.Options) { o.File = p.dir },
		"401 Unauthorized":        func(o *forward.Options) { o.TokenFile = filepath.Join(p.dir, "wrong") },
	} {
		require.NoError(t, os.WriteFile(filepath.Join(p.dir, "wrong"), []byte("another-token"), 0o600))
		o := p.options
		change(&o)
		_, err := forward.Run(t.Context(), o)
		require.ErrorContains(t, err, want)
	}
}

// A rejected token that is replaced while the forwarder runs needs no restart.
func TestReplacedTokenIsReadAgain(t *testing.T) {
	p := newTestForwarder(t)
	p.appendAlerts(0, 1)
	end := p.start()
	p.waitForAlerts(1, "before")
	require.NoError(t, os.WriteFile(p.options.TokenFile, []byte("another-token"), 0o600))
	p.appendAlerts(1, 2)
	require.Eventually(t, func() bool { return strings.Contains(p.logText(), "401") }, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, os.WriteFile(p.options.TokenFile, []byte("the-token"), 0o600))
	p.waitForAlerts(2, "after")
	end()
}

// The start position is saved before the first batch is delivered, so that a rotation in between loses nothing.
func TestFileRotatedBeforeFirstDeliveryIsRead(t *testing.T) {
	p := newTestForwarder(t)
	p.gateway.respondWith = func(int) int { return http.StatusServiceUnavailable }
	p.appendAlerts(0, 5)
	end := p.start()
	require.Eventually(t, func() bool { return strings.Contains(p.logText(), "503") }, 10*time.Second, 5*time.Millisecond)
	end()
	require.NoError(t, os.Rename(p.options.File, p.options.File+".1"))
	p.appendAlerts(5, 6)
	p.gateway.mu.Lock()
	p.gateway.respondWith = nil
	p.gateway.mu.Unlock()
	end = p.start()
	p.waitForAlerts(6, "from both files")
	end()
}

// A kill at any moment loses nothing, and lines that are sent again have the same IDs.
func TestKilledForwarderLosesNothing(t *testing.T) {
	p := newTestForwarder(t)
	away := false
	p.gateway.hangUp = func(n int) bool { return n%7 == 0 }
	p.gateway.respondWith = func(int) int {
		if away {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	met := func() (posts, alerts int) {
		p.gateway.mu.Lock()
		defer p.gateway.mu.Unlock()
		return p.gateway.requestCount, len(p.gateway.alertCounts)
	}
	o := p.options
	o.Logf, o.Stdin = nil, nil
	raw, err := json.Marshal(map[string]any{
		"Kind": o.Kind, "To": o.To, "TokenFile": o.TokenFile, "File": o.File, "State": o.State, "Beginning": true,
		"Poll": o.Poll, "Linger": o.Linger, "BackoffMin": o.BackoffMin, "BackoffMax": o.BackoffMax,
	})
	require.NoError(t, err)
	const all = 6000
	var written int
	for round := range 8 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+string(raw))
		p.gateway.mu.Lock()
		away = round%2 == 1 // the child is killed while no batch is accepted
		p.gateway.mu.Unlock()
		posts, alerts := met()
		require.NoError(t, child.Start())
		p.appendAlerts(written, written+all/8)
		written += all / 8
		if round == 3 {
			require.NoError(t, os.Rename(p.options.File, p.options.File+".1"))
		}
		require.Eventually(t, func() bool {
			n, taken := met()
			return taken > alerts || away && n > posts
		}, 20*time.Second, time.Millisecond)
		require.NoError(t, child.Process.Kill())
		_ = child.Wait()
	}
	p.gateway.mu.Lock()
	away = false
	p.gateway.mu.Unlock()
	end := p.start()
	p.waitForAlerts(all, "all came")
	end()
	again := 0
	for _, n := range p.gateway.alertCounts {
		again += n - 1
	}
	t.Logf("%d alerts over 8 kills, %d were sent again with the same ID", all, again)
}
