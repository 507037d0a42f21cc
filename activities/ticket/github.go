package ticket

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"stanch/activities/outside"
)

// GitHub keeps tickets as issues of a repository.
type GitHub struct {
	peer outside.Peer
	repo string // OWNER/NAME, escaped
}

// Where a tracker is and who Stanch is there.
type Where struct {
	URL     string
	Project string
	Token   string
	User    string // Jira
	Type    string // Jira
	HTTP    *http.Client
}

// NewGitHub makes the tracker of a repository.
func NewGitHub(w Where) *GitHub {
	owner, name, _ := strings.Cut(w.Project, "/")
	return &GitHub{
		peer: outside.Peer{
			Name: "GitHub", Base: w.URL, Secrets: []string{w.Token}, HTTP: w.HTTP,
			Header: http.Header{"Authorization": {"Bearer " + w.Token}, "Accept": {"application/vnd.github+json"}, "X-Github-Api-Version": {"2022-11-28"}},
		},
		repo: "/repos/" + url.PathEscape(owner) + "/" + url.PathEscape(name),
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

func (i githubIssue) issue() Issue {
	out := Issue{ID: fmt.Sprintf("#%d", i.Number), URL: address(i.URL)}
	for _, l := range i.Labels {
		out.Labels = append(out.Labels, l.Name)
	}
	return out
}

// Find lists the issues with a label. It is no search: what was opened a moment ago is in it.
func (g *GitHub) Find(ctx context.Context, label string) (*Issue, error) {
	query := url.Values{"labels": {label}, "state": {"all"}, "sort": {"created"}, "direction": {"asc"}, "per_page": {"10"}}
	raw, err := g.peer.Call(ctx, http.MethodGet, g.repo+"/issues?"+query.Encode(), nil, nil)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names GitHub
	}
	var issues []githubIssue
	if err := json.Unmarshal(raw, &issues); err != nil {
		return nil, fmt.Errorf("GitHub's issues: %w", errAnswer)
	}
	for _, i := range issues {
		if i.Number > 0 && i.PullRequest == nil { // its issues are pull requests too
			out := i.issue()
			return &out, nil
		}
	}
	return nil, nil //nolint:nilnil // none is an answer
}

// Open makes an issue.
func (g *GitHub) Open(ctx context.Context, d Draft) (Issue, error) {
	body, err := json.Marshal(map[string]any{"title": d.Title, "body": Markdown(d), "labels": d.Labels})
	if err != nil {
		return Issue{}, fmt.Errorf("write the issue: %w", err)
	}
	raw, err := g.peer.Call(ctx, http.MethodPost, g.repo+"/issues", nil, body)
	if err != nil {
		return Issue{}, err //nolint:wrapcheck // it names GitHub
	}
	var made githubIssue
	if err := json.Unmarshal(raw, &made); err != nil || made.Number == 0 {
		return Issue{}, fmt.Errorf("GitHub's new issue: %w", errAnswer)
	}
	return made.issue(), nil
}
