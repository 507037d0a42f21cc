package ticket

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// StartGitHub starts a fake GitHub with the repository acme/incidents.
func StartGitHub(t testing.TB) *FakeTracker {
	t.Helper()
	return startServer(t, "acme/incidents", func(s *FakeTracker) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /repos/acme/incidents/issues", s.githubList)
		mux.HandleFunc("POST /repos/acme/incidents/issues", s.githubCreate)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+Token {
				writeJSON(w, http.StatusUnauthorized, jsonObject{
					"message":           "Bad credentials",
					"documentation_url": "https://docs.github.com/rest", "status": "401",
				})
				return
			}
			if r.Header.Get("User-Agent") == "" {
				writeJSON(
					w,
					http.StatusForbidden,
					jsonObject{
						"message": "Request forbidden by administrative rules. Please make sure your request has a User-Agent header",
					},
				)
				return
			}
			mux.ServeHTTP(w, r)
		})
	})
}

func (s *FakeTracker) githubIssueJSON(i Issue) jsonObject {
	labels := []jsonObject{}
	for _, l := range i.Labels {
		labels = append(labels, jsonObject{"name": l, "color": "ededed"})
	}
	return jsonObject{
		"number": i.Number, "html_url": fmt.Sprintf("https://github.com/%s/issues/%d", s.Project, i.Number), "title": i.Title,
		"body": i.Body, "labels": labels, "state": "open",
	}
}

func (s *FakeTracker) githubList(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	found := s.issuesWithLabels(strings.Split(q.Get("labels"), ",")...)
	if q.Get("direction") != "asc" {
		slices.Reverse(found)
	}
	out := []jsonObject{}
	for _, i := range found {
		out = append(out, s.githubIssueJSON(i))
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *FakeTracker) githubCreate(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Title  string   `json:"title"`
		Body   string   `json:"body"`
		Labels []string `json:"labels"`
	}
	if err := decodeStrict(r, &q); err != nil || q.Title == "" || len(q.Body) > 65536 {
		writeJSON(w, http.StatusUnprocessableEntity, jsonObject{
			"message": "Validation Failed",
			"errors":  []jsonObject{{"resource": "Issue", "code": "invalid"}},
		})
		return
	}
	writeJSON(w, http.StatusCreated, s.githubIssueJSON(s.addIssue(Issue{Title: q.Title, Body: q.Body, Labels: q.Labels})))
}
