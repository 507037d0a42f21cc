// Package httpclient calls other products over HTTP.
//
// It connects only to the configured address and follows no redirects. It limits the size and the time of a response.
// Its errors contain neither addresses nor secrets, because an address may grant access too.
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

// Limits of one call.
const (
	callTimeout      = 10 * time.Second
	maxResponseBytes = 1 << 20
	maxQuotedRunes   = 200 // characters of a response that an error repeats
)

// Limits of the delay that a service may request.
const (
	minRetryDelay = time.Second
	maxRetryDelay = time.Hour
	// defaultRetryDelay is the delay if a rate limit is exceeded and the response names none.
	defaultRetryDelay = time.Minute
)

// ErrOutcomeUnknown means that the service may have processed the request: no response came, or an inconclusive one.
var ErrOutcomeUnknown = errors.New("the result is unknown")

// Client calls one product. It is safe for concurrent use.
type Client struct {
	// Name identifies the product in errors, which do not contain the address.
	Name string
	// BaseURL is prepended to every call's path.
	BaseURL string
	// Header is sent with every call.
	Header http.Header
	// Secrets are removed from every error.
	Secrets []string
	// HTTPClient is for tests and private root certificates. Nil means a default client.
	HTTPClient *http.Client
}

// Call sends a request and returns the body of a successful response. A *activities.Refusal means that retrying does
// not help; a *activities.RetryAfterError says when to retry.
func (p *Client) Call(ctx context.Context, method, path string, header http.Header, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	address := p.BaseURL
	if path != "" {
		// never appended to the host name
		address = strings.TrimRight(p.BaseURL, "/") + "/" + strings.TrimLeft(path, "/")
	}
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, activities.Refusef("invalid URL for %s", p.Name) // err would contain it
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
		return nil, fmt.Errorf("read the response from %s: %s: %w", p.Name, p.redactSecrets(err.Error()), ErrOutcomeUnknown)
	case len(data) > maxResponseBytes:
		return nil, fmt.Errorf("the response from %s is larger than %d bytes", p.Name, maxResponseBytes)
	}
	return data, nil
}

// responseError returns the error of an unsuccessful response.
func (p *Client) responseError(answer *http.Response, body []byte) error {
	said := p.errorMessage(body)
	status := answer.StatusCode
	if wait, ok := RetryDelay(answer, time.Now()); ok {
		return &activities.RetryAfterError{Delay: wait, Err: fmt.Errorf("%s returned %d and requests a retry after %s%s",
			p.Name,
			status, duration.FormatApprox(wait), said)}
	}
	switch {
	case status/100 == 3:
		return activities.Refusef("%s returned %d: redirects are not followed; configure the address that it redirects to",
			p.Name, status)
	case status == http.StatusRequestTimeout || status/100 != 4:
		return fmt.Errorf("%s returned %d%s: %w", p.Name, status, said, ErrOutcomeUnknown)
	}
	return activities.Refusef("%s returned %d%s", p.Name, status, said)
}

// errorMessage returns the message for people in a response, or "".
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

// redactSecrets removes the product's secrets and its address from a text.
func (p *Client) redactSecrets(text string) string {
	for _, secret := range append([]string{p.BaseURL}, p.Secrets...) {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, redact.Placeholder)
		}
	}
	return redact.Text(text)
}

// RetryDelay reports whether a response asks to retry later, because of a rate limit or an overload, and the delay.
func RetryDelay(answer *http.Response, now time.Time) (time.Duration, bool) {
	h := answer.Header
	after, said := parseRetryAfter(h.Get("Retry-After"), now)
	switch answer.StatusCode {
	case http.StatusTooManyRequests:
	case http.StatusServiceUnavailable:
		if !said {
			return 0, false
		}
	case http.StatusForbidden: // GitHub's rate limits; any other 403 is final
		if !said && h.Get("X-Ratelimit-Remaining") != "0" {
			return 0, false
		}
	default:
		return 0, false
	}
	for _, name := range []string{"X-Ratelimit-Reset", "Ratelimit-Reset"} {
		if seconds, err := strconv.ParseInt(h.Get(name), 10, 64); !said && err == nil &&
			(h.Get("X-Ratelimit-Remaining") == "0" || name == "Ratelimit-Reset") {
			after, said = time.Unix(seconds, 0).Sub(now), true
		}
	}
	if !said {
		after = defaultRetryDelay
	}
	return min(max(after, minRetryDelay), maxRetryDelay), true
}

// parseRetryAfter parses a Retry-After header: seconds or a date.
func parseRetryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return at.Sub(now), true
	}
	return 0, false
}
