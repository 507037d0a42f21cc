package ticket

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// GitHub starts a GitHub with the repository acme/incidents.
func GitHub(t testing.TB) *Server {
	t.Helper()
	return start(t, "acme/incidents", func(s *Server) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /repos/acme/incidents/issues", s.githubList)
		mux.HandleFunc("POST /repos/acme/incidents/issues", s.githubOpen)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+Token {
				answer(w, http.StatusUnauthorized, object{"message": "Bad credentials", "documentation_url": "https://docs.github.com/rest", "status": "401"})
				return
			}
			if r.Header.Get("User-Agent") == "" {
				answer(w, http.StatusForbidden, object{"message": "Request forbidden by administrative rules. Please make sure your request has a User-Agent header"})
				return
			}
			mux.ServeHTTP(w, r)
		})
	})
}

func (s *Server) githubIssue(i Issue) object {
	labels := []object{}
	for _, l := range i.Labels {
		labels = append(labels, object{"name": l, "color": "ededed"}) //nolint:misspell // GitHub's word
	}
	return object{
		"number": i.Number, "html_url": fmt.Sprintf("https://github.com/%s/issues/%d", s.Project, i.Number), "title": i.Title, "body": i.Body, "labels": labels, "state": "open",
	}
}

func (s *Server) githubList(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	found := s.with(strings.Split(q.Get("labels"), ",")...)
	if q.Get("direction") != "asc" {
		slices.Reverse(found)
	}
	out := []object{}
	for _, i := range found {
		out = append(out, s.githubIssue(i))
	}
	answer(w, http.StatusOK, out)
}

func (s *Server) githubOpen(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Title  string   `json:"title"`
		Body   string   `json:"body"`
		Labels []string `json:"labels"`
	}
	if err := decode(r, &q); err != nil || q.Title == "" || len(q.Body) > 65536 {
		answer(w, http.StatusUnprocessableEntity, object{"message": "Validation Failed", "errors": []object{{"resource": "Issue", "code": "invalid"}}})
		return
	}
	answer(w, http.StatusCreated, s.githubIssue(s.add(Issue{Title: q.Title, Body: q.Body, Labels: q.Labels})))
}
