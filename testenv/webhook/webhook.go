// Package webhook is a receiver as Standard Webhooks describes it: it verifies each request's signature and time
// itself, drops duplicates, and can be told how to respond.
//
// It refuses what a receiver must refuse: a wrong signature, an old time, and a duplicate.
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Delivery is a received request.
type Delivery struct {
	ID             string
	Body           []byte
	ResponseStatus int // status of the response
}

// Receiver is a running receiver.
type Receiver struct {
	URL    string
	Secret string

	mu                       sync.Mutex
	nextResponses            []http.HandlerFunc // before a request is verified
	nextResponsesAfterAccept []http.HandlerFunc // after it was accepted
	deliveries               []Delivery
	accepted                 []Delivery
}

// Start starts a receiver with a secret in the form of Standard Webhooks.
func Start(t testing.TB, secret string) *Receiver {
	t.Helper()
	r := &Receiver{Secret: secret}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.URL = server.URL + "/hook"
	return r
}

// RespondNext sets the response to the next request, whatever its signature.
func (r *Receiver) RespondNext(answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nextResponses = append(r.nextResponses, answer)
}

// RespondNextAfterAccept lets the next signed request be accepted, and then sets its response.
func (r *Receiver) RespondNextAfterAccept(answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nextResponsesAfterAccept = append(r.nextResponsesAfterAccept, answer)
}

// Deliveries returns all received requests.
func (r *Receiver) Deliveries() []Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.deliveries)
}

// Accepted returns the new and correctly signed requests.
func (r *Receiver) Accepted() []Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.accepted)
}

// maxRequestAge is the maximum age of a request.
const maxRequestAge = 5 * time.Minute

// ServeHTTP verifies and records a request, and responds as set.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, _ := io.ReadAll(io.LimitReader(q.Body, 1<<20))
	d := Delivery{ID: q.Header.Get("webhook-id"), Body: body}
	if len(r.nextResponses) > 0 {
		answer := r.nextResponses[0]
		r.nextResponses = r.nextResponses[1:]
		recorded := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		answer(recorded, q)
		d.ResponseStatus = recorded.status
		r.deliveries = append(r.deliveries, d)
		return
	}
	d.ResponseStatus = http.StatusNoContent
	switch {
	case q.Method != http.MethodPost || q.URL.Path != "/hook":
		d.ResponseStatus = http.StatusNotFound
	case !r.isSigned(q, body):
		d.ResponseStatus = http.StatusUnauthorized
	case !slices.ContainsFunc(r.accepted, func(o Delivery) bool { return o.ID == d.ID }):
		r.accepted = append(r.accepted, d)
	}
	r.deliveries = append(r.deliveries, d)
	if len(r.nextResponsesAfterAccept) > 0 {
		answer := r.nextResponsesAfterAccept[0]
		r.nextResponsesAfterAccept = r.nextResponsesAfterAccept[1:]
		answer(w, q)
		return
	}
	w.WriteHeader(d.ResponseStatus)
}

func (r *Receiver) isSigned(q *http.Request, body []byte) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Secret, "whsec_"))
	seconds, timeErr := strconv.ParseInt(q.Header.Get("webhook-timestamp"), 10, 64)
	if err != nil || timeErr != nil || time.Since(time.Unix(seconds, 0)).Abs() > maxRequestAge {
		return false
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(q.Header.Get("webhook-id") + "." + q.Header.Get("webhook-timestamp") + "."))
	mac.Write(body)
	for given := range strings.FieldsSeq(q.Header.Get("webhook-signature")) {
		version, signature, _ := strings.Cut(given, ",")
		raw, err := base64.StdEncoding.DecodeString(signature)
		if version == "v1" && err == nil && hmac.Equal(raw, mac.Sum(nil)) {
			return true
		}
	}
	return false
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}
