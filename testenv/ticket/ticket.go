// Package ticket is a stand-in for the trackers that Stanch opens tickets in: GitHub, GitLab and Jira Cloud, each with its
// own paths, logins, searches and answers, and issues in memory.
//
// It refuses what they refuse: a wrong token, a project that is not there, a field that they do not know. It shows an
// issue as its readers see it, and says whom it would have pinged.
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

// Token is the token of every stand-in, User the login of Jira's.
const (
	Token = "tok-1f2e3d4c5b6a79880f1e" //nolint:gosec // a stand-in's
	User  = "stanch@example.com"
)

// Issue is one issue.
type Issue struct {
	Number int
	Key    string // Jira
	Title  string
	Body   string          // Markdown
	Doc    json.RawMessage // Jira's document
	Labels []string
	At     time.Time
}

// Server is a running tracker.
type Server struct {
	URL     string
	Project string

	mu       sync.Mutex
	issues   []Issue
	next     []http.HandlerFunc
	calls    []string
	noLabels bool
	blind    bool
}

func start(t testing.TB, project string, handler func(*Server) http.Handler) *Server {
	t.Helper()
	s := &Server{Project: project}
	inner := handler(s)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = append(s.calls, r.Method+" "+r.URL.RequestURI())
		if len(s.next) > 0 {
			answer := s.next[0]
			s.next = s.next[1:]
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

// Next lets the next requests be answered like this; nil answers one as usual.
func (s *Server) Next(answers ...http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = append(s.next, answers...)
}

// DropLabels behaves as for a token that may not set labels.
func (s *Server) DropLabels() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noLabels = true
}

// Blind lets searches lag behind: they find nothing until it is undone.
func (s *Server) Blind(blind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blind = blind
}

// Issues are the issues there are.
func (s *Server) Issues() []Issue {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.issues)
}

// Calls are the requests that came, as method and path.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// add keeps an issue; the caller holds the lock, as every handler does.
func (s *Server) add(i Issue) Issue {
	i.Number, i.At = len(s.issues)+1, time.Now()
	if s.noLabels || i.Labels == nil {
		i.Labels = []string{}
	}
	s.issues = append(s.issues, i)
	return i
}

// with lists the issues that have all the labels.
func (s *Server) with(labels ...string) []Issue {
	out := []Issue{}
	for _, i := range s.issues {
		has := func(l string) bool { return slices.Contains(i.Labels, l) }
		if !s.blind && !slices.ContainsFunc(labels, func(l string) bool { return !has(l) }) {
			out = append(out, i)
		}
	}
	return out
}

type object map[string]any

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// decode reads a request strictly: a field that the product does not know is one that Stanch only believes to be there.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	return d.Decode(into) //nolint:wrapcheck // it is answered
}
