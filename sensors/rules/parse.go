package rules

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// nodes are where the parts of a rule stand.
type nodes map[string]*yaml.Node

// Bounds of what one file may hold.
const (
	maxRules      = 2000
	maxExceptions = 200
	maxTestEvents = 200
)

type (
	field  = yamlnode.Field
	object = yamlnode.Object
	reader = yamlnode.Reader
)

// packFields are the keys of a file. Of nil they are those of the schema.
func (l *loader) packFields(f *file) []field {
	return []field{
		{Name: "lists", Doc: "named lists of texts or of numbers; `{append: […]}` adds to one that another pack has", Schema: listsSchema, Read: func(_ *reader, _, v *yaml.Node) { l.readLists(f, v) }},
		{Name: "macros", Doc: "named conditions, for use in conditions", Schema: macrosSchema, Read: func(_ *reader, _, v *yaml.Node) { l.readMacros(f, v) }},
		{
			Name: "rules", Doc: "the rules", Schema: func() object {
				return object{"type": []string{"array", "null"}, "maxItems": maxRules, "items": yamlnode.Schema((&Rule{}).fields(nil))}
			},
			Read: func(_ *reader, _, v *yaml.Node) {
				f.each(v, "rules", "rule", maxRules, func(n *yaml.Node) { l.readRule(f, n) })
			},
		},
		{
			Name: "overrides", Doc: "how rules of other packs are weighed here: disabled, other severities, further exceptions", Schema: func() object {
				return object{"type": []string{"array", "null"}, "maxItems": maxRules, "items": yamlnode.Schema((&Override{}).fields(nil))}
			},
			Read: func(_ *reader, _, v *yaml.Node) {
				f.each(v, "overrides", "override", maxRules, func(n *yaml.Node) {
					o := &Override{At: f.place(n), file: f, node: n, nodes: nodes{}}
					before := len(f.r.Problems)
					f.r.Mapping(n, "an override", o.fields(f))
					o.broken = len(f.r.Problems) > before
					l.overrides = append(l.overrides, o)
				})
			},
		},
	}
}

// each visits the items of a list.
func (f *file) each(v *yaml.Node, name, what string, most int, visit func(*yaml.Node)) {
	switch {
	case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
	case v.Kind != yaml.SequenceNode:
		f.errorf(v, "type", fmt.Sprintf("begin each %s with `- `", what), "`%s` must be a list, not %s", name, yamlnode.Kind(v))
	case len(v.Content) > most:
		f.errorf(v, "too-large", "split the file", "`%s` has %d elements, at most %d are read", name, len(v.Content), most)
	default:
		for _, n := range v.Content {
			visit(n)
		}
	}
}

// keep remembers where a field stands.
func (n nodes) keep(inner field) field {
	read := inner.Read
	inner.Read = func(rd *reader, key, v *yaml.Node) {
		n[inner.Name] = v
		read(rd, key, v)
	}
	return inner
}

func (r *Rule) fields(f *file) []field {
	keep := r.nodes.keep
	var confidence *float64
	sure := yamlnode.Share("confidence", "how sure the rule is, alone, from 0 to 1", &confidence)
	readSure := sure.Read
	sure.Read = func(rd *reader, key, v *yaml.Node) {
		if readSure(rd, key, v); confidence != nil {
			r.Confidence = *confidence
		}
	}
	return []field{
		keep(yamlnode.Text("rule", "the rule's name, unique over all packs", &r.Name).Must()),
		keep(texts("aliases", "other names by which it is found: Falco's stable rule names", &r.Aliases)),
		keep(yamlnode.Text("title", "what it detects, in a few words", &r.Title).Must()),
		keep(yamlnode.Word("on", "the kind of event that it looks at", &r.On, Kinds).Must()),
		keep(yamlnode.Text("condition", "an expression that is true of the events that matter", &r.Condition).Must()),
		{Name: "exceptions", Doc: "what is not reported although the condition holds", Schema: exceptionsSchema, Read: func(_ *reader, _, v *yaml.Node) {
			r.Exceptions = readExceptions(f, v)
		}},
		keep(severityField("how much it matters, and how much in which namespaces", &r.Severity, &r.Namespaces).Must()),
		keep(sure.Must()),
		keep(yamlnode.Word("objective", "what an attacker would be after", &r.Objective, sensors.Objectives).Must()),
		keep(yamlnode.Text("technique", "the ATT&CK technique, such as T1496", &r.Technique).Must()),
		keep(yamlnode.Text("reason", "a sentence for who answers: why this matters", &r.Reason).Must()),
		keep(testsField("events that prove the rule: some that fire it, some that look alike and do not", f, func() sensors.Kind { return r.On }, &r.Tests).Must()),
	}
}

func (l *loader) readRule(f *file, n *yaml.Node) {
	r := &Rule{file: f, nodes: nodes{"": n}, At: f.place(n), count: &counters{}}
	before := len(f.r.Problems)
	if !f.r.Mapping(n, "a rule", r.fields(f)) {
		return
	}
	r.resolveTests() // `on` may stand behind `tests`
	if v := r.nodes["severity"]; v != nil && v.Kind == yaml.MappingNode && r.Severity == "" && len(f.r.Problems) == before {
		f.errorf(v, "required", "write for example `{ default: medium, namespaces: { \"prod-*\": high } }`", "`severity` has no `default`")
	}
	names := append([]string{r.Name}, r.Aliases...)
	for i, name := range names {
		at := r.nodes["rule"]
		if aliases := r.nodes["aliases"]; i > 0 && aliases.Kind == yaml.SequenceNode {
			at = aliases.Content[i-1]
		} else if i > 0 {
			at = aliases
		}
		switch first, twice := l.seen[strings.ToLower(name)]; {
		case twice:
			f.errorf(at, "duplicate-rule", "choose another name; `overrides` changes a rule of another pack", "a rule called `%s` stands at %s already", yamlnode.Clip(name, 60), first.At)
		case strings.TrimSpace(name) == "" && at != nil:
			f.errorf(at, "value", "", "a rule's name cannot be empty")
		case slices.ContainsFunc(names[:i], func(other string) bool { return strings.EqualFold(other, name) }):
			f.errorf(at, "duplicate-rule", "remove one of them", "the rule is called `%s` twice", yamlnode.Clip(name, 60))
		}
	}
	for _, name := range names {
		if _, taken := l.seen[strings.ToLower(name)]; !taken {
			l.seen[strings.ToLower(name)] = r
		}
	}
	if len(f.r.Problems) == before {
		l.parsed = append(l.parsed, r)
	} else {
		l.broken(r)
	}
}

// broken compiles what can be compiled of a rule that has mistakes elsewhere, so that all are told at once.
func (l *loader) broken(r *Rule) { l.half = append(l.half, r) }

// texts is a key with a list of texts, or one text.
func texts(name, doc string, to *[]string) field { return yamlnode.Texts(name, doc, to) }

// severityField is a key with a severity, or with one and those of namespaces.
func severityField(doc string, to *sensors.Severity, namespaces *Namespaces) field {
	plain := yamlnode.Word("severity", doc, to, sensors.Severities)
	one := func() object { return object{"enum": sensors.Severities} }
	return field{
		Name: "severity", Doc: doc,
		Schema: func() object {
			return object{"oneOf": []any{one(), object{
				"type": "object", "additionalProperties": false,
				"properties": object{
					"default":    object{"enum": sensors.Severities, "description": "where no namespace is named"},
					"namespaces": object{"type": "object", "additionalProperties": one(), "description": "namespace, or pattern such as `prod-*`, and its severity; the most specific counts"},
				},
			}}}
		},
		Read: func(r *reader, key, v *yaml.Node) {
			if v.Kind != yaml.MappingNode {
				plain.Read(r, key, v)
				return
			}
			inner := yamlnode.Word("default", "", to, sensors.Severities)
			r.Mapping(v, "`severity`", []field{inner, {Name: "namespaces", Read: func(r *reader, _, v *yaml.Node) { *namespaces = readNamespaces(r, v) }}})
		},
	}
}

func readNamespaces(r *reader, v *yaml.Node) Namespaces {
	if v.Kind != yaml.MappingNode {
		r.Errorf(yamlnode.At(v), "type", "write for example `{ \"prod-*\": critical }`", "`namespaces` must be a mapping, not %s", yamlnode.Kind(v))
		return nil
	}
	out := Namespaces{}
	r.Keys(v, func(key, value *yaml.Node) {
		if problem := badPattern(key.Value); problem != "" {
			r.Errorf(yamlnode.At(key), "pattern", "`*` stands for any letters, `?` for one", "%s", problem)
			return
		}
		var s sensors.Severity
		yamlnode.Word(yamlnode.Clip(key.Value, 40), "", &s, sensors.Severities).Read(r, key, value)
		if s.Rank() >= 0 {
			out[key.Value] = s
		}
	})
	return out
}

func didYouMean(word string, known []string) string { return diagnostic.DidYouMean(word, known) }
