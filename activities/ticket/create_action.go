// Package ticket opens an issue for an incident in GitHub, GitLab or Jira.
//
// It opens at most one issue for an incident, and only in the configured tracker. Attacker-controlled strings never
// become markup: they mention nobody, link nowhere and close nothing.
package ticket

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"stanch/activities"
	"stanch/activities/httpclient"
	"stanch/playbooks"
)

// Issue is a ticket in its tracker.
type Issue struct {
	ID     string // "#12", "OPS-12"
	URL    string
	Labels []string
}

// Tracker is a product that stores tickets. Implementations are safe for concurrent use.
type Tracker interface {
	// Find returns the oldest issue with a label, open or closed, or nil.
	Find(ctx context.Context, label string) (*Issue, error)
	// Open creates an issue.
	Open(ctx context.Context, d Draft) (Issue, error)
}

// ManifestReader returns an incident's manifest and its integrity problems.
type ManifestReader interface {
	Manifest(incident string) ([]activities.ManifestLine, []activities.IntegrityFinding, error)
}

// CreateAction is `ticket: create`.
type CreateAction struct {
	Tracker   Tracker        // nil: no tracker is configured
	Manifests ManifestReader // nil: tickets contain no manifest
	Labels    []string
	// Failpoint is called between finding and opening, and after opening, so that tests can kill the process there. Nil
	// does nothing.
	Failpoint func(point string)

	mu            sync.Mutex
	incidentLocks *simplelru.LRU[string, *incidentLock] // by incident id
}

// incidentLock serializes the tickets of one incident: if two playbooks open one at the same time, the second finds the
// first's.
type incidentLock struct {
	sync.Mutex
	openedIssue *Issue // issue that this process opened; a tracker's search may find it only later
}

var _ activities.Observer = (*CreateAction)(nil)

// CreateParams are the parameters of create.
type CreateParams struct {
	Title  string   `json:"title,omitempty" doc:"the title; default the incident and its workload"`
	Labels []string `json:"labels,omitempty" doc:"labels in addition to those in stanch.yaml"`
}

// CreateOutputs are the outputs of create.
type CreateOutputs struct {
	URL     string `json:"url" expr:"url"`
	ID      string `json:"id" expr:"id"`
	Created bool   `json:"created" expr:"created"`
}

// ticketTimeout limits the step, including the delays that a tracker requests.
const ticketTimeout = 5 * time.Minute

// Spec returns the spec of create.
func (*CreateAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "create", Verb: playbooks.VerbTicket, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:     "Create a ticket with the known facts and the evidence manifest, once per incident.",
		Params:  CreateParams{}, Outputs: CreateOutputs{}, AttemptTimeout: ticketTimeout,
	}
}

// maxIncidentLocks limits how many incidents are remembered.
const maxIncidentLocks = 1000

func (a *CreateAction) lockFor(incident string) *incidentLock {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.incidentLocks == nil {
		a.incidentLocks, _ = simplelru.NewLRU[string, *incidentLock](maxIncidentLocks, nil) // fails only without a size
	}
	d, ok := a.incidentLocks.Get(incident)
	if !ok {
		d = &incidentLock{}
		a.incidentLocks.Add(incident, d)
	}
	return d
}

var incidentIDPattern = regexp.MustCompile(`^INC-[0-9A-Z]{10,40}$`)

// Observe opens the incident's ticket, or finds the existing one.
func (a *CreateAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.DecodeParams[CreateParams](r)
	if err != nil {
		return none, err
	}
	if a.Tracker == nil {
		return none, activities.Refusef("tickets are not configured; add `ticket:` to stanch.yaml")
	}
	if !incidentIDPattern.MatchString(r.IncidentRef.ID) {
		return none, activities.Refusef("invalid incident id %q", httpclient.SanitizeLine(r.IncidentRef.ID, 60))
	}
	d := a.lockFor(r.IncidentRef.ID)
	d.Lock()
	defer d.Unlock()
	if d.openedIssue != nil {
		return issueObservation(*d.openedIssue), nil
	}
	label := IncidentLabel(r.IncidentRef.ID)
	there, err := a.Tracker.Find(ctx, label)
	if err != nil {
		return none, fmt.Errorf("look for the ticket: %w", err)
	}
	if there != nil {
		return issueObservation(*there), nil
	}
	draft, err := a.buildDraft(r.IncidentRef, params, label)
	if err != nil {
		return none, err
	}
	a.hitFailpoint("ticket/absent")
	issue, err := a.Tracker.Open(ctx, draft)
	if err != nil {
		return none, fmt.Errorf("open the ticket: %w", err)
	}
	a.hitFailpoint("ticket/opened")
	d.openedIssue = &issue
	out := activities.Observation{Outputs: CreateOutputs{URL: issue.URL, ID: issue.ID, Created: true}}
	if !slices.Contains(issue.Labels, label) {
		out.MissingNote = "the tracker ignored the label " + label +
			"; allow the token to set labels, because Stanch finds its tickets by the label"
	}
	return out, nil
}

func (a *CreateAction) hitFailpoint(point string) {
	if a.Failpoint != nil {
		a.Failpoint(point)
	}
}

func issueObservation(i Issue) activities.Observation {
	return activities.Observation{
		Outputs: CreateOutputs{URL: i.URL, ID: i.ID}, Unchanged: true,
		MissingNote: "the incident already has this ticket",
	}
}

// IncidentLabel returns the label by which an incident's ticket is found.
func IncidentLabel(incident string) string { return "stanch-" + incident }

var nonLabelChars = regexp.MustCompile(`[^\pL\pN.:_/-]+`)

// Limits of labels: their length in characters (GitHub's limit), and their number.
const (
	maxLabelRunes = 50
	maxLabels     = 20
)

// sanitizeLabels returns labels that are valid in every tracker.
func sanitizeLabels(all ...string) []string {
	var out []string
	for _, l := range all {
		l = strings.Trim(nonLabelChars.ReplaceAllString(l, "-"), "-")
		if r := []rune(l); len(r) > maxLabelRunes {
			l = string(r[:maxLabelRunes])
		}
		if l != "" && !slices.Contains(out, l) && len(out) < maxLabels {
			out = append(out, l)
		}
	}
	return out
}

// buildDraft collects the content of the ticket.
func (a *CreateAction) buildDraft(in activities.IncidentRef, params CreateParams, label string) (Draft, error) {
	title := params.Title
	if title == "" {
		title = in.Workload.String() + " in " + in.Cluster
	}
	d := Draft{
		Title:  SanitizeTitle(in.ID + ": " + title),
		Labels: sanitizeLabels(append(append([]string{label}, a.Labels...), params.Labels...)...), IncidentID: in.ID,
		Facts: incidentFacts(in), Summary: httpclient.SanitizeText(in.Summary, maxSummaryRunes),
	}
	if a.Manifests == nil {
		return d, nil
	}
	lines, findings, err := a.Manifests.Manifest(in.ID)
	if err != nil {
		return Draft{}, fmt.Errorf("read the evidence manifest: %w", err)
	}
	d.ManifestEntries, d.ManifestHead = len(lines), activities.LastLineHash(lines)
	for _, l := range lines {
		if l.Entry.Kind == activities.EntryKindEvidence && l.Entry.Evidence != nil {
			d.EvidenceRows = append(d.EvidenceRows, newEvidenceRow(*l.Entry.Evidence))
		}
	}
	for _, f := range findings {
		d.ManifestProblems = append(d.ManifestProblems, httpclient.SanitizeLine(f.String(), maxCellRunes))
	}
	return d, nil
}

// safeURL returns a URL of a response if people can open it, otherwise "".
func safeURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || len(s) > 1000 {
		return ""
	}
	return u.String()
}

// errUnexpectedResponse means that a tracker's response does not match its documentation.
var errUnexpectedResponse = errors.New("the response does not have the documented format")
