package recording

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"stanch/sensors/redact"
)

// Redact takes out what looks like a secret: in command lines, in texts, and in what actions answered.
func Redact(r Recording) Recording {
	r.Detections = slices.Clone(r.Detections)
	for i := range r.Detections {
		d := &r.Detections[i].Detection
		d.Event.Process.Args = redact.Args(d.Event.Process.Args)
		d.Event.Process.Ancestors = slices.Clone(d.Event.Process.Ancestors)
		for k := range d.Event.Process.Ancestors {
			d.Event.Process.Ancestors[k].Args = nil // also of the host's own processes, whose business they are
		}
		d.Event.Container.Pod.Annotations = nil // they hold whole manifests, and nothing that is decided by
		d.Title, d.Reasons = redact.Text(d.Title), texts(d.Reasons)
		d.Event.File.Path, d.Event.Process.Cwd = redact.Text(d.Event.File.Path), redact.Text(d.Event.Process.Cwd)
	}
	r.Answers = slices.Clone(r.Answers)
	for i := range r.Answers {
		a := &r.Answers[i]
		a.Params, a.Outputs, a.Prior = walked(a.Params), walked(a.Outputs), walked(a.Prior)
		a.Changes, a.Warnings = texts(a.Changes), texts(a.Warnings)
		a.Failure, a.Refused, a.Reason, a.Detail, a.Drift = redact.Text(a.Failure), redact.Text(a.Refused), redact.Text(a.Reason), redact.Text(a.Detail), redact.Text(a.Drift)
	}
	r.Votes = slices.Clone(r.Votes)
	for i := range r.Votes {
		r.Votes[i].Reason = redact.Text(r.Votes[i].Reason)
	}
	r.Marks = slices.Clone(r.Marks)
	for i := range r.Marks {
		r.Marks[i].Reason = redact.Text(r.Marks[i].Reason)
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

func texts(list []string) []string {
	out := slices.Clone(list)
	for i := range out {
		out[i] = redact.Text(out[i])
	}
	return out
}

// walked redacts every text of a JSON value, and whatever stands under a name that is a secret's.
func walked(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	v, err := generic(raw)
	if err != nil {
		return nil
	}
	out, err := json.Marshal(hide("", v))
	if err != nil {
		return nil
	}
	return out
}

// generic decodes any JSON; numbers keep every digit.
func generic(raw []byte) (v any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	err = decoder.Decode(&v)
	return v, err //nolint:wrapcheck // callers say what was read
}

func hide(name string, v any) any {
	switch v := v.(type) {
	case string:
		if name != "" && strings.Contains(redact.Text(name+"="+v), redact.Placeholder) && v != "" {
			return redact.Placeholder
		}
		return redact.Text(v)
	case []any:
		if environment(name) {
			return []any{}
		}
		for i := range v {
			v[i] = hide(name, v[i])
		}
	case map[string]any:
		for key := range v {
			if environment(name) {
				v[key] = redact.Placeholder
				continue
			}
			v[key] = hide(key, v[key])
		}
	}
	return v
}

func environment(name string) bool {
	name = strings.ToLower(name)
	return name == "env" || name == "environment" || name == "environ"
}
