package config_test

import (
	"encoding/json"
	"strings"
	"testing"

	reflected "github.com/invopop/jsonschema"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/worker/config"
)

// The schema accepts exactly the durations and sizes that the program accepts.
func TestSchemaMatchesParser(t *testing.T) {
	raw, err := json.Marshal((&reflected.Reflector{RequiredFromJSONSchemaTags: true}).Reflect(config.Config{}))
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	require.NoError(t, c.AddResource("config.json", doc))
	schema, err := c.Compile("config.json")
	require.NoError(t, err)
	for text, fine := range map[string]bool{
		"idle_timeout: 15m": true, "idle_timeout: 1d12h": true, "idle_timeout: 2w": true, "idle_timeout: 1.5h": true,
		"idle_timeout: soon": false, "idle_timeout: 1 h": false, "idle_timeout: -1h": false,
		"sources: [{name: a, token_file: t, kind: falco}]": true, "sources: [{name: a, token_file: t, kind: snort}]": false,
		"sources: [{name: a, token_file: t, kind: kubernetes-audit}]": true,
		"budget: {max_duration: 1d}":                                  true, "evidence: {max_total: 20Gi}": true,
		"evidence: {max_total: 512Mi, min_free: 1000000}": true, "evidence: {max_total: much}": false,
		"scopes: [{name: a, approvers: {groups: [x], timeout: 1d, escalate: {after: 1h, groups: [y]}}}]\npeople: [{name: z, groups: [x, y]}]": true,
	} {
		_, problems := config.Parse("stanch.yaml", []byte(text))
		require.Equal(t, fine, !problems.HasErrors(), "the parser on %q: %v", text, problems)
		var value any
		require.NoError(t, yaml.Unmarshal([]byte(text), &value))
		plain, err := json.Marshal(value)
		require.NoError(t, err)
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(plain)))
		require.NoError(t, err)
		err = schema.Validate(doc)
		require.Equal(t, fine, err == nil, "the schema on %q: %v", text, err)
	}
}
