package integrations

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// falcoRecord is an alert in the JSON format of Falco or of Falcosidekick.
type falcoRecord struct {
	UUID         string            `json:"uuid"` // set by Falcosidekick
	Output       string            `json:"output"`
	Priority     string            `json:"priority"`
	Rule         string            `json:"rule"`
	Time         timestamp         `json:"time"`
	Source       string            `json:"source"` // "syscall", "k8s_audit", "aws_cloudtrail", "internal", …
	Tags         []string          `json:"tags"`
	Hostname     string            `json:"hostname"`
	OutputFields map[string]scalar `json:"output_fields"`
}

// The event sources of Falco, and of the plugins that Stanch supports.
const (
	falcoSourceSyscall    = "syscall"
	falcoSourceKubernetes = "k8s_audit"
	falcoSourceCloudTrail = "aws_cloudtrail"
	falcoSourceInternal   = "internal"
)

// falcoPriorityMapping maps Falco's priorities to a severity and a default confidence.
var falcoPriorityMapping = map[string]struct {
	severity   sensors.Severity
	confidence float64
}{
	"emergency": {sensors.SeverityCritical, 0.9}, "alert": {sensors.SeverityCritical, 0.9},
	"critical": {sensors.SeverityCritical, 0.85},
	"error":    {sensors.SeverityHigh, 0.7}, "warning": {sensors.SeverityMedium, 0.6}, "notice": {
		sensors.SeverityLow,
		0.5,
	},
	"informational": {sensors.SeverityInfo, 0.3}, "info": {sensors.SeverityInfo, 0.3}, "debug": {
		sensors.SeverityInfo,
		0.1,
	},
}

// maxFalcoOutputFields is the maximum number of output fields in one alert.
const maxFalcoOutputFields = 500

// DecodeFalco decodes one record of Falco's http_output or of Falcosidekick. Falco's internal alerts become health
// records.
func DecodeFalco(raw []byte) (DecodedRecord, error) {
	var f falcoRecord
	if err := checkLimits(raw); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid Falco JSON: %w", err)
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid Falco JSON: %w", err)
	}
	if f.Rule == "" || f.Priority == "" {
		return DecodedRecord{}, errors.New("invalid Falco alert: missing rule or priority")
	}
	if len(f.OutputFields) > maxFalcoOutputFields {
		return DecodedRecord{}, fmt.Errorf("the alert has %d fields; the maximum is %d", len(f.OutputFields),
			maxFalcoOutputFields)
	}
	priority, ok := falcoPriorityMapping[strings.ToLower(f.Priority)]
	if !ok {
		return DecodedRecord{}, fmt.Errorf("unknown Falco priority %q", truncate.Bytes(f.Priority, 60))
	}
	at := f.Time.Time
	if at.IsZero() {
		at = f.OutputFields["evt.time"].nanoseconds()
	}
	if h, ok := f.sensorHealth(at); ok {
		return healthRecord(h)
	}
	meaning, reason := mapRule("Falco", falcoRuleMappings, f.Rule, f.Tags, falcoTechnique(f.Tags))
	d := sensors.Detection{
		ID: f.UUID, Rule: f.Rule, Title: f.Rule, Severity: priority.severity, Confidence: priority.confidence,
		Source: SourceFalco, Time: at, Node: f.Hostname,
		Objective: meaning.objective, Technique: meaning.technique,
		Reasons: []string{"Falco's rule fired at priority " + f.Priority + ".", reason},
	}
	if meaning.confidence > 0 {
		d.Confidence = meaning.confidence
	}
	fields := falcoFields(f.OutputFields)
	switch f.Source {
	case falcoSourceKubernetes:
		d.Event = fields.kubernetesEvent()
	case falcoSourceCloudTrail:
		d.Event = fields.cloudTrailEvent()
	case "", falcoSourceSyscall:
		d.Event = fields.syscallEvent()
	default:
		// A plugin that Stanch does not support can still report on a container.
		if d.Event = fields.syscallEvent(); d.Event.Container.ID == "" && d.Event.Container.Pod.Name == "" {
			return DecodedRecord{}, fmt.Errorf("unsupported Falco source %q", truncate.Bytes(f.Source, 60))
		}
	}
	d.Event.Subject = subjectOf(d.Event)
	for field, prefix := range map[string]string{"ka.user.name": "kubernetes:", "ct.user.arn": "aws:"} {
		if name := fields.firstValue(field); name != "" && d.Event.Actor == "" {
			d.Event.Actor = prefix + name
		}
	}
	return finalizeAlert(&d, raw)
}

// falcoTechnique returns the first technique among an alert's tags. Falco uses a separate tag for it.
func falcoTechnique(tags []string) string {
	for _, tag := range tags {
		if t := findTechnique(tag); t != "" && strings.EqualFold(t, tag) {
			return t
		}
	}
	return ""
}

// sensorHealth returns the health information if the alert is about Falco itself.
func (f *falcoRecord) sensorHealth(at time.Time) (SensorHealth, bool) {
	h := SensorHealth{Source: SourceFalco, Node: f.Hostname, Time: at, Message: f.Output}
	switch {
	case f.Rule == "Falco internal: metrics snapshot":
		// Both counters are cumulative: drops in the kernel and in Falco's output queue.
		h.DroppedIsCumulative = true
		h.Dropped = saturatingAdd(f.OutputFields["scap.n_drops"].uint64(),
			f.OutputFields["falco.outputs_queue_num_drops"].uint64())
	case strings.HasPrefix(f.Rule, "Falco internal: ") || f.Source == falcoSourceInternal:
		h.Dropped = f.OutputFields["n_drops"].uint64()
	case f.Rule == "Test rule" && f.Hostname == "falcosidekick" && len(f.OutputFields) <= 4:
		h.Node, h.Message = "", "Falcosidekick sent its test event."
	default:
		return SensorHealth{}, false
	}
	return h, true
}

func saturatingAdd(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}
