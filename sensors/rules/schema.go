package rules

import "stanch/sensors/yamlnode"

// Schema returns the JSON Schema (draft 2020-12) of a pack.
func Schema() map[string]any {
	s := yamlnode.Schema((&loader{}).packFields(nil))
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["$id"] = "https://stanch.dev/schema/rules.json"
	s["title"] = "A pack of Stanch's detection rules"
	s["type"] = []string{"object", "null"}
	return s
}
