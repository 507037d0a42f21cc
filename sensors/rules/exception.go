package rules

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// Exception suppresses a rule: either by a condition alone, or by a description of the workload and optionally a
// condition. All given criteria must match.
type Exception struct {
	Name      string            `json:"name,omitempty"`
	Workload  WorkloadPattern   `json:"workload,omitzero"`
	Namespace []string          `json:"namespace,omitempty"`
	Container []string          `json:"container,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Image     []string          `json:"image,omitempty"`
	When      string            `json:"when,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Position  string            `json:"at"` // "file:line"

	conditionOnly bool // written as a condition alone
	node          *yaml.Node
	whenNode      *yaml.Node
	condition     *compiledCondition
}

// WorkloadPattern matches workloads by kind (case-insensitive) and name. An empty field matches every value.
type WorkloadPattern struct {
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
}

// MarshalJSON encodes an exception that is a condition alone as a string, as in the YAML file.
func (e *Exception) MarshalJSON() ([]byte, error) {
	if e.conditionOnly {
		return json.Marshal(e.When) //nolint:wrapcheck // a text
	}
	type bare Exception
	return json.Marshal((*bare)(e)) //nolint:wrapcheck // texts
}

// String returns the criteria of the exception in one line.
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
	for _, key := range sortedKeys(e.Labels) {
		add("label", key+"="+e.Labels[key])
	}
	add("image", e.Image...)
	add("when", e.When)
	return strings.Join(parts, ", ")
}

func (e *Exception) fields(f *packFile) []yamlField {
	patterns := func(name, doc string, to *[]string, bad func(string) string) yamlField {
		one := textList(name, doc, to)
		read := one.Read
		one.Read = func(r *yamlReader, key, v *yaml.Node) {
			before := len(r.Problems)
			if read(r, key, v); len(r.Problems) > before {
				return
			}
			if len(*to) == 0 {
				r.Errorf(yamlnode.PositionOf(v), "required", "", "`%s` is empty", name)
			}
			for i, p := range *to {
				at := v
				if v.Kind == yaml.SequenceNode {
					at = v.Content[i]
				}
				if problem := bad(p); problem != "" {
					r.Errorf(yamlnode.PositionOf(at), "pattern", "`*` matches any sequence of characters; `?` matches one character",
						"%s", problem)
				}
			}
		}
		return one
	}
	return []yamlField{
		yamlnode.StringField("name", "the name of the exception", &e.Name),
		yamlnode.MappingField("workload", "the workload that owns the pod", "`workload`", []yamlField{
			yamlnode.StringField("kind", "Deployment, StatefulSet, DaemonSet, Job, Pod, Container, or a pattern",
				&e.Workload.Kind),
			yamlnode.StringField("name", "its name, or a pattern such as `ci-*`", &e.Workload.Name),
		}, nil),
		patterns("namespace", "namespaces or patterns", &e.Namespace, patternError),
		patterns("container", "container names or patterns", &e.Container, patternError),
		{Name: "labels", Doc: "labels of the pod with values or patterns; all must match", Schema: func() schemaObject {
			return schemaObject{"type": "object", "minProperties": 1, "additionalProperties": schemaObject{"type": "string"}}
		}, Read: func(r *yamlReader, _, v *yaml.Node) {
			e.Labels = map[string]string{}
			f.visitNamed(v, "labels", func(key, value *yaml.Node) {
				e.Labels[key.Value] = r.ReadString(value, truncate.Text(key.Value, 40))
				if problem := patternError(e.Labels[key.Value]); problem != "" && value.Tag == "!!str" {
					r.Errorf(yamlnode.PositionOf(value), "pattern", "\"*\" matches any value", "%s", problem)
				}
			})
		}},
		patterns(
			"image",
			"images: `registry/name`, optionally with `:tag` or `@sha256:…`; `*` matches one part of the name; a trailing `/**` matches everything below",
			&e.Image,
			imagePatternError,
		),
		{
			Name: "when", Doc: "an expression, as in conditions",
			Schema: func() schemaObject { return schemaObject{"type": "string"} }, Read: func(r *yamlReader, _, v *yaml.Node) {
				e.When, e.whenNode = r.ReadString(v, "when"), v
			},
		},
		yamlnode.StringField("reason", "why this is not a threat", &e.Reason),
	}
}

func exceptionsSchema() schemaObject {
	return schemaObject{"type": []string{"array", "null"}, "maxItems": maxExceptions, "items": schemaObject{"oneOf": []any{
		schemaObject{"type": "string", "description": "an expression"}, yamlnode.Schema((&Exception{}).fields(nil)),
	}}}
}

func readExceptions(f *packFile, v *yaml.Node) []*Exception {
	var out []*Exception
	f.visitItems(v, "exceptions", "exception", maxExceptions, func(n *yaml.Node) {
		e := &Exception{Position: f.position(n), node: n}
		if n.Kind != yaml.MappingNode {
			e.When, e.whenNode, e.conditionOnly = f.reader.ReadString(n, "exceptions"), n, true
			out = append(out, e)
			return
		}
		before := len(f.reader.Problems)
		f.reader.ReadMapping(n, "an exception", e.fields(f))
		for what, p := range map[string]string{"kind": e.Workload.Kind, "name": e.Workload.Name} {
			if p != "" && patternError(p) != "" {
				f.errorf(n, "pattern", "`*` matches any sequence of characters; `?` matches one character", "workload %s: %s", what,
					patternError(p))
			}
		}
		if len(f.reader.Problems) == before && !e.hasCriteria() {
			f.errorf(n, "required", "add workload, namespace, container, labels, image or when", "the exception has no criteria")
		}
		out = append(out, e)
	})
	return out
}

func (e *Exception) hasCriteria() bool { return e.identifiesWorkload() || e.When != "" }

// identifiesWorkload reports whether the exception has a criterion other than a condition.
func (e *Exception) identifiesWorkload() bool {
	return e.Workload != (WorkloadPattern{}) || len(e.Namespace)+len(e.Container)+len(e.Labels)+len(e.Image) > 0
}

func (l *loader) compileExceptions(f *packFile, of string, exceptions []*Exception) {
	for i, e := range exceptions {
		what := fmt.Sprintf("exception %d of %s", i+1, of)
		if e.Name != "" {
			what = fmt.Sprintf("the exception `%s` of %s", truncate.Text(e.Name, 40), of)
		}
		if e.When != "" {
			e.condition = l.compileCondition(f, what, e.When, e.whenNode)
		}
	}
}

// matches reports whether the exception applies to an event.
func (e *Exception) matches(v *conditionEnv) (bool, error) {
	c := &v.event.Container
	if e.identifiesWorkload() {
		switch {
		case e.Workload != (WorkloadPattern{}) && !e.Workload.matches(c),
			len(e.Namespace) > 0 && !matchesAnyPattern(e.Namespace, cmp.Or(c.Pod.Namespace, v.event.Audit.Namespace)),
			len(e.Container) > 0 && !matchesAnyPattern(e.Container, c.Name),
			len(e.Image) > 0 && !slices.ContainsFunc(e.Image, func(p string) bool { return matchesImage(p, c) }):
			return false, nil
		}
		for key, pattern := range e.Labels {
			if !matchesPattern(pattern, c.Pod.Labels[key]) {
				return false, nil
			}
		}
	}
	if e.condition == nil {
		return true, nil
	}
	return e.condition.evaluate(v)
}

func (w WorkloadPattern) matches(c *sensors.Container) bool {
	owner := c.Workload
	if owner.Name == "" && c.Pod.Name != "" {
		owner = sensors.InferWorkload(c.Pod.Name, c.Pod.Labels)
	}
	return (w.Kind == "" || matchesPattern(strings.ToLower(w.Kind), strings.ToLower(owner.Kind))) &&
		(w.Name == "" || matchesPattern(w.Name, owner.Name))
}
