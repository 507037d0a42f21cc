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
	"stanch/activities/httpclient"
)

// Jira creates tickets as issues of a project in Jira Cloud. It writes documents and no wiki markup, so that text stays
// text.
type Jira struct {
	client    httpclient.Client
	base      string
	project   string
	issueType string
}

// NewJira returns the tracker of a project, by its key.
func NewJira(w TrackerConfig) *Jira {
	login := base64.StdEncoding.EncodeToString([]byte(w.JiraUser + ":" + w.Token))
	return &Jira{
		client: httpclient.Client{
			Name: "Jira", BaseURL: w.URL, Secrets: []string{w.Token, login}, HTTPClient: w.HTTPClient,
			Header: http.Header{"Authorization": {"Basic " + login}, "Accept": {"application/json"}},
		},
		base: w.URL, project: w.Project, issueType: cmp.Or(w.JiraIssueType, "Task"),
	}
}

var _ Tracker = (*Jira)(nil)

// searchIndexDelay is how long Jira's search may need to find a new issue.
const searchIndexDelay = 30 * time.Second

type jiraIssue struct {
	Key    string `json:"key"`
	Fields struct {
		Labels []string `json:"labels"`
	} `json:"fields"`
}

func (j *Jira) toIssue(i jiraIssue) Issue {
	return Issue{
		ID: i.Key, URL: safeURL(strings.TrimRight(j.base, "/") + "/browse/" + url.PathEscape(i.Key)),
		Labels: i.Fields.Labels,
	}
}

// quoteJQL returns a quoted JQL string.
func quoteJQL(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// Find searches for the issues with a label.
func (j *Jira) Find(ctx context.Context, label string) (*Issue, error) {
	body, err := json.Marshal(map[string]any{
		"jql":    "project = " + quoteJQL(j.project) + " AND labels = " + quoteJQL(label) + " ORDER BY created ASC",
		"fields": []string{"labels"}, "maxResults": 1,
	})
	if err != nil {
		return nil, fmt.Errorf("encode the search: %w", err)
	}
	raw, err := j.client.Call(ctx, http.MethodPost, "/rest/api/3/search/jql", nil, body)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names Jira
	}
	var answer struct {
		Issues *[]jiraIssue `json:"issues"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Issues == nil {
		return nil, fmt.Errorf("search Jira: %w", errUnexpectedResponse)
	}
	if len(*answer.Issues) == 0 || (*answer.Issues)[0].Key == "" {
		return nil, nil //nolint:nilnil // nil means none
	}
	out := j.toIssue((*answer.Issues)[0])
	return &out, nil
}

// Open creates an issue.
func (j *Jira) Open(ctx context.Context, d Draft) (Issue, error) {
	body, err := json.Marshal(map[string]any{"fields": map[string]any{
		"project": map[string]string{"key": j.project}, "issuetype": map[string]string{"name": j.issueType},
		"summary": d.Title, "labels": d.Labels, "description": JiraDocument(d),
	}})
	if err != nil {
		return Issue{}, fmt.Errorf("encode the issue: %w", err)
	}
	raw, err := j.client.Call(ctx, http.MethodPost, "/rest/api/3/issue", nil, body)
	if errors.Is(err, httpclient.ErrOutcomeUnknown) {
		// The issue may exist although the search does not find it yet.
		return Issue{}, &activities.RetryAfterError{Delay: searchIndexDelay, Err: err}
	}
	if err != nil {
		return Issue{}, err //nolint:wrapcheck // the error names Jira
	}
	var made jiraIssue
	if err := json.Unmarshal(raw, &made); err != nil || made.Key == "" {
		return Issue{}, fmt.Errorf("create a Jira issue: %w", errUnexpectedResponse)
	}
	made.Fields.Labels = d.Labels // Jira rejects the complete request if one label is invalid
	return j.toIssue(made), nil
}
