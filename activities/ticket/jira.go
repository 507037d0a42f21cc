package ticket

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"stanch/activities"
	"stanch/activities/outside"
)

// Jira keeps tickets as issues of a project in Jira Cloud. It writes documents and no wiki markup: in those a text is
// a text, whatever it holds.
type Jira struct {
	peer    outside.Peer
	base    string
	project string
	kind    string
}

// NewJira makes the tracker of a project, by its key.
func NewJira(w Where) *Jira {
	login := base64.StdEncoding.EncodeToString([]byte(w.User + ":" + w.Token))
	return &Jira{
		peer: outside.Peer{
			Name: "Jira", Base: w.URL, Secrets: []string{w.Token, login}, HTTP: w.HTTP,
			Header: http.Header{"Authorization": {"Basic " + login}, "Accept": {"application/json"}},
		},
		base: w.URL, project: w.Project, kind: cmp.Or(w.Type, "Task"),
	}
}

var _ Tracker = (*Jira)(nil)

// settle is how long Jira's search may take to know a new issue.
const settle = 30 * time.Second

type jiraIssue struct {
	Key    string `json:"key"`
	Fields struct {
		Labels []string `json:"labels"`
	} `json:"fields"`
}

func (j *Jira) issue(i jiraIssue) Issue {
	return Issue{ID: i.Key, URL: address(strings.TrimRight(j.base, "/") + "/browse/" + url.PathEscape(i.Key)), Labels: i.Fields.Labels}
}

// quoted writes a string of JQL.
func quoted(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }

// Find searches for the issues with a label.
func (j *Jira) Find(ctx context.Context, label string) (*Issue, error) {
	body, err := json.Marshal(map[string]any{
		"jql": "project = " + quoted(j.project) + " AND labels = " + quoted(label) + " ORDER BY created ASC", "fields": []string{"labels"}, "maxResults": 1,
	})
	if err != nil {
		return nil, fmt.Errorf("write the search: %w", err)
	}
	raw, err := j.peer.Call(ctx, http.MethodPost, "/rest/api/3/search/jql", nil, body)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names Jira
	}
	var answer struct {
		Issues *[]jiraIssue `json:"issues"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Issues == nil {
		return nil, fmt.Errorf("the search of Jira: %w", errAnswer)
	}
	if len(*answer.Issues) == 0 || (*answer.Issues)[0].Key == "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	out := j.issue((*answer.Issues)[0])
	return &out, nil
}

// Open makes an issue.
func (j *Jira) Open(ctx context.Context, d Draft) (Issue, error) {
	body, err := json.Marshal(map[string]any{"fields": map[string]any{
		"project": map[string]string{"key": j.project}, "issuetype": map[string]string{"name": j.kind},
		"summary": d.Title, "labels": d.Labels, "description": Document(d),
	}})
	if err != nil {
		return Issue{}, fmt.Errorf("write the issue: %w", err)
	}
	raw, err := j.peer.Call(ctx, http.MethodPost, "/rest/api/3/issue", nil, body)
	if errors.Is(err, outside.ErrUnsure) {
		// It may be there, and its search not know it yet.
		return Issue{}, &activities.LaterError{After: settle, Err: err}
	}
	if err != nil {
		return Issue{}, err //nolint:wrapcheck // it names Jira
	}
	var made jiraIssue
	if err := json.Unmarshal(raw, &made); err != nil || made.Key == "" {
		return Issue{}, fmt.Errorf("the new issue of Jira: %w", errAnswer)
	}
	made.Fields.Labels = d.Labels // Jira takes all of a request or nothing
	return j.issue(made), nil
}
