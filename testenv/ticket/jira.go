package ticket

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Jira starts a Jira Cloud with the project OPS.
func Jira(t testing.TB) *Server {
	t.Helper()
	return start(t, "OPS", func(s *Server) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("POST /rest/api/3/search/jql", s.jiraSearch)
		mux.HandleFunc("POST /rest/api/3/issue", s.jiraOpen)
		mux.HandleFunc("/rest/api/3/search", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusGone, object{"errorMessages": []string{"The requested API has been removed. Please migrate to the /rest/api/3/search/jql API."}})
		})
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, token, ok := r.BasicAuth(); !ok || user != User || token != Token {
				w.Header().Set("Www-Authenticate", "OAuth realm=\"jira\"")
				answer(w, http.StatusUnauthorized, object{"errorMessages": []string{"Client must be authenticated to access this resource."}, "errors": object{}})
				return
			}
			mux.ServeHTTP(w, r)
		})
	})
}

func jiraRefuses(w http.ResponseWriter, message string, fields object) {
	messages := []string{}
	if message != "" {
		messages = append(messages, message)
	}
	answer(w, http.StatusBadRequest, object{"errorMessages": messages, "errors": fields})
}

// jql is the one form of query that this Jira knows. Its strings hold no quotes.
var jql = regexp.MustCompile(`^project = "([A-Z][A-Z0-9]+)" AND labels = "([^"\\]+)" ORDER BY created ASC$`)

func (s *Server) jiraSearch(w http.ResponseWriter, r *http.Request) {
	var q struct {
		JQL    string   `json:"jql"`
		Fields []string `json:"fields"`
		Max    int      `json:"maxResults"`
	}
	if err := decode(r, &q); err != nil {
		jiraRefuses(w, "Invalid request payload. Refer to the REST API documentation and try again.", object{})
		return
	}
	m := jql.FindStringSubmatch(q.JQL)
	if m == nil || m[1] != s.Project {
		jiraRefuses(w, "Error in the JQL Query", object{})
		return
	}
	out := []object{}
	for _, i := range s.with(m[2]) {
		out = append(out, object{"id": fmt.Sprint(10000 + i.Number), "key": i.Key, "self": s.URL + "/rest/api/3/issue/" + i.Key, "fields": object{"labels": i.Labels}})
	}
	answer(w, http.StatusOK, object{"issues": out, "isLast": true})
}

func (s *Server) jiraOpen(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Fields struct {
			Project     struct{ Key string }  `json:"project"`
			Type        struct{ Name string } `json:"issuetype"`
			Summary     string                `json:"summary"`
			Labels      []string              `json:"labels"`
			Description json.RawMessage       `json:"description"`
		} `json:"fields"`
	}
	f := &q.Fields
	if err := decode(r, &q); err != nil {
		jiraRefuses(w, "Invalid request payload. Refer to the REST API documentation and try again.", object{})
		return
	}
	var doc Node
	switch {
	case f.Project.Key != s.Project:
		jiraRefuses(w, "", object{"project": "valid project is required"})
	case !slices.Contains([]string{"Task", "Bug"}, f.Type.Name):
		jiraRefuses(w, "", object{"issuetype": "Specify a valid issue type"})
	case f.Summary == "" || len([]rune(f.Summary)) > 255 || strings.Contains(f.Summary, "\n"):
		jiraRefuses(w, "", object{"summary": "The summary is invalid because it contains newline characters."})
	case slices.ContainsFunc(f.Labels, func(l string) bool { return strings.ContainsAny(l, " \t") }):
		jiraRefuses(w, "", object{"labels": "The label contains spaces which is invalid."})
	case json.Unmarshal(f.Description, &doc) != nil || doc.Version != 1 || doc.problem() != "":
		jiraRefuses(w, "", object{"description": "Operation value must be an Atlassian Document (see the Atlassian Document Format)"})
	default:
		made := s.add(Issue{Key: fmt.Sprintf("%s-%d", s.Project, len(s.issues)+1), Title: f.Summary, Doc: f.Description, Labels: f.Labels})
		answer(w, http.StatusCreated, object{"id": fmt.Sprint(10000 + made.Number), "key": made.Key, "self": s.URL + "/rest/api/3/issue/" + made.Key})
	}
}
