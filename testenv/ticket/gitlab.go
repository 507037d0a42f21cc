package ticket

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// GitLab starts a GitLab with the project acme/ops/incidents.
func GitLab(t testing.TB) *Server {
	t.Helper()
	return start(t, "acme/ops/incidents", func(s *Server) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Header.Get("Private-Token") != Token:
				answer(w, http.StatusUnauthorized, object{"message": "401 Unauthorized"}) //nolint:misspell // GitLab's words
			case r.URL.EscapedPath() != "/api/v4/projects/acme%2Fops%2Fincidents/issues": // a path is one segment
				answer(w, http.StatusNotFound, object{"message": "404 Project Not Found"})
			case r.Method == http.MethodGet:
				s.gitlabList(w, r)
			case r.Method == http.MethodPost:
				s.gitlabOpen(w, r)
			default:
				answer(w, http.StatusMethodNotAllowed, object{"error": "405 Not Allowed"})
			}
		})
	})
}

func (s *Server) gitlabIssue(i Issue) object {
	return object{
		"id": 1000 + i.Number, "iid": i.Number, "web_url": fmt.Sprintf("https://gitlab.com/%s/-/issues/%d", s.Project, i.Number), "title": i.Title,
		"description": i.Body, "labels": i.Labels, "state": "opened",
	}
}

func (s *Server) gitlabList(w http.ResponseWriter, r *http.Request) {
	out := []object{}
	for _, i := range s.with(strings.Split(r.URL.Query().Get("labels"), ",")...) {
		out = append(out, s.gitlabIssue(i))
	}
	answer(w, http.StatusOK, out)
}

func (s *Server) gitlabOpen(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Title       string `json:"title"`
		Description string `json:"description"`
		Labels      string `json:"labels"`
	}
	if err := decode(r, &q); err != nil || q.Title == "" || len(q.Title) > 255*4 {
		answer(w, http.StatusBadRequest, object{"message": object{"title": []string{"can't be blank"}}})
		return
	}
	answer(w, http.StatusCreated, s.gitlabIssue(s.add(Issue{Title: q.Title, Body: q.Description, Labels: strings.Split(q.Labels, ",")})))
}
