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

// StartJira starts a fake Jira Cloud with the project OPS.
func StartJira(t testing.TB) *FakeTracker {
	t.Helper()
	return startServer(t, "OPS", func(s *FakeTracker) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("POST /rest/api/3/search/jql", s.jiraSearch)
		mux.HandleFunc("POST /rest/api/3/issue", s.jiraCreate)
		mux.HandleFunc("/rest/api/3/search", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(
				w,
				http.StatusGone,
				jsonObject{
					"errorMessages": []string{"The requested API has been removed. Please migrate to the /rest/api/3/search/jql API."},
				},
			)
		})
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, token, ok := r.BasicAuth(); !ok || user != User || token != Token {
				w.Header().Set("Www-Authenticate", "OAuth realm=\"jira\"")
				writeJSON(w, http.StatusUnauthorized,
					jsonObject{
						"errorMessages": []string{"Client must be authenticated to access this resource."},
						"errors":        jsonObject{},
					})
				return
			}
			mux.ServeHTTP(w, r)
		})
	})
}

func writeJiraError(w http.ResponseWriter, message string, fields jsonObject) {
	messages := []string{}
	if message != "" {
		messages = append(messages, message)
	}
	writeJSON(w, http.StatusBadRequest, jsonObject{"errorMessages": messages, "errors": fields})
}

// jqlPattern is the only form of query that this Jira supports. Its strings contain no quotes.
var jqlPattern = regexp.MustCompile(`^project = "([A-Z][A-Z0-9]+)" AND labels = "([^"\\]+)" ORDER BY created ASC$`)

func (s *FakeTracker) jiraSearch(w http.ResponseWriter, r *http.Request) {
	var q struct {
		JQL    string   `json:"jql"`
		Fields []string `json:"fields"`
		Max    int      `json:"maxResults"`
	}
	if err := decodeStrict(r, &q); err != nil {
		writeJiraError(w, "Invalid request payload. Refer to the REST API documentation and try again.", jsonObject{})
		return
	}
	m := jqlPattern.FindStringSubmatch(q.JQL)
	if m == nil || m[1] != s.Project {
		writeJiraError(w, "Error in the JQL Query", jsonObject{})
		return
	}
	out := []jsonObject{}
	for _, i := range s.issuesWithLabels(m[2]) {
		out = append(out, jsonObject{"id": fmt.Sprint(10000 + i.Number), "key": i.Key, "self": s.URL + "/rest/api/3/issue/" +
			i.Key, "fields": jsonObject{"labels": i.Labels}})
	}
	writeJSON(w, http.StatusOK, jsonObject{"issues": out, "isLast": true})
}

func (s *FakeTracker) jiraCreate(w http.ResponseWriter, r *http.Request) {
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
	if err := decodeStrict(r, &q); err != nil {
		writeJiraError(w, "Invalid request payload. Refer to the REST API documentation and try again.", jsonObject{})
		return
	}
	var doc DocumentNode
	switch {
	case f.Project.Key != s.Project:
		writeJiraError(w, "", jsonObject{"project": "valid project is required"})
	case !slices.Contains([]string{"Task", "Bug"}, f.Type.Name):
		writeJiraError(w, "", jsonObject{"issuetype": "Specify a valid issue type"})
	case f.Summary == "" || len([]rune(f.Summary)) > 255 || strings.Contains(f.Summary, "\n"):
		writeJiraError(w, "", jsonObject{"summary": "The summary is invalid because it contains newline characters."})
	case slices.ContainsFunc(f.Labels, func(l string) bool { return strings.ContainsAny(l, " \t") }):
		writeJiraError(w, "", jsonObject{"labels": "The label contains spaces which is invalid."})
	case json.Unmarshal(f.Description, &doc) != nil || doc.Version != 1 || doc.validationError() != "":
		writeJiraError(
			w,
			"",
			jsonObject{"description": "Operation value must be an Atlassian Document (see the Atlassian Document Format)"},
		)
	default:
		made := s.addIssue(Issue{
			Key: fmt.Sprintf("%s-%d", s.Project, len(s.issues)+1), Title: f.Summary,
			Document: f.Description, Labels: f.Labels,
		})
		writeJSON(w, http.StatusCreated, jsonObject{
			"id": fmt.Sprint(10000 + made.Number), "key": made.Key,
			"self": s.URL + "/rest/api/3/issue/" + made.Key,
		})
	}
}
