package rules

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/yamlnode"
)

// Exception is what a rule does not report: a condition alone, or who it is about, and a condition. All that is given
// has to hold.
type Exception struct {
	Name      string            `json:"name,omitempty"`
	Workload  Workload          `json:"workload,omitzero"`
	Namespace []string          `json:"namespace,omitempty"`
	Container []string          `json:"container,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Image     []string          `json:"image,omitempty"`
	When      string            `json:"when,omitempty"`
	Because   string            `json:"because,omitempty"`
	At        string            `json:"at"` // "file:line"

	plain bool // was written as a condition alone
	node  *yaml.Node
	when  *yaml.Node
	check *check
}

// Workload is a pattern of workloads.
type Workload struct {
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
}

// MarshalJSON gives a condition alone as a text, as it is written.
func (e *Exception) MarshalJSON() ([]byte, error) {
	if e.plain {
		return json.Marshal(e.When) //nolint:wrapcheck // a text
	}
	type bare Exception
	return json.Marshal((*bare)(e)) //nolint:wrapcheck // texts
}

// String is the exception in a line.
func (e *Exception) String() string {
	var parts []string
	add := func(what string, values ...string) {
		if len(values) > 0 && values[0] != "" {
			parts = append(parts, what+" "+strings.Join(values, " or "))
		}
	}
	add("workload", strings.Trim(e.Workload.Kind+"/"+e.Workload.Name, "/"))
	add("namespace", e.Namespace...)
	add("container", e.Container...)
	for _, key := range keysOf(e.Labels) {
		add("label", key+"="+e.Labels[key])
	}
	add("image", e.Image...)
	add("when", e.When)
	return strings.Join(parts, ", ")
}

func (e *Exception) fields(f *file) []field {
	patterns := func(name, doc string, to *[]string, bad func(string) string) field {
		one := texts(name, doc, to)
		read := one.Read
		one.Read = func(r *reader, key, v *yaml.Node) {
			before := len(r.Problems)
			if read(r, key, v); len(r.Problems) > before {
				return
			}
			if len(*to) == 0 {
				r.Errorf(yamlnode.At(v), "required", "", "`%s` is empty", name)
			}
			for i, p := range *to {
				at := v
				if v.Kind == yaml.SequenceNode {
					at = v.Content[i]
				}
				if problem := bad(p); problem != "" {
					r.Errorf(yamlnode.At(at), "pattern", "`*` stands for any letters, `?` for one", "%s", problem)
				}
			}
		}
		return one
	}
	return []field{
		yamlnode.Text("name", "what it is called", &e.Name),
		yamlnode.Nested("workload", "what owns the pod", "`workload`", []field{
			yamlnode.Text("kind", "Deployment, StatefulSet, DaemonSet, Job, Pod, Container, or a pattern", &e.Workload.Kind),
			yamlnode.Text("name", "its name, or a pattern such as `ci-*`", &e.Workload.Name),
		}, nil),
		patterns("namespace", "namespaces, or patterns of them", &e.Namespace, badPattern),
		patterns("container", "names of containers in their pods, or patterns of them", &e.Container, badPattern),
		{Name: "labels", Doc: "labels of the pod and their values, or patterns of them; all have to be there", Schema: func() object {
			return object{"type": "object", "minProperties": 1, "additionalProperties": object{"type": "string"}}
		}, Read: func(r *reader, _, v *yaml.Node) {
			e.Labels = map[string]string{}
			f.named(v, "labels", func(key, value *yaml.Node) {
				e.Labels[key.Value] = r.String(value, yamlnode.Clip(key.Value, 40))
				if problem := badPattern(e.Labels[key.Value]); problem != "" && value.Tag == "!!str" {
					r.Errorf(yamlnode.At(value), "pattern", "\"*\" is any value", "%s", problem)
				}
			})
		}},
		patterns("image", "images: `registry/name`, with `:tag` or `@sha256:…` where those matter; `*` is one part of the name, `/**` at the end all below", &e.Image, badImage),
		{Name: "when", Doc: "an expression, as in conditions", Schema: func() object { return object{"type": "string"} }, Read: func(r *reader, _, v *yaml.Node) {
			e.When, e.when = r.String(v, "when"), v
		}},
		yamlnode.Text("because", "why this is no threat, for who asks later", &e.Because),
	}
}

func exceptionsSchema() object {
	return object{"type": []string{"array", "null"}, "maxItems": maxExceptions, "items": object{"oneOf": []any{
		object{"type": "string", "description": "an expression"}, yamlnode.Schema((&Exception{}).fields(nil)),
	}}}
}

func readExceptions(f *file, v *yaml.Node) []*Exception {
	var out []*Exception
	f.each(v, "exceptions", "exception", maxExceptions, func(n *yaml.Node) {
		e := &Exception{At: f.place(n), node: n}
		if n.Kind != yaml.MappingNode {
			e.When, e.when, e.plain = f.r.String(n, "exceptions"), n, true
			out = append(out, e)
			return
		}
		before := len(f.r.Problems)
		f.r.Mapping(n, "an exception", e.fields(f))
		for what, p := range map[string]string{"kind": e.Workload.Kind, "name": e.Workload.Name} {
			if p != "" && badPattern(p) != "" {
				f.errorf(n, "pattern", "`*` stands for any letters, `?` for one", "the %s of the workload: %s", what, badPattern(p))
			}
		}
		if len(f.r.Problems) == before && !e.narrows() {
			f.errorf(n, "required", "workload, namespace, container, labels, image or when", "the exception says of nothing when it holds")
		}
		out = append(out, e)
	})
	return out
}

func (e *Exception) narrows() bool { return e.who() || e.When != "" }

// who tells whether it says whom it is about.
func (e *Exception) who() bool {
	return e.Workload != (Workload{}) || len(e.Namespace)+len(e.Container)+len(e.Labels)+len(e.Image) > 0
}

func (l *loader) compileExceptions(f *file, of string, exceptions []*Exception) {
	for i, e := range exceptions {
		what := fmt.Sprintf("exception %d of %s", i+1, of)
		if e.Name != "" {
			what = fmt.Sprintf("the exception `%s` of %s", yamlnode.Clip(e.Name, 40), of)
		}
		if e.When != "" {
			e.check = l.check(f, what, e.When, e.when)
		}
	}
}

// excepts tells whether the exception holds for an event.
func (e *Exception) excepts(v *env) (bool, error) {
	c := &v.event.Container
	if e.who() {
		switch {
		case e.Workload != (Workload{}) && !e.Workload.is(c),
			len(e.Namespace) > 0 && !likeAny(e.Namespace, cmp.Or(c.Pod.Namespace, v.event.Audit.Namespace)),
			len(e.Container) > 0 && !likeAny(e.Container, c.Name),
			len(e.Image) > 0 && !slices.ContainsFunc(e.Image, func(p string) bool { return imageLike(p, c) }):
			return false, nil
		}
		for key, pattern := range e.Labels {
			if !like(pattern, c.Pod.Labels[key]) {
				return false, nil
			}
		}
	}
	if e.check == nil {
		return true, nil
	}
	return e.check.holds(v)
}

func (w Workload) is(c *sensors.Container) bool {
	owner := c.Workload
	if owner.Name == "" && c.Pod.Name != "" {
		owner = sensors.WorkloadHint(c.Pod.Name, c.Pod.Labels)
	}
	return (w.Kind == "" || like(strings.ToLower(w.Kind), strings.ToLower(owner.Kind))) && (w.Name == "" || like(w.Name, owner.Name))
}
