package httpclient_test

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"stanch/activities/httpclient"
)

func TestRetryDelayIsBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for name, c := range map[string]struct {
		status int
		header map[string]string
		want   time.Duration
		is     bool
	}{
		"at once": {429, map[string]string{"Retry-After": "0"}, time.Second, true},
		"a year":  {429, map[string]string{"Retry-After": "31536000"}, time.Hour, true},
		"a time that passed": {
			503,
			map[string]string{"Retry-After": now.Add(-time.Hour).UTC().Format(http.TimeFormat)},
			time.Second, true,
		},
		"less than nothing": {429, map[string]string{"Retry-After": "-5"}, time.Minute, true},
		"no number":         {429, map[string]string{"Retry-After": "soon"}, time.Minute, true},
		"a reset long ago": {
			403,
			map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"},
			time.Second, true,
		},
		"a plain 403": {
			403,
			map[string]string{"X-RateLimit-Remaining": "4000", "X-RateLimit-Reset": "1800000300"},
			0, false,
		},
		"a plain 503":            {503, nil, 0, false},
		"a success with a limit": {200, map[string]string{"Retry-After": "5"}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			answer := &http.Response{StatusCode: c.status, Header: http.Header{}}
			for k, v := range c.header {
				answer.Header.Set(k, v)
			}
			got, is := httpclient.RetryDelay(answer, now)
			require.Equal(t, c.is, is)
			require.Equal(t, c.want, got)
		})
	}
}

func TestSanitizeTextByLine(t *testing.T) {
	require.Equal(t, "a\nb\n·[0m\u00b7c", httpclient.SanitizeText("a\r\nb\r\x1b[0m\u200bc\n\n", 100))
	require.Equal(
		t,
		"key [redacted] end",
		httpclient.SanitizeText("key -----BEGIN PRIVATE KEY-----\nMIIE\nabc\n-----END PRIVATE KEY----- end", 100),
	)
	require.Equal(t, "a b c", httpclient.SanitizeLine(" a\n\tb\r\nc ", 100))
	require.Equal(t, "ab…", httpclient.SanitizeLine("abcd", 2))
}

func FuzzSanitizeText(f *testing.F) {
	for _, s := range []string{"", "a\r\nb", "\u202e", "token=x", "\xff\xfe", "-----BEGIN PRIVATE KEY-----\nx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		line, text := httpclient.SanitizeLine(s, 50), httpclient.SanitizeText(s, 50)
		if strings.ContainsAny(line, "\r\n\x00\x1b\u202e") || utf8.RuneCountInString(line) > 51 || !utf8.ValidString(line) {
			t.Fatalf("%q", line)
		}
		if strings.ContainsAny(text, "\r\x00\x1b\u202e") || utf8.RuneCountInString(text) > 51 || !utf8.ValidString(text) {
			t.Fatalf("%q", text)
		}
	})
}

func FuzzRetryDelay(f *testing.F) {
	f.Add(429, "5", "0", "1800000000")
	f.Add(403, "Wed, 21 Oct 2026 07:28:00 GMT", "0", "x")
	f.Add(503, "99999999999999999999", "", "-9223372036854775808")
	f.Fuzz(func(t *testing.T, status int, after, remaining, reset string) {
		answer := &http.Response{StatusCode: status, Header: http.Header{
			"Retry-After":           {after},
			"X-Ratelimit-Remaining": {remaining}, "X-Ratelimit-Reset": {reset}, "Ratelimit-Reset": {reset},
		}}
		if wait, is := httpclient.RetryDelay(answer, time.Unix(1_800_000_000, 0)); is &&
			(wait < time.Second || wait > time.Hour) {
			t.Fatal(wait)
		}
	})
}
