package recording

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"stanch/sensors/redact"
)

// Redact removes text that looks like a secret from command lines, messages and results of actions.
func Redact(r Recording) Recording {
	r.Detections = slices.Clone(r.Detections)
	for i := range r.Detections {
		d := &r.Detections[i].Detection
		d.Event.Process.Args = redact.Args(d.Event.Process.Args)
		d.Event.Process.Ancestors = slices.Clone(d.Event.Process.Ancestors)
		for k := range d.Event.Process.Ancestors {
			// may include processes of the host, whose arguments are not the incident's
			d.Event.Process.Ancestors[k].Args = nil
		}
		d.Event.Container.Pod.Annotations = nil // they can contain complete manifests, and no decision depends on them
		d.Title, d.Reasons = redact.Text(d.Title), redactStrings(d.Reasons)
		d.Event.File.Path, d.Event.Process.Cwd = redact.Text(d.Event.File.Path), redact.Text(d.Event.Process.Cwd)
	}
	r.ActionResults = slices.Clone(r.ActionResults)
	for i := range r.ActionResults {
		a := &r.ActionResults[i]
		a.Params, a.Outputs, a.PriorState = redactJSON(a.Params), redactJSON(a.Outputs), redactJSON(a.PriorState)
		a.Changes, a.Warnings = redactStrings(a.Changes), redactStrings(a.Warnings)
		a.FailureReason, a.RefusalReason, a.Reason, a.VerifyDetail, a.Drift = redact.Text(a.FailureReason),
			redact.Text(a.RefusalReason), redact.Text(a.Reason), redact.Text(a.VerifyDetail), redact.Text(a.Drift)
	}
	r.Votes = slices.Clone(r.Votes)
	for i := range r.Votes {
		r.Votes[i].Reason = redact.Text(r.Votes[i].Reason)
	}
	r.TriageDecisions = slices.Clone(r.TriageDecisions)
	for i := range r.TriageDecisions {
		r.TriageDecisions[i].Reason = redact.Text(r.TriageDecisions[i].Reason)
	}
	r.Steps = slices.Clone(r.Steps)
	for i := range r.Steps {
		r.Steps[i].Reason = redact.Text(r.Steps[i].Reason)
	}
	r.Leases = slices.Clone(r.Leases)
	for i := range r.Leases {
		r.Leases[i].Report.Reason = redact.Text(r.Leases[i].Report.Reason)
	}
	return r
}

func redactStrings(list []string) []string {
	out := slices.Clone(list)
	for i := range out {
		out[i] = redact.Text(out[i])
	}
	return out
}

// redactJSON redacts every string of a JSON value, and every value whose key is the name of a secret.
func redactJSON(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	v, err := decodeJSON(raw)
	if err != nil {
		return nil
	}
	out, err := json.Marshal(redactValue("", v))
	if err != nil {
		return nil
	}
	return out
}

// decodeJSON decodes any JSON without losing digits of numbers.
func decodeJSON(raw []byte) (v any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	err = decoder.Decode(&v)
	return v, err //nolint:wrapcheck // the caller adds context
}

func redactValue(name string, v any) any {
	switch v := v.(type) {
	case string:
		if name != "" && strings.Contains(redact.Text(name+"="+v), redact.Placeholder) && v != "" {
			return redact.Placeholder
		}
		return redact.Text(v)
	case []any:
		if isEnvironmentField(name) {
			return []any{}
		}
		for i := range v {
			v[i] = redactValue(name, v[i])
		}
	case map[string]any:
		for key := range v {
			if isEnvironmentField(name) {
				v[key] = redact.Placeholder
				continue
			}
			v[key] = redactValue(key, v[key])
		}
	}
	return v
}

func isEnvironmentField(name string) bool {
	name = strings.ToLower(name)
	return name == "env" || name == "environment" || name == "environ"
}
