package recording

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
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
		if name != "" && strings.Contains(redact.Text(name+"="+v), redact.Mark) && v != "" {
			return redact.Mark
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
				v[key] = redact.Mark
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

// vocabulary are the fields whose words are Stanch's own: a pod that is called "pod" must not change them.
var vocabulary = map[string]bool{
	"kind": true, "operation": true, "action": true, "outcome": true, "verdict": true, "guard": true, "rule": true, "severity": true, "objective": true,
	"technique": true, "facet": true, "state": true, "source": true, "sha256": true, "playbook": true, "hash": true, "file": true, "protocol": true,
	"family": true, "runtime": true, "scope": true, "config": true, "opened": true, "time": true, "detected": true, "title": true,
}

// Anonymise gives a copy in which pods, workloads, namespaces, hosts, clusters and people have numbers for names, the
// same number wherever the same name stands.
func Anonymise(r Recording) (Recording, error) {
	names := map[string]string{}
	count := map[string]int{}
	name := func(kind, s string) {
		if s == "" || names[s] != "" {
			return
		}
		count[kind]++
		names[s] = fmt.Sprintf("%s-%d", kind, count[kind])
	}
	for _, d := range r.Detections {
		c := d.Detection.Event.Container
		name("host", d.Detection.Node)
		name("host", d.Detection.Event.Node)
		name("pod", c.Pod.Name)
		if !strings.HasPrefix(c.ID, c.Workload.Name) { // outside of Kubernetes it is the container's own id
			name("workload", c.Workload.Name)
		}
		name("namespace", c.Pod.Namespace)
		name("account", c.Pod.ServiceAccount)
		if c.Pod.UID != "" {
			name("container", c.Name)
		}
		name("image", c.Image)
	}
	for _, v := range r.Votes {
		name("person", v.Person)
		name("proof", v.Proved)
	}
	for _, s := range r.Releases {
		for _, p := range s.People {
			who, _, _ := strings.Cut(p, " (")
			name("person", who)
			name("person", p)
		}
	}
	for _, m := range r.Marks {
		name("person", m.Person)
	}
	for _, a := range r.Answers {
		if a.Decision == nil || a.Decision.Inputs == nil {
			continue
		}
		in := a.Decision.Inputs
		who, _, _ := strings.Cut(in.Stopped, " (")
		name("person", who)
		if in.Target != nil {
			for _, w := range in.Target.Owners {
				name("workload", w.Name)
			}
		}
	}
	name("cluster", r.Incident.Cluster)
	raw, err := json.Marshal(r)
	if err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	v, err := generic(raw)
	if err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	if raw, err = json.Marshal(rename("", v, replacer(names))); err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	var out Recording
	if err := json.Unmarshal(raw, &out); err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	for i := range out.Detections {
		pod := &out.Detections[i].Detection.Event.Container.Pod
		pod.Labels, pod.IP = nil, ""
		process := &out.Detections[i].Detection.Event.Process
		process.Cwd, process.Ancestors = "", process.Ancestors[:min(1, len(process.Ancestors))]
	}
	out.Anonymised = true
	return out, nil
}

// replacer replaces whole names, the longest first.
func replacer(names map[string]string) func(string) string {
	known := slices.SortedFunc(maps.Keys(names), func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, k := range known {
		parts = append(parts, regexp.QuoteMeta(k))
	}
	if len(parts) == 0 {
		return func(s string) string { return s }
	}
	re := regexp.MustCompile(`(^|[^A-Za-z0-9])(` + strings.Join(parts, "|") + `)($|[^A-Za-z0-9])`)
	return func(s string) string {
		for range 20 { // neighbours share the character between them
			next := re.ReplaceAllStringFunc(s, func(m string) string {
				sub := re.FindStringSubmatch(m)
				return sub[1] + names[sub[2]] + sub[3]
			})
			if next == s {
				break
			}
			s = next
		}
		return s
	}
}

func rename(key string, v any, replace func(string) string) any {
	switch v := v.(type) {
	case string:
		if vocabulary[key] {
			return v
		}
		return replace(v)
	case []any:
		for i := range v {
			v[i] = rename(key, v[i], replace)
		}
	case map[string]any:
		for k := range v {
			v[k] = rename(k, v[k], replace)
		}
	}
	return v
}
