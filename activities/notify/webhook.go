package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"stanch/activities"
	"stanch/activities/outside"
	"stanch/playbooks"
	"stanch/sensors/diagnostic"
)

// patience bounds a step that tells somebody, with what the other side wants Stanch to wait.
const patience = 2 * time.Minute

// maxText bounds a text in characters.
const maxText = 8000

// Webhook is `notify: webhook`: a signed request to a receiver that the configuration names.
type Webhook struct {
	Receivers map[string]Receiver
	// Head gives the head of an incident's manifest. Nil gives none.
	Head func(incident string) string
}

// Receiver takes requests that are signed as Standard Webhooks says (https://www.standardwebhooks.com).
type Receiver struct {
	URL  string
	Key  []byte
	HTTP *http.Client // nil is a client of its own
}

var _ activities.Observer = (*Webhook)(nil)

// WebhookParams are the parameters of webhook.
type WebhookParams struct {
	Name string `json:"name" jsonschema:"required" doc:"the receiver's name under webhooks in stanch.yaml"`
	Text string `json:"text,omitempty" doc:"what to say; the incident's summary if not given"`
}

// Message is what a receiver gets.
type Message struct {
	Version    int                        `json:"version"`
	Type       string                     `json:"type"`
	Incident   string                     `json:"incident"`
	Key        string                     `json:"key"`
	Cluster    string                     `json:"cluster"`
	Summary    string                     `json:"summary"`
	Scope      string                     `json:"scope"`
	Workload   playbooks.WorkloadIdentity `json:"workload"`
	Confidence float64                    `json:"confidence"`
	Text       string                     `json:"text"`
	At         time.Time                  `json:"at"`
	// ManifestHead, kept elsewhere, shows later whether the end of the evidence's manifest was cut off.
	ManifestHead string `json:"manifest_head,omitempty"`
}

// MessageType is the type of every message there is now; MessageVersion is its form's.
const (
	MessageType    = "stanch.incident.notify"
	MessageVersion = 1
)

// Spec declares webhook.
func (*Webhook) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "webhook", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve, Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc: "Send a signed request to a configured receiver.", Params: WebhookParams{}, AttemptTimeout: patience,
	}
}

// Observe sends the request.
func (a *Webhook) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.Params[WebhookParams](r)
	if err != nil {
		return none, err
	}
	if len(a.Receivers) == 0 {
		return none, activities.Refuse("no webhooks are configured: add `webhooks:` to stanch.yaml")
	}
	to, ok := a.Receivers[params.Name]
	if !ok {
		return none, activities.Refuse("there is no webhook %q in stanch.yaml: %s", outside.Line(params.Name, 60), diagnostic.DidYouMean(params.Name, slices.Collect(maps.Keys(a.Receivers))))
	}
	id, at := outside.Once(ctx, r, params.Name)
	in := r.Incident
	m := Message{
		Version: MessageVersion, Type: MessageType, Incident: in.ID, Key: in.Key, Cluster: in.Cluster, Summary: outside.Text(in.Summary, maxText),
		Scope: in.Scope, Workload: in.Workload, Confidence: in.Confidence, Text: outside.Text(params.Text, maxText), At: at, ManifestHead: head(a.Head, in.ID),
	}
	if params.Text == "" {
		m.Text = m.Summary
	}
	body, err := json.Marshal(m)
	if err != nil {
		return none, fmt.Errorf("write the message: %w", err)
	}
	now := time.Now()
	signed := http.Header{
		"Webhook-Id": {id}, "Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)}, "Webhook-Signature": {Sign(to.Key, id, now, body)},
	}
	peer := &outside.Peer{Name: "webhook " + params.Name, Base: to.URL, HTTP: to.HTTP}
	_, err = peer.Call(ctx, http.MethodPost, "", signed, body)
	return none, err //nolint:wrapcheck // it names the receiver
}

// Sign gives the signature of a message as Standard Webhooks says.
func Sign(key []byte, id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// The bounds of a key, in bytes.
const (
	minKey = 24
	maxKey = 64
)

// ReadKey reads a key as Standard Webhooks writes it. Its error does not tell it.
func ReadKey(secret string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(key) < minKey || len(key) > maxKey {
		return nil, errors.New("it is not a key of 24 to 64 bytes in base64; `echo whsec_$(openssl rand -base64 32)` makes one")
	}
	return key, nil
}

func head(of func(string) string, incident string) string {
	if of == nil {
		return ""
	}
	return of(incident)
}
