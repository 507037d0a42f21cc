package playbooks

import (
	"maps"
	"slices"

	"github.com/invopop/jsonschema"
)

// object is a JSON object of a schema; maps marshal with sorted keys.
type object = map[string]any

// Schema is the JSON Schema of a playbook, for editors: made from the grammar and the catalogue's own specs.
func Schema(catalogue Catalogue) any {
	duration := object{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`, "description": "a duration such as 90s, 15m or 2h"}
	expression := object{"type": []string{"string", "boolean"}, "description": "an expression; `incident` and the ids of earlier steps are known"}
	texts := object{"oneOf": []any{object{"type": "string"}, object{"type": "array", "items": object{"type": "string"}}}}
	stepList := object{"type": "array", "minItems": 1, "items": object{"$ref": "#/$defs/step"}}
	common := object{
		"id":         object{"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$", "description": "a name by which later steps read this one's outputs"},
		"if":         expression,
		"target":     object{"type": "string", "description": "one or more targets; default: each pod with a detection of its own"},
		"timeout":    duration,
		"on_failure": stepList,
		"on_denied":  stepList,
		"retry": object{"type": "object", "additionalProperties": false, "properties": object{
			"attempts": object{"type": "integer", "minimum": 1, "maximum": 20}, "backoff": duration,
		}},
	}
	var shapes []any
	reflector := &jsonschema.Reflector{Anonymous: true, DoNotReference: true, RequiredFromJSONSchemaTags: true}
	for _, name := range slices.Sorted(maps.Keys(catalogue)) {
		spec := catalogue[name]
		properties := maps.Clone(common)
		properties[string(spec.Verb)] = object{"const": name, "description": spec.Doc}
		required := []string{string(spec.Verb)}
		if t := spec.ParamType(); t != nil {
			properties["with"] = allowExpressions(reflector.ReflectFromType(t))
		}
		if spec.Reversible {
			properties["for"] = object{"allOf": []any{duration}, "description": "how long the lease holds"}
			required = append(required, "for")
		}
		shapes = append(shapes, object{"type": "object", "title": string(spec.Verb) + ": " + name, "description": spec.Doc, "properties": properties, "required": required, "additionalProperties": false})
	}
	parallel := maps.Clone(common)
	parallel["parallel"] = stepList
	delete(parallel, "target")
	delete(parallel, "retry")
	approval := maps.Clone(common)
	delete(approval, "target")
	delete(approval, "retry")
	maps.Copy(approval, object{
		"approval":   object{"type": "string", "description": "what is asked, in a few words"},
		"ask":        object{"type": "string", "description": "the question; ${…} is evaluated"},
		"steps":      stepList,
		"on_timeout": object{"const": "deny", "description": "silence permits nothing"},
		"from": object{"type": "object", "additionalProperties": false, "properties": object{
			"groups": texts, "users": texts, "quorum": object{"type": "integer", "minimum": 1, "maximum": 10},
			"escalate": object{"type": "object", "additionalProperties": false, "required": []string{"after"}, "description": "who is asked too when nobody has decided for a while", "properties": object{
				"after": object{"type": "string"}, "groups": texts, "users": texts,
			}},
		}},
	})
	shapes = append(shapes,
		object{"type": "object", "title": "parallel", "properties": parallel, "required": []string{"parallel"}, "additionalProperties": false},
		object{"type": "object", "title": "approval", "properties": approval, "required": []string{"approval", "from", "timeout", "on_timeout", "steps"}, "additionalProperties": false})
	return object{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://stanch.dev/schema/playbook.json", "title": "A playbook of Stanch",
		"type": "object", "additionalProperties": false, "required": []string{"playbook", "match", "steps"},
		"properties": object{
			"playbook": object{"type": "string"}, "description": object{"type": "string"}, "steps": stepList,
			"max_phase": object{"type": "integer", "minimum": 1, "maximum": 3, "description": "this playbook never goes beyond this phase"},
			"match": object{"type": "object", "additionalProperties": false, "properties": object{
				"objective": texts, "severity": object{"enum": []string{"info", "low", "medium", "high", "critical"}}, "when": expression,
			}},
		},
		"$defs": object{"step": object{"oneOf": shapes}},
	}
}

// allowExpressions lets each parameter be a text with an expression as well.
func allowExpressions(s *jsonschema.Schema) any {
	if s.Properties == nil {
		return s
	}
	properties := object{}
	for pair := s.Properties.Oldest(); pair != nil; pair = pair.Next() {
		properties[pair.Key] = object{"anyOf": []any{pair.Value, object{"type": "string", "pattern": `\$\{`}}, "description": pair.Value.Description}
	}
	out := object{"type": "object", "additionalProperties": false, "properties": properties}
	if len(s.Required) > 0 {
		out["required"] = s.Required
	}
	return out
}
