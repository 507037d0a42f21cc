package playbooks

import (
	"maps"
	"reflect"
	"slices"

	"github.com/invopop/jsonschema"

	"stanch/sensors"
	"stanch/sensors/duration"
)

// schemaObject is a JSON object of a schema; maps marshal with sorted keys.
type schemaObject = map[string]any

// PlaybookSchema returns the JSON Schema of a playbook for editors, generated from the grammar and the catalog. It
// accepts every valid playbook. Rules that a schema cannot express (types of expressions, evidence first) are checked
// by `stanch validate`.
func PlaybookSchema(catalog Catalog) any {
	s := &schemaBuilder{catalog: catalog, reflector: &jsonschema.Reflector{
		Anonymous: true, DoNotReference: true,
		RequiredFromJSONSchemaTags: true,
	}}
	properties, required := s.keyProperties(PlaybookKeys, map[string]schemaObject{
		"playbook":  {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_-]{0,63}$"},
		"max_phase": {"type": "integer", "minimum": 1, "maximum": 3, "default": 2},
		"match":     s.matchSchema(),
		"inputs":    {"type": "object", "additionalProperties": s.inputSchema()},
		"outputs":   {"type": "object", "additionalProperties": expressionSchema("an expression; its value is the output")},
	})
	return schemaObject{
		"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://stanch.dev/schema/playbook.json",
		"title": "A Stanch playbook",
		"type":  "object", "additionalProperties": false, "required": required, "properties": properties,
		"definitions": schemaObject{"step": s.stepSchema(), "steps": schemaObject{
			"type": "array", "minItems": 1,
			"items": schemaObject{"$ref": "#/definitions/step"},
		}},
	}
}

type schemaBuilder struct {
	catalog   Catalog
	reflector *jsonschema.Reflector
}

func withDescription(schema schemaObject, doc string) schemaObject {
	out := maps.Clone(schema)
	out["description"] = doc
	return out
}

func expressionSchema(doc string) schemaObject {
	return schemaObject{"type": []string{"string", "boolean", "number"}, "description": doc}
}

// oneOrManySchema returns the schema of one value or a list of them.
func oneOrManySchema(one schemaObject) schemaObject {
	return schemaObject{"anyOf": []any{one, schemaObject{"type": "array", "items": one}}}
}

// keyProperties returns the schema properties of a mapping. special overrides the schema that follows from a key's
// type.
func (s *schemaBuilder) keyProperties(table []GrammarKey, special map[string]schemaObject) (properties schemaObject,
	required []string,
) {
	properties = schemaObject{}
	for _, k := range table {
		schema, ok := special[k.Name]
		if !ok {
			schema = s.schemaForKeyType(k)
		}
		properties[k.Name] = withDescription(schema, k.Doc)
		if k.Required {
			required = append(required, k.Name)
		}
	}
	return properties, required
}

// schemaForKeyType returns the schema that follows from a key's type.
func (s *schemaBuilder) schemaForKeyType(k GrammarKey) schemaObject {
	switch k.Type {
	case "steps":
		return schemaObject{"$ref": "#/definitions/steps"}
	case "duration":
		return schemaObject{"type": "string", "pattern": duration.Pattern, "examples": []string{"90s", "15m", "2h", "1d"}}
	case "expression":
		return schemaObject{"type": []string{"string", "boolean"}}
	case "mapping":
		return schemaObject{"type": "object"}
	case "name":
		return schemaObject{"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}
	case "true or false":
		return schemaObject{"type": "boolean"}
	case "number":
		return schemaObject{"type": "number"}
	case "list":
		return schemaObject{"type": "array"}
	case "word or list":
		return oneOrManySchema(schemaObject{"type": "string"})
	case "value":
		return schemaObject{}
	case "0 to 1000":
		return schemaObject{"type": "integer", "minimum": 0, "maximum": 1000}
	case "1 to 10":
		return schemaObject{"type": "integer", "minimum": 1, "maximum": 10, "default": 1}
	case "1 to 50":
		return schemaObject{"type": "integer", "minimum": 1, "maximum": MaxItems, "default": MaxItems}
	case "deny":
		return schemaObject{"const": "deny"}
	}
	return schemaObject{"type": "string"}
}

func (s *schemaBuilder) matchSchema() schemaObject {
	properties, _ := s.keyProperties(MatchKeys, map[string]schemaObject{
		"objective": oneOrManySchema(schemaObject{"type": "string", "enum": sensors.Objectives}),
		"severity":  {"enum": []string{"info", "low", "medium", "high", "critical"}},
	})
	return schemaObject{"type": "object", "additionalProperties": false, "properties": properties}
}

func (s *schemaBuilder) inputSchema() schemaObject {
	properties, required := s.keyProperties(InputKeys, map[string]schemaObject{"type": {"enum": InputTypes}})
	return schemaObject{"type": "object", "additionalProperties": false, "properties": properties, "required": required}
}

// stepSchema returns the schema of a step: all keys with their descriptions, and the parameters of each kind and
// action.
func (s *schemaBuilder) stepSchema() schemaObject {
	duration := s.schemaForKeyType(GrammarKey{Type: "duration"})
	from, _ := s.keyProperties(ApproverKeys,
		map[string]schemaObject{"escalate": {
			"type": "object", "additionalProperties": false, "required": []string{"after"},
			"properties": schemaObject{
				"after": duration, "groups": oneOrManySchema(schemaObject{"type": "string"}),
				"users": oneOrManySchema(schemaObject{"type": "string"}),
			},
		}})
	special := map[string]schemaObject{
		"from": {"type": "object", "additionalProperties": false, "properties": from},
		"retry": {
			"type": "object", "additionalProperties": false,
			"properties": schemaObject{
				"attempts": schemaObject{"type": "integer", "minimum": 1, "maximum": 20},
				"backoff":  duration,
			},
		},
		"stop": {"enum": StopOutcomes}, "set": {"type": "object", "minProperties": 1},
		"wait": {"anyOf": []any{duration, schemaObject{
			"type": "object", "additionalProperties": false,
			"required": []string{"until", "timeout"}, "properties": schemaObject{
				"until": expressionSchema("the condition to wait for; `live` is the current incident"), "timeout": duration,
			},
		}}},
	}
	properties := schemaObject{}
	var kinds, rules []any
	for _, kind := range StepKinds() {
		own := GrammarKey{Name: kind.Name, Type: kind.Type, Doc: kind.Doc}
		table := append([]GrammarKey{own}, kind.Keys...)
		if verb := Verb(kind.Name); slices.Contains(Verbs, verb) {
			special[kind.Name] = s.actionNamesSchema(verb)
			rules = append(rules, s.actionRuleSchemas(verb)...)
		}
		mine, required := s.keyProperties(table, special)
		names := slices.Sorted(maps.Keys(mine))
		for name, schema := range mine {
			if _, ok := properties[name]; !ok {
				properties[name] = schema
			}
		}
		kinds = append(kinds, schemaObject{
			"required": append([]string{kind.Name}, required...), "title": kind.Name,
			"description": kind.Doc,
		})
		rules = append(rules, schemaObject{
			"if":   schemaObject{"required": []string{kind.Name}},
			"then": schemaObject{"propertyNames": schemaObject{"enum": names}},
		})
	}
	return schemaObject{
		"type": "object", "additionalProperties": false, "properties": properties, "oneOf": kinds,
		"allOf": rules,
	}
}

// actionNamesSchema returns the schema of the names of a verb's actions.
func (s *schemaBuilder) actionNamesSchema(verb Verb) schemaObject {
	var names, docs []string
	for _, name := range slices.Sorted(maps.Keys(s.catalog)) {
		if spec := s.catalog[name]; spec.Verb == verb {
			names, docs = append(names, name), append(docs, spec.Doc)
		}
	}
	if names == nil {
		return schemaObject{"type": "string"}
	}
	return schemaObject{"type": "string", "enum": names, "enumDescriptions": docs, "markdownEnumDescriptions": docs}
}

// actionRuleSchemas returns the conditional schemas of the actions of a verb: their parameters and required keys.
func (s *schemaBuilder) actionRuleSchemas(verb Verb) []any {
	var rules []any
	for _, name := range slices.Sorted(maps.Keys(s.catalog)) {
		spec := s.catalog[name]
		if spec.Verb != verb {
			continue
		}
		is := schemaObject{string(verb): schemaObject{"const": name}}
		properties := schemaObject{"with": s.paramsSchema(spec)}
		then := schemaObject{"properties": properties}
		if spec.Reversible {
			then["required"] = []string{"for"}
		} else if verb == VerbContain {
			then["not"] = schemaObject{"required": []string{"for"}}
		}
		rules = append(rules, schemaObject{
			"if":   schemaObject{"properties": is, "required": []string{string(verb)}},
			"then": then,
		})
	}
	return rules
}

// paramsSchema returns the schema of an action's parameters. Each parameter may also be a string with an expression.
func (s *schemaBuilder) paramsSchema(spec ActionSpec) schemaObject {
	t := spec.ParamType()
	if t == nil || t.NumField() == 0 {
		return schemaObject{"type": "object", "maxProperties": 0, "description": "`" + spec.Name + "` takes no parameters"}
	}
	reflected := s.reflector.ReflectFromType(t)
	properties := schemaObject{}
	for pair := reflected.Properties.Oldest(); pair != nil; pair = pair.Next() {
		doc := describeParameter(t, pair.Key)
		properties[pair.Key] = schemaObject{
			"anyOf":       []any{pair.Value, schemaObject{"type": "string", "pattern": `\$\{`}},
			"description": doc,
		}
	}
	out := schemaObject{
		"type": "object", "additionalProperties": false, "properties": properties,
		"description": "the parameters of `" + spec.Name + "`",
	}
	if len(reflected.Required) > 0 {
		out["required"] = reflected.Required
	}
	return out
}

// describeParameter returns a parameter's `doc` tag with its type and bounds.
func describeParameter(t reflect.Type, name string) string {
	for f := range t.Fields() {
		if jsonFieldName(f) == name {
			doc := describeType(f.Type)
			if text := f.Tag.Get("doc"); text != "" {
				doc = text + " (" + doc + ")"
			}
			return doc
		}
	}
	return ""
}
