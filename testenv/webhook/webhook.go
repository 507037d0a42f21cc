// Package webhook is a receiver of webhooks as Standard Webhooks describes one: it checks each request's signature and
// time itself, drops what it has seen, and answers as it is told to.
//
// It refuses what a receiver must: a wrong signature, an old time, a repetition is not taken twice.
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

// Delivery is one request that came.
type Delivery struct {
	ID     string
	Body   []byte
	Status int // what was answered
}

// Receiver is a running receiver.
type Receiver struct {
	URL    string
	Secret string

	mu       sync.Mutex
	answers  []http.HandlerFunc // before a request is looked at
	afters   []http.HandlerFunc // once it was taken
	came     []Delivery
	accepted []Delivery
}

// Start starts a receiver with a secret as Standard Webhooks writes it.
func Start(t testing.TB, secret string) *Receiver {
	t.Helper()
	r := &Receiver{Secret: secret}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.URL = server.URL + "/hook"
	return r
}

// Next lets the next request be answered like this, whatever its signature.
func (r *Receiver) Next(answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, answer)
}

// NextAfter lets the next request be taken, if it is signed, and then answered like this.
func (r *Receiver) NextAfter(answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.afters = append(r.afters, answer)
}

// Came are all the requests.
func (r *Receiver) Came() []Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.came)
}

// Accepted are the requests that were new and signed.
func (r *Receiver) Accepted() []Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.accepted)
}

// window is how old a request may be.
const window = 5 * time.Minute

func (r *Receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, _ := io.ReadAll(io.LimitReader(q.Body, 1<<20))
	d := Delivery{ID: q.Header.Get("webhook-id"), Body: body}
	if len(r.answers) > 0 {
		answer := r.answers[0]
		r.answers = r.answers[1:]
		recorded := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		answer(recorded, q)
		d.Status = recorded.status
		r.came = append(r.came, d)
		return
	}
	d.Status = http.StatusNoContent
	switch {
	case q.Method != http.MethodPost || q.URL.Path != "/hook":
		d.Status = http.StatusNotFound
	case !r.signed(q, body):
		d.Status = http.StatusUnauthorized
	case !slices.ContainsFunc(r.accepted, func(o Delivery) bool { return o.ID == d.ID }):
		r.accepted = append(r.accepted, d)
	}
	r.came = append(r.came, d)
	if len(r.afters) > 0 {
		answer := r.afters[0]
		r.afters = r.afters[1:]
		answer(w, q)
		return
	}
	w.WriteHeader(d.Status)
}

func (r *Receiver) signed(q *http.Request, body []byte) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Secret, "whsec_"))
	seconds, timeErr := strconv.ParseInt(q.Header.Get("webhook-timestamp"), 10, 64)
	if err != nil || timeErr != nil || time.Since(time.Unix(seconds, 0)).Abs() > window {
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
