package ticket

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"stanch/activities/httpclient"
)

// GitLab creates tickets as issues of a project.
type GitLab struct {
	client     httpclient.Client
	issuesPath string
}

// NewGitLab returns the tracker of a project, by its number or its path.
func NewGitLab(w TrackerConfig) *GitLab {
	return &GitLab{
		client: httpclient.Client{
			Name: "GitLab", BaseURL: w.URL, Secrets: []string{w.Token}, HTTPClient: w.HTTPClient,
			Header: http.Header{"Private-Token": {w.Token}},
		},
		issuesPath: "/api/v4/projects/" + url.PathEscape(w.Project) + "/issues",
	}
}

var _ Tracker = (*GitLab)(nil)

type gitlabIssue struct {
	IID    int      `json:"iid"`
	URL    string   `json:"web_url"`
	Labels []string `json:"labels"`
}

func (i gitlabIssue) toIssue() Issue {
	return Issue{ID: fmt.Sprintf("#%d", i.IID), URL: safeURL(i.URL), Labels: i.Labels}
}

// Find lists the issues with a label.
func (g *GitLab) Find(ctx context.Context, label string) (*Issue, error) {
	query := url.Values{
		"labels": {label}, "state": {"all"}, "scope": {"all"}, "order_by": {"created_at"}, "sort": {"asc"},
		"per_page": {"1"},
	}
	raw, err := g.client.Call(ctx, http.MethodGet, g.issuesPath+"?"+query.Encode(), nil, nil)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names GitLab
	}
	var issues []gitlabIssue
	if err := json.Unmarshal(raw, &issues); err != nil {
		return nil, fmt.Errorf("list GitLab issues: %w", errUnexpectedResponse)
	}
	if len(issues) == 0 || issues[0].IID == 0 {
		return nil, nil //nolint:nilnil // nil means none
	}
	out := issues[0].toIssue()
	return &out, nil
}

// Open creates an issue.
func (g *GitLab) Open(ctx context.Context, d Draft) (Issue, error) {
	body, err := json.Marshal(map[string]any{"title": d.Title, "description": Markdown(d), "labels": strings.Join(d.Labels,
		",")})
	if err != nil {
		return Issue{}, fmt.Errorf("encode the issue: %w", err)
	}
	raw, err := g.client.Call(ctx, http.MethodPost, g.issuesPath, nil, body)
	if err != nil {
		return Issue{}, err //nolint:wrapcheck // the error names GitLab
	}
	var made gitlabIssue
	if err := json.Unmarshal(raw, &made); err != nil || made.IID == 0 {
		return Issue{}, fmt.Errorf("create a GitLab issue: %w", errUnexpectedResponse)
	}
	return made.toIssue(), nil
}
