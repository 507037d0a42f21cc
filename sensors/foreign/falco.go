package foreign

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"stanch/sensors"
)

// falco is Falco's JSON output, and what Falcosidekick makes of it.
type falco struct {
	UUID         string            `json:"uuid"` // Falcosidekick's
	Output       string            `json:"output"`
	Priority     string            `json:"priority"`
	Rule         string            `json:"rule"`
	Time         instant           `json:"time"`
	Source       string            `json:"source"` // "syscall", "k8s_audit", "aws_cloudtrail", "internal", …
	Tags         []string          `json:"tags"`
	Hostname     string            `json:"hostname"`
	OutputFields map[string]scalar `json:"output_fields"`
}

// The event sources of Falco's plugins that Stanch knows, and of Falco itself.
const (
	falcoSyscall    = "syscall"
	falcoKubernetes = "k8s_audit"
	falcoCloudTrail = "aws_cloudtrail"
	falcoInternal   = "internal"
)

// falcoPriorities maps Falco's priorities, and how sure a rule of that priority is.
var falcoPriorities = map[string]struct {
	severity   sensors.Severity
	confidence float64
}{
	"emergency": {sensors.SeverityCritical, 0.9}, "alert": {sensors.SeverityCritical, 0.9}, "critical": {sensors.SeverityCritical, 0.85},
	"error": {sensors.SeverityHigh, 0.7}, "warning": {sensors.SeverityMedium, 0.6}, "notice": {sensors.SeverityLow, 0.5},
	"informational": {sensors.SeverityInfo, 0.3}, "info": {sensors.SeverityInfo, 0.3}, "debug": {sensors.SeverityInfo, 0.1},
}

// maxFields bounds the output fields of one alert.
const maxFields = 500

// Falco decodes one record of Falco's http_output or of Falcosidekick.
func Falco(raw []byte) (Report, error) {
	var f falco
	if err := bounded(raw); err != nil {
		return Report{}, fmt.Errorf("not Falco's JSON: %w", err)
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return Report{}, fmt.Errorf("not Falco's JSON: %w", err)
	}
	if f.Rule == "" || f.Priority == "" {
		return Report{}, errors.New("not a Falco alert: it has no rule or no priority")
	}
	if len(f.OutputFields) > maxFields {
		return Report{}, fmt.Errorf("the alert has %d fields, at most %d are read", len(f.OutputFields), maxFields)
	}
	priority, ok := falcoPriorities[strings.ToLower(f.Priority)]
	if !ok {
		return Report{}, fmt.Errorf("the priority %q is none of Falco's", clip(f.Priority))
	}
	at := f.Time.Time
	if at.IsZero() {
		at = f.OutputFields["evt.time"].nanoseconds()
	}
	if h, ok := f.health(at); ok {
		return health(h)
	}
	meaning, reason := interpret("Falco", falcoRules, f.Rule, f.Tags, falcoTechnique(f.Tags))
	d := sensors.Detection{
		ID: f.UUID, Rule: f.Rule, Title: f.Rule, Severity: priority.severity, Confidence: priority.confidence, Source: KindFalco, Time: at, Node: f.Hostname,
		Objective: meaning.objective, Technique: meaning.technique,
		Reasons: []string{"Falco's rule fired at priority " + f.Priority + ".", reason},
	}
	if meaning.confidence > 0 {
		d.Confidence = meaning.confidence
	}
	fields := falcoFields(f.OutputFields)
	switch f.Source {
	case falcoKubernetes:
		d.Event = fields.kubernetes()
	case falcoCloudTrail:
		d.Event = fields.cloudTrail()
	case "", falcoSyscall:
		d.Event = fields.syscall()
	default:
		// A plugin that Stanch has no words for can still report on a container.
		if d.Event = fields.syscall(); d.Event.Container.ID == "" && d.Event.Container.Pod.Name == "" {
			return Report{}, fmt.Errorf("events of Falco's source %q are not read", clip(f.Source))
		}
	}
	d.Event.Subject = subjectOf(d.Event)
	for field, prefix := range map[string]string{"ka.user.name": "kubernetes:", "ct.user.arn": "aws:"} {
		if name := fields.get(field); name != "" && d.Event.Actor == "" {
			d.Event.Actor = prefix + name
		}
	}
	return finish(&d, raw)
}

// falcoTechnique is the first technique among an alert's tags: Falco writes it as a tag of its own.
func falcoTechnique(tags []string) string {
	for _, tag := range tags {
		if t := techniqueIn(tag); t != "" && strings.EqualFold(t, tag) {
			return t
		}
	}
	return ""
}

// health tells Falco's word about itself from its alerts.
func (f *falco) health(at time.Time) (Health, bool) {
	h := Health{Source: KindFalco, Node: f.Hostname, Time: at, Message: f.Output}
	switch {
	case f.Rule == "Falco internal: metrics snapshot":
		// Both count from the start: what the kernel dropped, and what Falco's own queue did.
		h.Total = true
		h.Dropped = add(f.OutputFields["scap.n_drops"].uint64(), f.OutputFields["falco.outputs_queue_num_drops"].uint64())
	case strings.HasPrefix(f.Rule, "Falco internal: ") || f.Source == falcoInternal:
		h.Dropped = f.OutputFields["n_drops"].uint64()
	case f.Rule == "Test rule" && f.Hostname == "falcosidekick" && len(f.OutputFields) <= 4:
		h.Node, h.Message = "", "Falcosidekick sent its test event."
	default:
		return Health{}, false
	}
	return h, true
}

func add(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}
