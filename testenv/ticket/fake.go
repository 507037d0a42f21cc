// Package ticket is a fake of the trackers in which Stanch opens tickets: GitHub, GitLab and Jira Cloud, each with its
// own paths, authentication, search and responses, and issues in memory.
//
// It refuses what they refuse: a wrong token, an unknown project, an unknown field. It renders an issue as its readers
// see it, and reports whom it would have notified.
package ticket

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// Token is the token of every fake, and User is the login of Jira's.
const (
	Token = "tok-1f2e3d4c5b6a79880f1e"
	User  = "stanch@example.com"
)

// Issue is one issue.
type Issue struct {
	Number    int
	Key       string // Jira
	Title     string
	Body      string          // Markdown
	Document  json.RawMessage // Jira's document
	Labels    []string
	CreatedAt time.Time
}

// FakeTracker is a running tracker.
type FakeTracker struct {
	URL     string
	Project string

	mu            sync.Mutex
	issues        []Issue
	nextResponses []http.HandlerFunc
	calls         []string
	dropLabels    bool
	searchLagging bool
}

func startServer(t testing.TB, project string, handler func(*FakeTracker) http.Handler) *FakeTracker {
	t.Helper()
	s := &FakeTracker{Project: project}
	inner := handler(s)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = append(s.calls, r.Method+" "+r.URL.RequestURI())
		if len(s.nextResponses) > 0 {
			answer := s.nextResponses[0]
			s.nextResponses = s.nextResponses[1:]
			if answer != nil {
				answer(w, r)
				return
			}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// RespondNext sets the handlers of the next requests; nil handles one as usual.
func (s *FakeTracker) RespondNext(answers ...http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextResponses = append(s.nextResponses, answers...)
}

// DropLabels makes the tracker ignore labels, as for a token without the permission.
func (s *FakeTracker) DropLabels() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLabels = true
}

// SetSearchLagging makes searches return nothing until it is reset.
func (s *FakeTracker) SetSearchLagging(blind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.searchLagging = blind
}

// Issues returns all issues.
func (s *FakeTracker) Issues() []Issue {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.issues)
}

// Requests returns the received requests as method and path.
func (s *FakeTracker) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// addIssue stores an issue. The caller holds the lock, as every handler does.
func (s *FakeTracker) addIssue(i Issue) Issue {
	i.Number, i.CreatedAt = len(s.issues)+1, time.Now()
	if s.dropLabels || i.Labels == nil {
		i.Labels = []string{}
	}
	s.issues = append(s.issues, i)
	return i
}

// issuesWithLabels returns the issues that have all the labels.
func (s *FakeTracker) issuesWithLabels(labels ...string) []Issue {
	out := []Issue{}
	for _, i := range s.issues {
		has := func(l string) bool { return slices.Contains(i.Labels, l) }
		if !s.searchLagging && !slices.ContainsFunc(labels, func(l string) bool { return !has(l) }) {
			out = append(out, i)
		}
	}
	return out
}

type jsonObject map[string]any

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// decodeStrict decodes a request and rejects fields that the product does not know.
func decodeStrict(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	return d.Decode(into) //nolint:wrapcheck // it is answered
}
