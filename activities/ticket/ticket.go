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
	"stanch/activities/outside"
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
	Open(ctx context.Context, d Draft) (Issue, error)
}

// Records gives an incident's manifest and what is wrong with it.
type Records interface {
	Manifest(incident string) ([]activities.Line, []activities.Finding, error)
}

// Create is `ticket: create`.
type Create struct {
	Tracker Tracker // nil: none is configured
	Records Records // nil: a ticket holds no manifest
	Labels  []string
	// At is called between finding and opening, and after it, so that tests can kill the process there. Nil does nothing.
	At func(point string)

	mu   sync.Mutex
	last map[string]*desk // by incident
}

// desk serves one at a time: of two playbooks that open an incident's ticket at once the second finds the first's.
type desk struct {
	sync.Mutex
	issue *Issue // what was opened here. A search may know of it only later.
}

var _ activities.Observer = (*Create)(nil)

// CreateParams are the parameters of create.
type CreateParams struct {
	Title  string   `json:"title,omitempty" doc:"the title; the incident and its workload if not given"`
	Labels []string `json:"labels,omitempty" doc:"labels beside those of stanch.yaml"`
}

// CreateOutputs are the outputs of create.
type CreateOutputs struct {
	URL     string `json:"url" expr:"url"`
	ID      string `json:"id" expr:"id"`
	Created bool   `json:"created" expr:"created"`
}

// patience bounds the step, with what a tracker wants Stanch to wait.
const patience = 5 * time.Minute

// Spec declares create.
func (*Create) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "create", Verb: playbooks.VerbTicket, Class: playbooks.ClassObserve, Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:    "Open a ticket with what is known and the evidence's manifest, once for an incident.",
		Params: CreateParams{}, Outputs: CreateOutputs{}, AttemptTimeout: patience,
	}
}

// maxDesks bounds what is remembered.
const maxDesks = 1000

func (a *Create) desk(incident string) *desk {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil || len(a.last) >= maxDesks {
		a.last = map[string]*desk{}
	}
	d, ok := a.last[incident]
	if !ok {
		d = &desk{}
		a.last[incident] = d
	}
	return d
}

var incidentID = regexp.MustCompile(`^INC-[0-9A-Z]{10,40}$`)

// Observe opens the incident's ticket, or finds it.
func (a *Create) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.Params[CreateParams](r)
	if err != nil {
		return none, err
	}
	if a.Tracker == nil {
		return none, activities.Refuse("no tickets are configured: add `ticket:` to stanch.yaml")
	}
	if !incidentID.MatchString(r.Incident.ID) {
		return none, activities.Refuse("%q is not an incident's id", outside.Line(r.Incident.ID, 60))
	}
	d := a.desk(r.Incident.ID)
	d.Lock()
	defer d.Unlock()
	if d.issue != nil {
		return found(*d.issue), nil
	}
	label := Label(r.Incident.ID)
	there, err := a.Tracker.Find(ctx, label)
	if err != nil {
		return none, fmt.Errorf("look for the ticket: %w", err)
	}
	if there != nil {
		return found(*there), nil
	}
	draft, err := a.draft(r.Incident, params, label)
	if err != nil {
		return none, err
	}
	a.at("ticket/absent")
	issue, err := a.Tracker.Open(ctx, draft)
	if err != nil {
		return none, fmt.Errorf("open the ticket: %w", err)
	}
	a.at("ticket/opened")
	d.issue = &issue
	out := activities.Observation{Outputs: CreateOutputs{URL: issue.URL, ID: issue.ID, Created: true}}
	if !slices.Contains(issue.Labels, label) {
		out.Note = "the tracker dropped the label " + label + ": give the token the right to set labels, or the ticket is not found again"
	}
	return out, nil
}

func (a *Create) at(point string) {
	if a.At != nil {
		a.At(point)
	}
}

func found(i Issue) activities.Observation {
	return activities.Observation{Outputs: CreateOutputs{URL: i.URL, ID: i.ID}, Unchanged: true, Note: "the incident has this ticket already"}
}

// Label is the label by which an incident's ticket is found again.
func Label(incident string) string { return "stanch-" + incident }

var notInLabel = regexp.MustCompile(`[^\pL\pN.:_/-]+`)

// The bounds of labels: GitHub's in characters, and enough in number.
const (
	maxLabel  = 50
	maxLabels = 20
)

// labels cleans labels so that each is one, in every tracker.
func labels(all ...string) []string {
	var out []string
	for _, l := range all {
		l = strings.Trim(notInLabel.ReplaceAllString(l, "-"), "-")
		if r := []rune(l); len(r) > maxLabel {
			l = string(r[:maxLabel])
		}
		if l != "" && !slices.Contains(out, l) && len(out) < maxLabels {
			out = append(out, l)
		}
	}
	return out
}

// draft gathers what the ticket says.
func (a *Create) draft(in activities.Brief, params CreateParams, label string) (Draft, error) {
	title := params.Title
	if title == "" {
		title = in.Workload.String() + " in " + in.Cluster
	}
	d := Draft{Title: Title(in.ID + ": " + title), Labels: labels(append(append([]string{label}, a.Labels...), params.Labels...)...), Incident: in.ID, Facts: facts(in), Summary: outside.Text(in.Summary, maxSummary)}
	if a.Records == nil {
		return d, nil
	}
	lines, findings, err := a.Records.Manifest(in.ID)
	if err != nil {
		return Draft{}, fmt.Errorf("read the evidence's manifest: %w", err)
	}
	d.Entries, d.Head = len(lines), activities.Head(lines)
	for _, l := range lines {
		if l.Entry.Kind == activities.EntryEvidence && l.Entry.Evidence != nil {
			d.Evidence = append(d.Evidence, row(*l.Entry.Evidence))
		}
	}
	for _, f := range findings {
		d.Wrong = append(d.Wrong, outside.Line(f.String(), maxCell))
	}
	return d, nil
}

// address gives a URL of an answer if a person can open it.
func address(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || len(s) > 1000 {
		return ""
	}
	return u.String()
}

// errAnswer says that a tracker's answer is not what it says of itself.
var errAnswer = errors.New("the answer is not one that the tracker's documentation describes")
