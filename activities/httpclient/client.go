// Package outside calls other products over HTTP.
//
// It refuses to go anywhere but to the address that is configured: it follows no redirect. It reads a bounded answer in
// bounded time, and says neither addresses nor secrets in what it reports, since both may open a door.
package httpclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"stanch/activities"
	"stanch/sensors/duration"
	"stanch/sensors/redact"
)

// The bounds of one call.
const (
	callTimeout      = 10 * time.Second
	maxResponseBytes = 1 << 20
	maxQuotedRunes   = 200 // characters of an answer that are repeated in an error
)

// The bounds of what the other side may ask Stanch to wait.
const (
	minRetryDelay = time.Second
	maxRetryDelay = time.Hour
	// defaultRetryDelay is how long to wait where a limit was met and nobody says for how long.
	defaultRetryDelay = time.Minute
)

// ErrOutcomeUnknown says that the other side may have done what it was asked to: no answer came, or one that tells nothing.
var ErrOutcomeUnknown = errors.New("whether it was done is not known")

// Client is a product that is called.
type Client struct {
	// Name is how errors call it; the address is not told.
	Name string
	// BaseURL is what every call's path is put behind.
	BaseURL string
	// Header goes with every call.
	Header http.Header
	// Secrets are taken out of what is reported, wherever they turn up.
	Secrets []string
	// HTTPClient is for tests and private roots. Nil is a client of its own.
	HTTPClient *http.Client
}

// Call sends a request and gives the answer's body if it is one of success. A *activities.Refusal says that trying again
// does not help, a *activities.RetryAfterError when to try again.
func (p *Client) Call(ctx context.Context, method, path string, header http.Header, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	address := p.BaseURL
	if path != "" {
		address = strings.TrimRight(p.BaseURL, "/") + "/" + strings.TrimLeft(path, "/") // never a longer name of the host
	}
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, activities.Refusef("the address of %s is not a URL", p.Name) // err would tell it
	}
	for _, from := range []http.Header{p.Header, header} {
		maps.Copy(request.Header, from)
	}
	if len(body) > 0 {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("User-Agent", "stanch")
	client := http.Client{Transport: http.DefaultTransport}
	if p.HTTPClient != nil {
		client = *p.HTTPClient
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	answer, err := client.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without its address
		}
		return nil, fmt.Errorf("call %s: %s: %w", p.Name, p.redactSecrets(err.Error()), ErrOutcomeUnknown)
	}
	defer func() { _ = answer.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxResponseBytes+1))
	switch {
	case answer.StatusCode/100 != 2:
		return nil, p.responseError(answer, data)
	case err != nil:
		return nil, fmt.Errorf("read the answer of %s: %s: %w", p.Name, p.redactSecrets(err.Error()), ErrOutcomeUnknown)
	case len(data) > maxResponseBytes:
		return nil, fmt.Errorf("the answer of %s has more than %d bytes", p.Name, maxResponseBytes)
	}
	return data, nil
}

// responseError makes the error of an answer that is none of success.
func (p *Client) responseError(answer *http.Response, body []byte) error {
	said := p.errorMessage(body)
	status := answer.StatusCode
	if wait, ok := RetryDelay(answer, time.Now()); ok {
		return &activities.RetryAfterError{Delay: wait, Err: fmt.Errorf("%s answered %d and wants to be asked again in %s%s", p.Name, status, duration.FormatApprox(wait), said)}
	}
	switch {
	case status/100 == 3:
		return activities.Refusef("%s answered %d: redirects are not followed; configure the address that it leads to", p.Name, status)
	case status == http.StatusRequestTimeout || status/100 != 4:
		return fmt.Errorf("%s answered %d%s: %w", p.Name, status, said, ErrOutcomeUnknown)
	}
	return activities.Refusef("%s answered %d%s", p.Name, status, said)
}

// errorMessage is what an answer says for people, if it does.
func (p *Client) errorMessage(body []byte) string {
	var answer struct {
		Message json.RawMessage   `json:"message"`       // GitHub, GitLab
		Errors  []string          `json:"errorMessages"` // Jira
		Fields  map[string]string `json:"errors"`
	}
	if err := json.Unmarshal(body, &answer); err != nil && answer.Message == nil && answer.Errors == nil {
		return ""
	}
	var parts []string
	if text := ""; json.Unmarshal(answer.Message, &text) == nil {
		parts = append(parts, text)
	} else if len(answer.Message) > 0 {
		parts = append(parts, string(answer.Message))
	}
	parts = append(parts, answer.Errors...)
	for field, problem := range answer.Fields {
		parts = append(parts, field+": "+problem)
	}
	text := SanitizeLine(p.redactSecrets(strings.Join(parts, "; ")), maxQuotedRunes)
	if text == "" {
		return ""
	}
	return ": " + text
}

// redactSecrets takes the peer's secrets and its address out of a text.
func (p *Client) redactSecrets(text string) string {
	for _, secret := range append([]string{p.BaseURL}, p.Secrets...) {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, redact.Placeholder)
		}
	}
	return redact.Text(text)
}

// RetryDelay tells whether an answer says that the caller is too fast or the other side too busy, and for how long.
func RetryDelay(answer *http.Response, now time.Time) (time.Duration, bool) {
	h := answer.Header
	after, said := parseRetryAfter(h.Get("Retry-After"), now)
	switch answer.StatusCode {
	case http.StatusTooManyRequests:
	case http.StatusServiceUnavailable:
		if !said {
			return 0, false
		}
	case http.StatusForbidden: // GitHub's limits; any other 403 is a no
		if !said && h.Get("X-Ratelimit-Remaining") != "0" {
			return 0, false
		}
	default:
		return 0, false
	}
	for _, name := range []string{"X-Ratelimit-Reset", "Ratelimit-Reset"} {
		if seconds, err := strconv.ParseInt(h.Get(name), 10, 64); !said && err == nil && (h.Get("X-Ratelimit-Remaining") == "0" || name == "Ratelimit-Reset") {
			after, said = time.Unix(seconds, 0).Sub(now), true
		}
	}
	if !said {
		after = defaultRetryDelay
	}
	return min(max(after, minRetryDelay), maxRetryDelay), true
}

// parseRetryAfter reads seconds or a date.
func parseRetryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return at.Sub(now), true
	}
	return 0, false
}
