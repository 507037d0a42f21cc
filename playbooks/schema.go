package playbooks

import (
	"maps"
	"reflect"
	"slices"

	"github.com/invopop/jsonschema"

	"stanch/sensors"
	"stanch/sensors/duration"
)

// object is a JSON object of a schema; maps marshal with sorted keys.
type object = map[string]any

// Schema is the JSON Schema of a playbook, for editors: made from the grammar and the catalogue's own specs. It accepts
// every valid playbook; what it cannot say (types of expressions, evidence first) `stanch validate` says.
func Schema(catalogue Catalogue) any {
	s := &schemaMaker{catalogue: catalogue, reflector: &jsonschema.Reflector{Anonymous: true, DoNotReference: true, RequiredFromJSONSchemaTags: true}}
	properties, required := s.keys(PlaybookKeys, map[string]object{
		"playbook":  {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_-]{0,63}$"},
		"max_phase": {"type": "integer", "minimum": 1, "maximum": 3, "default": 2},
		"match":     s.match(),
		"inputs":    {"type": "object", "additionalProperties": s.input()},
		"outputs":   {"type": "object", "additionalProperties": expressionSchema("an expression; its value is the output")},
	})
	return object{
		"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://stanch.dev/schema/playbook.json", "title": "A playbook of Stanch",
		"type": "object", "additionalProperties": false, "required": required, "properties": properties,
		"definitions": object{"step": s.step(), "steps": object{"type": "array", "minItems": 1, "items": object{"$ref": "#/definitions/step"}}},
	}
}

type schemaMaker struct {
	catalogue Catalogue
	reflector *jsonschema.Reflector
}

func described(schema object, doc string) object {
	out := maps.Clone(schema)
	out["description"] = doc
	return out
}

func expressionSchema(doc string) object {
	return object{"type": []string{"string", "boolean", "number"}, "description": doc}
}

// words is one word or a list of them.
func words(one object) object {
	return object{"anyOf": []any{one, object{"type": "array", "items": one}}}
}

// keys makes the properties of a mapping from its table. What a key's type says is enough unless it is in special.
func (s *schemaMaker) keys(table []Key, special map[string]object) (properties object, required []string) {
	properties = object{}
	for _, k := range table {
		schema, ok := special[k.Name]
		if !ok {
			schema = s.typed(k)
		}
		properties[k.Name] = described(schema, k.Doc)
		if k.Required {
			required = append(required, k.Name)
		}
	}
	return properties, required
}

// typed is the schema of what a key's type says.
func (s *schemaMaker) typed(k Key) object {
	switch k.Type {
	case "steps":
		return object{"$ref": "#/definitions/steps"}
	case "duration":
		return object{"type": "string", "pattern": duration.Pattern, "examples": []string{"90s", "15m", "2h", "1d"}}
	case "expression":
		return object{"type": []string{"string", "boolean"}}
	case "mapping":
		return object{"type": "object"}
	case "name":
		return object{"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}
	case "true or false":
		return object{"type": "boolean"}
	case "number":
		return object{"type": "number"}
	case "list":
		return object{"type": "array"}
	case "word or list":
		return words(object{"type": "string"})
	case "value":
		return object{}
	case "0 to 1000":
		return object{"type": "integer", "minimum": 0, "maximum": 1000}
	case "1 to 10":
		return object{"type": "integer", "minimum": 1, "maximum": 10, "default": 1}
	case "1 to 50":
		return object{"type": "integer", "minimum": 1, "maximum": MaxItems, "default": MaxItems}
	case "deny":
		return object{"const": "deny"}
	}
	return object{"type": "string"}
}

func (s *schemaMaker) match() object {
	properties, _ := s.keys(MatchKeys, map[string]object{
		"objective": words(object{"type": "string", "enum": sensors.Objectives}),
		"severity":  {"enum": []string{"info", "low", "medium", "high", "critical"}},
	})
	return object{"type": "object", "additionalProperties": false, "properties": properties}
}

func (s *schemaMaker) input() object {
	properties, required := s.keys(InputKeys, map[string]object{"type": {"enum": InputTypes}})
	return object{"type": "object", "additionalProperties": false, "properties": properties, "required": required}
}

// step is the schema of a step: all keys with what they are for, and for each kind and each action what it takes.
func (s *schemaMaker) step() object {
	duration := s.typed(Key{Type: "duration"})
	from, _ := s.keys(FromKeys, map[string]object{"escalate": {"type": "object", "additionalProperties": false, "required": []string{"after"}, "properties": object{
		"after": duration, "groups": words(object{"type": "string"}), "users": words(object{"type": "string"}),
	}}})
	special := map[string]object{
		"from":  {"type": "object", "additionalProperties": false, "properties": from},
		"retry": {"type": "object", "additionalProperties": false, "properties": object{"attempts": object{"type": "integer", "minimum": 1, "maximum": 20}, "backoff": duration}},
		"stop":  {"enum": StopOutcomes}, "set": {"type": "object", "minProperties": 1},
		"wait": {"anyOf": []any{duration, object{"type": "object", "additionalProperties": false, "required": []string{"until", "timeout"}, "properties": object{
			"until": expressionSchema("what it waits for; `live` is the incident as it is now"), "timeout": duration,
		}}}},
	}
	properties := object{}
	var kinds, rules []any
	for _, kind := range Kinds() {
		own := Key{Name: kind.Name, Type: kind.Type, Doc: kind.Doc}
		table := append([]Key{own}, kind.Keys...)
		if verb := Verb(kind.Name); slices.Contains(Verbs, verb) {
			special[kind.Name] = s.actions(verb)
			rules = append(rules, s.actionRules(verb)...)
		}
		mine, required := s.keys(table, special)
		names := slices.Sorted(maps.Keys(mine))
		for name, schema := range mine {
			if _, ok := properties[name]; !ok {
				properties[name] = schema
			}
		}
		kinds = append(kinds, object{"required": append([]string{kind.Name}, required...), "title": kind.Name, "description": kind.Doc})
		rules = append(rules, object{"if": object{"required": []string{kind.Name}}, "then": object{"propertyNames": object{"enum": names}}})
	}
	return object{"type": "object", "additionalProperties": false, "properties": properties, "oneOf": kinds, "allOf": rules}
}

// actions are the names of a verb's actions.
func (s *schemaMaker) actions(verb Verb) object {
	var names, docs []string
	for _, name := range slices.Sorted(maps.Keys(s.catalogue)) {
		if spec := s.catalogue[name]; spec.Verb == verb {
			names, docs = append(names, name), append(docs, spec.Doc)
		}
	}
	if names == nil {
		return object{"type": "string"}
	}
	return object{"type": "string", "enum": names, "enumDescriptions": docs, "markdownEnumDescriptions": docs}
}

// actionRules say what the actions of a verb take.
func (s *schemaMaker) actionRules(verb Verb) []any {
	var rules []any
	for _, name := range slices.Sorted(maps.Keys(s.catalogue)) {
		spec := s.catalogue[name]
		if spec.Verb != verb {
			continue
		}
		is := object{string(verb): object{"const": name}}
		properties := object{"with": s.parameters(spec)}
		then := object{"properties": properties}
		if spec.Reversible {
			then["required"] = []string{"for"}
		} else if verb == VerbContain {
			then["not"] = object{"required": []string{"for"}}
		}
		rules = append(rules, object{"if": object{"properties": is, "required": []string{string(verb)}}, "then": then})
	}
	return rules
}

// parameters are an action's; each may be a text with an expression as well.
func (s *schemaMaker) parameters(spec Spec) object {
	t := spec.ParamType()
	if t == nil || t.NumField() == 0 {
		return object{"type": "object", "maxProperties": 0, "description": "`" + spec.Name + "` takes no parameters"}
	}
	reflected := s.reflector.ReflectFromType(t)
	properties := object{}
	for pair := reflected.Properties.Oldest(); pair != nil; pair = pair.Next() {
		doc := parameterDoc(t, pair.Key)
		properties[pair.Key] = object{"anyOf": []any{pair.Value, object{"type": "string", "pattern": `\$\{`}}, "description": doc}
	}
	out := object{"type": "object", "additionalProperties": false, "properties": properties, "description": "the parameters of `" + spec.Name + "`"}
	if len(reflected.Required) > 0 {
		out["required"] = reflected.Required
	}
	return out
}

// parameterDoc says what a parameter is, from its `doc` tag, with its type and bounds.
func parameterDoc(t reflect.Type, name string) string {
	for f := range t.Fields() {
		if jsonName(f) == name {
			doc := typeName(f.Type)
			if text := f.Tag.Get("doc"); text != "" {
				doc = text + " (" + doc + ")"
			}
			return doc
		}
	}
	return ""
}
