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
	"stanch/activities/httpclient"
	"stanch/playbooks"
	"stanch/sensors/diagnostic"
)

// notifyTimeout limits a notify step, including the delays that the receiver requests.
const notifyTimeout = 2 * time.Minute

// maxTextRunes is the maximum length of a text in characters.
const maxTextRunes = 8000

// WebhookAction is `notify: webhook`: a signed request to a receiver from the configuration.
type WebhookAction struct {
	Receivers map[string]WebhookReceiver
	// ManifestHead returns the last line's hash of an incident's manifest. With nil, messages do not include it.
	ManifestHead func(incident string) string
}

// WebhookReceiver is a receiver of requests that are signed by Standard Webhooks (https://www.standardwebhooks.com).
type WebhookReceiver struct {
	URL        string
	SigningKey []byte
	HTTPClient *http.Client // nil means a default client
}

var _ activities.Observer = (*WebhookAction)(nil)

// WebhookParams are the parameters of webhook.
type WebhookParams struct {
	ReceiverName string `json:"name" jsonschema:"required" doc:"the receiver's name under webhooks in stanch.yaml"`
	Text         string `json:"text,omitempty" doc:"the text; default the incident's summary"`
}

// WebhookMessage is the body of a request.
type WebhookMessage struct {
	Version     int                        `json:"version"`
	Type        string                     `json:"type"`
	Incident    string                     `json:"incident"`
	GroupingKey string                     `json:"grouping_key"`
	Cluster     string                     `json:"cluster"`
	Summary     string                     `json:"summary"`
	Scope       string                     `json:"scope"`
	Workload    playbooks.WorkloadIdentity `json:"workload"`
	Confidence  float64                    `json:"confidence"`
	Text        string                     `json:"text"`
	SentAt      time.Time                  `json:"at"`
	// ManifestHead, kept elsewhere, reveals later whether lines were removed from the end of the manifest.
	ManifestHead string `json:"manifest_head,omitempty"`
}

// WebhookMessageType is the type of every message, and WebhookMessageVersion the version of its format.
const (
	WebhookMessageType    = "stanch.incident.notify"
	WebhookMessageVersion = 1
)

// Spec returns the spec of webhook.
func (*WebhookAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "webhook", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:     "Send a signed request to a configured receiver.", Params: WebhookParams{}, AttemptTimeout: notifyTimeout,
	}
}

// Observe sends the request.
func (a *WebhookAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	var none activities.Observation
	params, err := activities.DecodeParams[WebhookParams](r)
	if err != nil {
		return none, err
	}
	if len(a.Receivers) == 0 {
		return none, activities.Refusef("no webhooks are configured; add `webhooks:` to stanch.yaml")
	}
	to, ok := a.Receivers[params.ReceiverName]
	if !ok {
		return none, activities.Refusef("unknown webhook %q; stanch.yaml has %s", httpclient.SanitizeLine(params.ReceiverName,
			60), diagnostic.DidYouMean(params.ReceiverName, slices.Collect(maps.Keys(a.Receivers))))
	}
	id, at := httpclient.IdempotencyKey(ctx, r, params.ReceiverName)
	in := r.IncidentRef
	m := WebhookMessage{
		Version: WebhookMessageVersion, Type: WebhookMessageType, Incident: in.ID, GroupingKey: in.GroupingKey,
		Cluster: in.Cluster, Summary: httpclient.SanitizeText(in.Summary, maxTextRunes),
		Scope: in.Scope, Workload: in.Workload, Confidence: in.Confidence, Text: httpclient.SanitizeText(params.Text,
			maxTextRunes), SentAt: at, ManifestHead: manifestHead(a.ManifestHead, in.ID),
	}
	if params.Text == "" {
		m.Text = m.Summary
	}
	body, err := json.Marshal(m)
	if err != nil {
		return none, fmt.Errorf("encode the message: %w", err)
	}
	now := time.Now()
	signed := http.Header{
		"Webhook-Id": {id}, "Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)},
		"Webhook-Signature": {SignWebhook(to.SigningKey, id, now, body)},
	}
	peer := &httpclient.Client{Name: "webhook " + params.ReceiverName, BaseURL: to.URL, HTTPClient: to.HTTPClient}
	_, err = peer.Call(ctx, http.MethodPost, "", signed, body)
	return none, err //nolint:wrapcheck // the error names the receiver
}

// SignWebhook returns the signature of a message by Standard Webhooks.
func SignWebhook(key []byte, id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// The limits of a key's size, in bytes.
const (
	minKeyBytes = 24
	maxKeyBytes = 64
)

// ParseSigningKey parses a key in the format of Standard Webhooks. Its error does not contain the key.
func ParseSigningKey(secret string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(key) < minKeyBytes || len(key) > maxKeyBytes {
		return nil, errors.New(
			"invalid key; use 24 to 64 bytes in base64, for example from `echo whsec_$(openssl rand -base64 32)`",
		)
	}
	return key, nil
}

func manifestHead(of func(string) string, incident string) string {
	if of == nil {
		return ""
	}
	return of(incident)
}
