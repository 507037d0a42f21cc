// Package ticket opens an issue for an incident where people keep theirs: GitHub, GitLab or Jira.
//
// It refuses to open two for one incident, to go where no configuration points, and to let a word of an incident be
// markup: what an attacker named a process pings nobody, links nowhere and closes nothing.
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

	"stanch/activities"
	"stanch/activities/httpclient"
	"stanch/playbooks"
)

// Issue is a ticket as its tracker knows it.
type Issue struct {
	ID     string // "#12", "OPS-12"
	URL    string
	Labels []string
}

// Tracker is a product that keeps tickets.
type Tracker interface {
	// Find gives the oldest issue that has a label, whether it is open or closed, or nil.
	Find(ctx context.Context, label string) (*Issue, error)
	// Open makes an issue.
	Open(ctx context.Context, d TicketDraft) (Issue, error)
}

// ManifestReader gives an incident's manifest and what is wrong with it.
type ManifestReader interface {
	Manifest(incident string) ([]activities.ManifestLine, []activities.IntegrityFinding, error)
}

// CreateAction is `ticket: create`.
type CreateAction struct {
	Tracker   Tracker        // nil: none is configured
	Manifests ManifestReader // nil: a ticket holds no manifest
	Labels    []string
	// Failpoint is called between finding and opening, and after it, so that tests can kill the process there. Nil does nothing.
	Failpoint func(point string)

	mu            sync.Mutex
	incidentLocks map[string]*incidentLock // by incident
}

// incidentLock serves one at a time: of two playbooks that open an incident's ticket at once the second finds the first's.
type incidentLock struct {
	sync.Mutex
	openedIssue *Issue // what was opened here. A search may know of it only later.
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

// ticketTimeout bounds the step, with what a tracker wants Stanch to wait.
const ticketTimeout = 5 * time.Minute

// Spec declares create.
func (*CreateAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "create", Verb: playbooks.VerbTicket, Class: playbooks.ClassObserve, Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:    "Create a ticket with the known facts and the evidence manifest, once per incident.",
		Params: CreateParams{}, Outputs: CreateOutputs{}, AttemptTimeout: ticketTimeout,
	}
}

// maxIncidentLocks bounds what is remembered.
const maxIncidentLocks = 1000

func (a *CreateAction) lockFor(incident string) *incidentLock {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.incidentLocks == nil || len(a.incidentLocks) >= maxIncidentLocks {
		a.incidentLocks = map[string]*incidentLock{}
	}
	d, ok := a.incidentLocks[incident]
	if !ok {
		d = &incidentLock{}
		a.incidentLocks[incident] = d
	}
	return d
}

var incidentIDPattern = regexp.MustCompile(`^INC-[0-9A-Z]{10,40}$`)

// Observe opens the incident's ticket, or finds it.
func (a *CreateAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.DecodeParams[CreateParams](r)
	if err != nil {
		return none, err
	}
	if a.Tracker == nil {
		return none, activities.Refusef("no tickets are configured: add `ticket:` to stanch.yaml")
	}
	if !incidentIDPattern.MatchString(r.IncidentRef.ID) {
		return none, activities.Refusef("%q is not an incident's id", httpclient.SanitizeLine(r.IncidentRef.ID, 60))
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
		out.MissingNote = "the tracker dropped the label " + label + ": give the token the right to set labels, or the ticket is not found again"
	}
	return out, nil
}

func (a *CreateAction) hitFailpoint(point string) {
	if a.Failpoint != nil {
		a.Failpoint(point)
	}
}

func issueObservation(i Issue) activities.Observation {
	return activities.Observation{Outputs: CreateOutputs{URL: i.URL, ID: i.ID}, Unchanged: true, MissingNote: "the incident has this ticket already"}
}

// IncidentLabel is the label by which an incident's ticket is found again.
func IncidentLabel(incident string) string { return "stanch-" + incident }

var nonLabelChars = regexp.MustCompile(`[^\pL\pN.:_/-]+`)

// The bounds of labels: GitHub's in characters, and enough in number.
const (
	maxLabelRunes = 50
	maxLabels     = 20
)

// sanitizeLabels cleans labels so that each is one, in every tracker.
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

// buildDraft gathers what the ticket says.
func (a *CreateAction) buildDraft(in activities.IncidentRef, params CreateParams, label string) (TicketDraft, error) {
	title := params.Title
	if title == "" {
		title = in.Workload.String() + " in " + in.Cluster
	}
	d := TicketDraft{Title: SanitizeTitle(in.ID + ": " + title), Labels: sanitizeLabels(append(append([]string{label}, a.Labels...), params.Labels...)...), IncidentID: in.ID, Facts: incidentFacts(in), Summary: httpclient.SanitizeText(in.Summary, maxSummaryRunes)}
	if a.Manifests == nil {
		return d, nil
	}
	lines, findings, err := a.Manifests.Manifest(in.ID)
	if err != nil {
		return TicketDraft{}, fmt.Errorf("read the evidence's manifest: %w", err)
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

// safeURL gives a URL of an answer if a person can open it.
func safeURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || len(s) > 1000 {
		return ""
	}
	return u.String()
}

// errUnexpectedResponse says that a tracker's answer is not what it says of itself.
var errUnexpectedResponse = errors.New("the answer is not one that the tracker's documentation describes")
