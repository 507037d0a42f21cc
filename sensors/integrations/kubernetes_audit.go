package integrations

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	kubejson "sigs.k8s.io/json"

	"stanch/sensors"
	"stanch/sensors/redact"
	"stanch/sensors/truncate"
)

// auditEvent is an Event of audit.k8s.io/v1.
type auditEvent struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	AuditID    string `json:"auditID"`
	Stage      string `json:"stage"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string              `json:"username"`
		Groups   []string            `json:"groups"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
	ImpersonatedUser struct {
		Username string   `json:"username"`
		Groups   []string `json:"groups"`
	} `json:"impersonatedUser"`
	SourceIPs []string `json:"sourceIPs"`
	UserAgent string   `json:"userAgent"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
		UID         string `json:"uid"`
		APIGroup    string `json:"apiGroup"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code scalar `json:"code"`
	} `json:"responseStatus"`
	RequestObject  json.RawMessage   `json:"requestObject"`
	ResponseObject json.RawMessage   `json:"responseObject"`
	ReceivedAt     timestamp         `json:"requestReceivedTimestamp"`
	StageTime      timestamp         `json:"stageTimestamp"`
	Annotations    map[string]string `json:"annotations"`
}

// The limits of audit input. By default, the webhook of an API server sends 400 events of at most 100 KiB each;
// Stanch's manifests configure 32 events of at most 1 MiB. MaxAuditBytes is the maximum size in bytes (40 MiB).
const (
	MaxAuditBytes  = 40 << 20
	maxAuditEvents = 2000
	maxAuditDepth  = 500 // the schema in a CustomResourceDefinition can nest this deep
	maxAuditValues = 1_000_000
)

// The keys in a user's extra fields that say where a service account token was used.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// DecodeKubernetesAudit decodes an Event or an EventList of audit.k8s.io/v1, from the webhook or the log file of the
// API server. It returns the events that it can decode together with an error for the others, which is a
// *BatchDecodeError if the list is valid and events in it are not. It limits only the size of a list as a whole and
// checks each event separately, because a list contains the requests of many users, and one user's request must not
// hide those of others.
func DecodeKubernetesAudit(raw []byte) ([]sensors.Event, error) {
	if len(raw) > MaxAuditBytes {
		return nil, fmt.Errorf("not an audit event: the record is %d bytes long; the maximum is %d", len(raw), MaxAuditBytes)
	}
	all, err := splitJSONObject(raw)
	if err != nil {
		return nil, fmt.Errorf("not an audit event: %w", err)
	}
	var kind string
	_ = json.Unmarshal(all["kind"], &kind)
	items := [][]byte{raw}
	switch {
	case kind == "Event":
	case kind != "EventList":
		return nil, fmt.Errorf("not an audit event: its kind is %q", truncate.Bytes(kind, 60))
	default:
		if items, err = splitJSONArray(all["items"]); err != nil {
			return nil, fmt.Errorf("not a list of audit events: %w", err)
		}
		if len(items) > maxAuditEvents {
			return nil, fmt.Errorf("%d audit events at once; the maximum is %d", len(items), maxAuditEvents)
		}
	}
	var out []sensors.Event
	var unread BatchDecodeError
	for i, item := range items {
		e, err := decodeBoundedAuditEvent(item)
		if err != nil {
			unread.add(fmt.Errorf("audit event %d: %w", i+1, err))
			continue
		}
		out = append(out, e)
	}
	return out, unread.orNilFor(len(items))
}

// decodeBoundedAuditEvent decodes one event. If the request or response exceeds the limits, it decodes the event
// without them and sets Truncated, so that an oversized body does not hide the request itself.
func decodeBoundedAuditEvent(raw []byte) (sensors.Event, error) {
	if checkJSONLimits(raw, MaxAuditBytes, maxAuditDepth, maxAuditValues) == nil {
		return decodeAuditEvent(raw)
	}
	all, err := splitJSONObject(raw)
	if err != nil {
		return sensors.Event{}, err
	}
	delete(all, "requestObject")
	delete(all, "responseObject")
	if raw, err = json.Marshal(all); err != nil {
		return sensors.Event{}, fmt.Errorf("decode: %w", err)
	}
	if err := checkJSONLimits(raw, MaxAuditBytes, maxAuditDepth, maxAuditValues); err != nil {
		return sensors.Event{}, err
	}
	e, err := decodeAuditEvent(raw)
	e.Audit.Truncated = true
	return e, err
}

func decodeAuditEvent(raw []byte) (sensors.Event, error) {
	var a auditEvent
	if err := unmarshalCaseSensitive(raw, &a); err != nil {
		return sensors.Event{}, fmt.Errorf("decode: %w", err)
	}
	at := a.ReceivedAt.Time
	if at.IsZero() {
		at = a.StageTime.Time
	}
	switch {
	// The items of a list may omit the version.
	case a.APIVersion != "" && a.APIVersion != "audit.k8s.io/v1":
		return sensors.Event{}, fmt.Errorf("unsupported version %q; use audit.k8s.io/v1", truncate.Bytes(a.APIVersion, 60))
	case a.AuditID == "" || a.Verb == "":
		return sensors.Event{}, errors.New("missing auditID or verb")
	// The API server records a request with failed authentication without a user.
	case a.User.Username == "" && a.ResponseStatus.Code.port() != http.StatusUnauthorized:
		return sensors.Event{}, errors.New("missing user")
	case !isPlausibleTime(at):
		return sensors.Event{}, errors.New("missing or invalid time")
	case len(a.AuditID) > 128 || len(a.Stage) > 32 || len(a.ObjectRef.Namespace) > maxIdentifierBytes ||
		len(a.ObjectRef.Name) > 2*maxIdentifierBytes:
		return sensors.Event{}, errors.New("a field is too long")
	}
	path, query := a.RequestURI, url.Values{}
	if u, err := url.ParseRequestURI(a.RequestURI); err == nil {
		path, query = u.Path, u.Query()
	} else {
		path, _, _ = strings.Cut(path, "?")
	}
	e := sensors.Event{
		// All stages of a request have the same ID, so that detections at its start and at its end are identical.
		ID: "kubernetes-audit/" + a.AuditID, Kind: sensors.KindKubernetesAudit, Time: at.UTC(),
		Actor: kubernetesActor(a.User.Username),
		Audit: sensors.Audit{
			Verb: truncate.Bytes(a.Verb, 64), User: a.User.Username, Groups: limitNames(a.User.Groups),
			ImpersonatedUser: a.ImpersonatedUser.Username, ImpersonatedGroups: limitNames(a.ImpersonatedUser.Groups),
			ServiceAccount: serviceAccountOf(a.User.Username), FromPod: extraValue(a.User.Extra, extraPodName),
			FromPodUID: extraValue(a.User.Extra, extraPodUID), FromNode: extraValue(a.User.Extra, extraNodeName),
			APIGroup:    truncate.Bytes(a.ObjectRef.APIGroup, maxIdentifierBytes),
			Resource:    truncate.Bytes(a.ObjectRef.Resource, maxIdentifierBytes),
			Subresource: truncate.Bytes(a.ObjectRef.Subresource, maxIdentifierBytes),
			Namespace:   a.ObjectRef.Namespace, Name: a.ObjectRef.Name, UID: truncate.Bytes(a.ObjectRef.UID, 64),
			Path: truncate.Bytes(path, maxMessageBytes), StatusCode: int(a.ResponseStatus.Code.port()),
			Decision:       truncate.Bytes(a.Annotations["authorization.k8s.io/decision"], 16),
			DecisionReason: truncate.Bytes(a.Annotations["authorization.k8s.io/reason"], maxMessageBytes),
			UserAgent:      truncate.Bytes(a.UserAgent, maxMessageBytes), SourceIPs: limitNames(a.SourceIPs), Stage: a.Stage,
			Annotations: filterAuditAnnotations(a.Annotations),
			DryRun:      query.Get("dryRun") != "", Truncated: a.Annotations["audit.k8s.io/truncated"] == "true",
		},
	}
	a.extractFacts(&e, query)
	return e, nil
}

// kubernetesActor returns the actor of a request, or "" if the user is unknown.
func kubernetesActor(user string) string {
	if user == "" {
		return ""
	}
	return "kubernetes:" + user
}

// extractFacts extracts the facts that rules need from the request and the response. No other part of them leaves this
// function.
func (a *auditEvent) extractFacts(e *sensors.Event, query url.Values) {
	out := &e.Audit
	object := decodeAuditedObject(a.RequestObject)
	if object == nil {
		// An object that cannot be decoded was probably written that way intentionally.
		out.Truncated = out.Truncated || bytes.HasPrefix(bytes.TrimSpace(a.RequestObject), []byte("{"))
		// A JSON patch contains no complete fields, so use the resulting object in the response.
		object = decodeAuditedObject(a.ResponseObject)
	}
	switch kind := out.Resource; {
	case kind == "pods" && (out.Subresource == "exec" || out.Subresource == "attach"):
		out.Exec = sensors.AuditExec{
			Container: truncate.Bytes(query.Get("container"), maxIdentifierBytes),
			TTY:       query.Get("tty") == "true", Stdin: query.Get("stdin") == "true",
		}
		out.Exec.Command, _ = limitArgs(redact.Args(query["command"]), false)
	case kind == "serviceaccounts" && out.Subresource == "token":
		if object != nil {
			out.Token = object.tokenFacts()
		}
	case object == nil && kind != "namespaces":
	case kind == "pods" && out.Subresource != "status" && out.Subresource != "binding", podTemplateResources[kind] &&
		out.Subresource == "":
		out.Pod = object.podFacts()
	case kind == "rolebindings" || kind == "clusterrolebindings":
		out.Binding = object.bindingFacts()
	case kind == "roles" || kind == "clusterroles":
		out.Role = object.roleFacts()
	case kind == "namespaces" && out.Subresource == "":
		if object != nil { // nil for a JSON patch whose response does not contain the object
			out.Admission = object.admissionFacts()
		}
		a.detectLabelRemoval(&out.Admission)
	case kind == "mutatingwebhookconfigurations" || kind == "validatingwebhookconfigurations":
		out.Webhook = object.webhookFacts()
	}
	if made := decodeAuditedObject(a.ResponseObject); made != nil && out.Verb == "create" && out.Subresource == "" {
		out.Name, out.UID = orDefault(out.Name, truncate.Bytes(made.Metadata.Name, maxIdentifierBytes)),
			orDefault(out.UID, truncate.Bytes(made.Metadata.UID, 64))
	}
	// A request about one pod is assigned to that pod, so that it joins the pod's incident.
	if out.Resource == "pods" && out.Name != "" && out.Verb != "delete" && out.Verb != "deletecollection" {
		e.Container.Pod = sensors.Pod{Namespace: out.Namespace, Name: out.Name, UID: out.UID}
	}
}

func extraValue(all map[string][]string, key string) string {
	if len(all[key]) == 0 {
		return ""
	}
	return truncate.Bytes(all[key][0], maxIdentifierBytes)
}

// limitNames limits the length of a list and of its names, in place.
func limitNames(all []string) []string {
	all = all[:min(len(all), maxLabels)]
	for i, s := range all {
		all[i] = truncate.Bytes(s, maxMessageBytes)
	}
	return all
}

// filterAuditAnnotations removes the patches of mutating webhooks, which may contain secrets, and limits the rest.
func filterAuditAnnotations(all map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range all {
		if len(k) <= maxIdentifierBytes && !strings.HasPrefix(k, "patch.webhook.admission.k8s.io/") {
			out[k] = truncate.Bytes(v, maxMessageBytes)
		}
	}
	if len(out) == 0 || len(out) > maxLabels {
		return nil
	}
	return out
}

// unmarshalCaseSensitive decodes like the API server: field names are case-sensitive. Otherwise, an attacker could
// send "SPEC" after "spec", and the rules would evaluate another object than the API server.
func unmarshalCaseSensitive(raw []byte, into any) error {
	return kubejson.UnmarshalCaseSensitivePreserveInts(raw, into) //nolint:wrapcheck // callers add the context
}

// decodeAuditedObject decodes the parts of an object that facts are extracted from. It returns nil if there is no
// valid object.
func decodeAuditedObject(raw json.RawMessage) *auditedObject {
	var o auditedObject
	if raw = bytes.TrimSpace(raw); len(raw) == 0 || raw[0] != '{' || unmarshalCaseSensitive(raw, &o) != nil {
		return nil
	}
	return &o
}
