package ticket

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// StartGitLab starts a fake GitLab with the project acme/ops/incidents.
func StartGitLab(t testing.TB) *FakeTracker {
	t.Helper()
	return startServer(t, "acme/ops/incidents", func(s *FakeTracker) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Header.Get("Private-Token") != Token:
				writeJSON(
					w,
					http.StatusUnauthorized,
					jsonObject{"message": "401 Unauthorized"},
				)
			case r.URL.EscapedPath() != "/api/v4/projects/acme%2Fops%2Fincidents/issues": // a path is one segment
				writeJSON(w, http.StatusNotFound, jsonObject{"message": "404 Project Not Found"})
			case r.Method == http.MethodGet:
				s.gitlabList(w, r)
			case r.Method == http.MethodPost:
				s.gitlabCreate(w, r)
			default:
				writeJSON(w, http.StatusMethodNotAllowed, jsonObject{"error": "405 Not Allowed"})
			}
		})
	})
}

func (s *FakeTracker) gitlabIssueJSON(i Issue) jsonObject {
	return jsonObject{
		"id": 1000 + i.Number, "iid": i.Number, "web_url": fmt.Sprintf("https://gitlab.com/%s/-/issues/%d", s.Project,
			i.Number), "title": i.Title,
		"description": i.Body, "labels": i.Labels, "state": "opened",
	}
}

func (s *FakeTracker) gitlabList(w http.ResponseWriter, r *http.Request) {
	out := []jsonObject{}
	for _, i := range s.issuesWithLabels(strings.Split(r.URL.Query().Get("labels"), ",")...) {
		out = append(out, s.gitlabIssueJSON(i))
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *FakeTracker) gitlabCreate(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Title       string `json:"title"`
		Description string `json:"description"`
		Labels      string `json:"labels"`
	}
	if err := decodeStrict(r, &q); err != nil || q.Title == "" || len(q.Title) > 255*4 {
		writeJSON(w, http.StatusBadRequest, jsonObject{"message": jsonObject{"title": []string{"can't be blank"}}})
		return
	}
	writeJSON(w, http.StatusCreated, s.gitlabIssueJSON(s.addIssue(Issue{
		Title: q.Title, Body: q.Description,
		Labels: strings.Split(q.Labels, ","),
	})))
}
