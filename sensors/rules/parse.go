package rules

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// fieldNodes maps the keys of a rule to their YAML nodes.
type fieldNodes map[string]*yaml.Node

// Limits of one file.
const (
	maxRules      = 2000
	maxExceptions = 200
	maxTestEvents = 200
)

type (
	yamlField    = yamlnode.Field
	schemaObject = yamlnode.Object
	yamlReader   = yamlnode.Reader
)

// packFields returns the keys of a pack file. f may be nil if only the schema is needed.
func (l *loader) packFields(f *packFile) []yamlField {
	return []yamlField{
		{
			Name: "lists", Doc: "named lists of strings or integers; `{append: […]}` extends a list from another pack",
			Schema: listsSchema, Read: func(_ *yamlReader, _, v *yaml.Node) { l.readLists(f, v) },
		},
		{
			Name: "macros", Doc: "named conditions for use in other conditions", Schema: macrosSchema,
			Read: func(_ *yamlReader, _, v *yaml.Node) { l.readMacros(f, v) },
		},
		{
			Name: "rules", Doc: "the rules", Schema: func() schemaObject {
				return schemaObject{
					"type": []string{"array", "null"}, "maxItems": maxRules,
					"items": yamlnode.Schema((&Rule{}).fields(nil)),
				}
			},
			Read: func(_ *yamlReader, _, v *yaml.Node) {
				f.visitItems(v, "rules", "rule", maxRules, func(n *yaml.Node) { l.readRule(f, n) })
			},
		},
		{
			Name: "overrides", Doc: "changes to rules in other packs: disabling, severities, additional exceptions",
			Schema: func() schemaObject {
				return schemaObject{
					"type": []string{"array", "null"}, "maxItems": maxRules,
					"items": yamlnode.Schema((&Override{}).fields(nil)),
				}
			},
			Read: func(_ *yamlReader, _, v *yaml.Node) {
				f.visitItems(v, "overrides", "override", maxRules, func(n *yaml.Node) {
					o := &Override{Position: f.position(n), file: f, node: n, nodes: fieldNodes{}}
					before := len(f.reader.Problems)
					f.reader.ReadMapping(n, "an override", o.fields(f))
					o.broken = len(f.reader.Problems) > before
					l.overrides = append(l.overrides, o)
				})
			},
		},
	}
}

// visitItems calls visit for each element of a list.
func (f *packFile) visitItems(v *yaml.Node, name, what string, most int, visit func(*yaml.Node)) {
	switch {
	case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
	case v.Kind != yaml.SequenceNode:
		f.errorf(v, "type", fmt.Sprintf("begin each %s with `- `", what), "`%s` must be a list, not %s", name,
			yamlnode.DescribeKind(v))
	case len(v.Content) > most:
		f.errorf(v, "too-large", "split the file", "`%s` has %d elements; the maximum is %d", name, len(v.Content), most)
	default:
		for _, n := range v.Content {
			visit(n)
		}
	}
}

// recordNode makes the field record its YAML node.
func (n fieldNodes) recordNode(inner yamlField) yamlField {
	read := inner.Read
	inner.Read = func(rd *yamlReader, key, v *yaml.Node) {
		n[inner.Name] = v
		read(rd, key, v)
	}
	return inner
}

func (r *Rule) fields(f *packFile) []yamlField {
	keep := r.nodes.recordNode
	var confidence *float64
	sure := yamlnode.FractionField("confidence", "the confidence of this rule alone, from 0 to 1", &confidence)
	readSure := sure.Read
	sure.Read = func(rd *yamlReader, key, v *yaml.Node) {
		if readSure(rd, key, v); confidence != nil {
			r.Confidence = *confidence
		}
	}
	return []yamlField{
		keep(yamlnode.StringField("rule", "the rule's name, unique across all packs", &r.Name).AsRequired()),
		keep(textList("aliases", "other names for the rule, such as Falco's stable rule name", &r.Aliases)),
		keep(yamlnode.StringField("title", "what the rule detects, in a few words", &r.Title).AsRequired()),
		keep(yamlnode.EnumField("on", "the kind of event that the rule evaluates", &r.Kind, SupportedKinds).AsRequired()),
		keep(yamlnode.StringField("condition", "an expression that is true for the events to report",
			&r.Condition).AsRequired()),
		{
			Name: "exceptions", Doc: "events that are not reported even if the condition is true", Schema: exceptionsSchema,
			Read: func(_ *yamlReader, _, v *yaml.Node) {
				r.Exceptions = readExceptions(f, v)
			},
		},
		keep(severityField("the severity, optionally per namespace", &r.Severity, &r.Namespaces).AsRequired()),
		keep(sure.AsRequired()),
		keep(yamlnode.EnumField("objective", "the attacker's suspected objective", &r.Objective,
			sensors.Objectives).AsRequired()),
		keep(yamlnode.StringField("technique", "the ATT&CK technique, such as T1496", &r.Technique).AsRequired()),
		keep(yamlnode.StringField("reason", "one sentence for the responder: why this matters", &r.Reason).AsRequired()),
		keep(testsField("events that test the rule: some that fire it, and similar ones that do not", f,
			func() sensors.Kind { return r.Kind }, &r.Tests).AsRequired()),
	}
}

func (l *loader) readRule(f *packFile, n *yaml.Node) {
	r := &Rule{file: f, nodes: fieldNodes{"": n}, Position: f.position(n), counters: &counters{}}
	before := len(f.reader.Problems)
	if !f.reader.ReadMapping(n, "a rule", r.fields(f)) {
		return
	}
	r.buildTestEvents() // `on` may follow `tests`
	if v := r.nodes["severity"]; v != nil && v.Kind == yaml.MappingNode && r.Severity == "" &&
		len(f.reader.Problems) == before {
		f.errorf(v, "required", "for example, write `{ default: medium, namespaces: { \"prod-*\": high } }`",
			"`severity` has no `default`")
	}
	names := append([]string{r.Name}, r.Aliases...)
	for i, name := range names {
		at := r.nodes["rule"]
		if aliases := r.nodes["aliases"]; i > 0 && aliases.Kind == yaml.SequenceNode {
			at = aliases.Content[i-1]
		} else if i > 0 {
			at = aliases
		}
		switch first, twice := l.rulesByName[strings.ToLower(name)]; {
		case twice:
			f.errorf(at, "duplicate-rule", "choose another name; `overrides` changes a rule of another pack",
				"the rule `%s` is already defined at %s", truncate.Text(name, 60), first.Position)
		case strings.TrimSpace(name) == "" && at != nil:
			f.errorf(at, "value", "", "a rule's name cannot be empty")
		case slices.ContainsFunc(names[:i], func(other string) bool { return strings.EqualFold(other, name) }):
			f.errorf(at, "duplicate-rule", "remove one of them", "the rule lists the name `%s` twice",
				truncate.Text(name, 60))
		}
	}
	for _, name := range names {
		if _, taken := l.rulesByName[strings.ToLower(name)]; !taken {
			l.rulesByName[strings.ToLower(name)] = r
		}
	}
	if len(f.reader.Problems) == before {
		l.validRules = append(l.validRules, r)
	} else {
		l.compileInvalidRule(r)
	}
}

// compileInvalidRule queues a rule with problems for compilation, so that problems in its expressions are reported
// too.
func (l *loader) compileInvalidRule(r *Rule) { l.invalidRules = append(l.invalidRules, r) }

// textList returns a field with a string or a list of strings.
func textList(name, doc string, to *[]string) yamlField {
	return yamlnode.StringListField(name, doc, to)
}

// severityField returns a field with a severity, or with a default severity and severities per namespace.
func severityField(doc string, to *sensors.Severity, namespaces *NamespaceSeverities) yamlField {
	plain := yamlnode.EnumField("severity", doc, to, sensors.Severities)
	one := func() schemaObject { return schemaObject{"enum": sensors.Severities} }
	return yamlField{
		Name: "severity", Doc: doc,
		Schema: func() schemaObject {
			return schemaObject{"oneOf": []any{one(), schemaObject{
				"type": "object", "additionalProperties": false,
				"properties": schemaObject{
					"default": schemaObject{"enum": sensors.Severities, "description": "the severity in all other namespaces"},
					"namespaces": schemaObject{
						"type": "object", "additionalProperties": one(),
						"description": "namespace, or pattern such as `prod-*`, and its severity; the most specific one applies",
					},
				},
			}}}
		},
		Read: func(r *yamlReader, key, v *yaml.Node) {
			if v.Kind != yaml.MappingNode {
				plain.Read(r, key, v)
				return
			}
			inner := yamlnode.EnumField("default", "", to, sensors.Severities)
			r.ReadMapping(v, "`severity`", []yamlField{
				inner,
				{Name: "namespaces", Read: func(r *yamlReader, _, v *yaml.Node) { *namespaces = readNamespaceSeverities(r, v) }},
			})
		},
	}
}

func readNamespaceSeverities(r *yamlReader, v *yaml.Node) NamespaceSeverities {
	if v.Kind != yaml.MappingNode {
		r.Errorf(yamlnode.PositionOf(v), "type", "for example, write `{ \"prod-*\": critical }`",
			"`namespaces` must be a mapping, not %s", yamlnode.DescribeKind(v))
		return nil
	}
	out := NamespaceSeverities{}
	r.VisitKeys(v, func(key, value *yaml.Node) {
		if problem := patternError(key.Value); problem != "" {
			r.Errorf(yamlnode.PositionOf(key), "pattern", "`*` matches any sequence of characters; `?` matches one character",
				"%s", problem)
			return
		}
		var s sensors.Severity
		yamlnode.EnumField(truncate.Text(key.Value, 40), "", &s, sensors.Severities).Read(r, key, value)
		if s.Rank() >= 0 {
			out[key.Value] = s
		}
	})
	return out
}

func didYouMean(word string, known []string) string { return diagnostic.DidYouMean(word, known) }
