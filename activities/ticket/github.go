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

// GitHub creates tickets as issues of a repository.
type GitHub struct {
	client   httpclient.Client
	repoPath string // OWNER/NAME, escaped
}

// TrackerConfig is the address, the credentials and the project of a tracker.
type TrackerConfig struct {
	URL           string
	Project       string
	Token         string
	JiraUser      string // only Jira
	JiraIssueType string // only Jira
	HTTPClient    *http.Client
}

// NewGitHub returns the tracker of a repository.
func NewGitHub(w TrackerConfig) *GitHub {
	owner, name, _ := strings.Cut(w.Project, "/")
	return &GitHub{
		client: httpclient.Client{
			Name: "GitHub", BaseURL: w.URL, Secrets: []string{w.Token}, HTTPClient: w.HTTPClient,
			Header: http.Header{
				"Authorization": {"Bearer " + w.Token}, "Accept": {"application/vnd.github+json"},
				"X-Github-Api-Version": {"2022-11-28"},
			},
		},
		repoPath: "/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(name),
	}
}

var _ Tracker = (*GitHub)(nil)

type githubIssue struct {
	Number      int             `json:"number"`
	URL         string          `json:"html_url"`
	PullRequest json.RawMessage `json:"pull_request"`
	Labels      []struct {
		Name string `json:"name"`
	} `json:"labels"`
}

func (i githubIssue) toIssue() Issue {
	out := Issue{ID: fmt.Sprintf("#%d", i.Number), URL: safeURL(i.URL)}
	for _, l := range i.Labels {
		out.Labels = append(out.Labels, l.Name)
	}
	return out
}

// Find lists the issues with a label. It does not use search, so it includes issues that were just opened.
func (g *GitHub) Find(ctx context.Context, label string) (*Issue, error) {
	query := url.Values{"labels": {label}, "state": {"all"}, "sort": {"created"}, "direction": {"asc"}, "per_page": {"10"}}
	raw, err := g.client.Call(ctx, http.MethodGet, g.repoPath+"/issues?"+query.Encode(), nil, nil)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names GitHub
	}
	var issues []githubIssue
	if err := json.Unmarshal(raw, &issues); err != nil {
		return nil, fmt.Errorf("list GitHub issues: %w", errUnexpectedResponse)
	}
	for _, i := range issues {
		if i.Number > 0 && i.PullRequest == nil { // GitHub lists pull requests as issues
			out := i.toIssue()
			return &out, nil
		}
	}
	return nil, nil //nolint:nilnil // nil means none
}

// Open creates an issue.
func (g *GitHub) Open(ctx context.Context, d Draft) (Issue, error) {
	body, err := json.Marshal(map[string]any{"title": d.Title, "body": Markdown(d), "labels": d.Labels})
	if err != nil {
		return Issue{}, fmt.Errorf("encode the issue: %w", err)
	}
	raw, err := g.client.Call(ctx, http.MethodPost, g.repoPath+"/issues", nil, body)
	if err != nil {
		return Issue{}, err //nolint:wrapcheck // the error names GitHub
	}
	var made githubIssue
	if err := json.Unmarshal(raw, &made); err != nil || made.Number == 0 {
		return Issue{}, fmt.Errorf("create a GitHub issue: %w", errUnexpectedResponse)
	}
	return made.toIssue(), nil
}
