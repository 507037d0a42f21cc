package rules

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	raw, err := json.Marshal(Schema())
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	require.NoError(t, c.AddResource("rules.json", doc))
	s, err := c.Compile("rules.json")
	require.NoError(t, err)
	return s
}

// validateAgainstSchema validates a pack against the schema.
func validateAgainstSchema(t *testing.T, s *jsonschema.Schema, source []byte) error {
	t.Helper()
	var v any
	require.NoError(t, yaml.Unmarshal(source, &v))
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	require.NoError(t, err)
	return s.Validate(doc) //nolint:wrapcheck // a test
}

func TestShippedPacksMatchTheSchema(t *testing.T) {
	s := compileSchema(t)
	files, err := filepath.Glob("*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, validateAgainstSchema(t, s, raw), file)
	}
	for _, bad := range []string{
		"rule: x", "rules: [{ rule: x }]", "overrides: [{ rule: x, condition: y }]",
		"lists: { X: [a] }", "overrides: [{ rule: x, severity: hihg }]",
	} {
		require.Error(t, validateAgainstSchema(t, s, []byte(bad)), bad)
	}
}

func TestLanguageReferenceIsCorrect(t *testing.T) {
	raw, err := os.ReadFile("LANGUAGE.md")
	require.NoError(t, err)
	page := string(raw)
	s := compileSchema(t)
	examples := strings.Split(page, "```yaml\n")[1:]
	require.Len(t, examples, 2)
	for _, e := range examples {
		e, _, _ = strings.Cut(e, "```")
		_, problems := Lint(ShippedSource(), PackSource{FS: fstest.MapFS{"example.yaml": {Data: []byte(e)}}})
		for _, p := range problems {
			if p.File == "example.yaml" {
				require.NotEqual(t, "error", p.Severity, p.String())
			}
		}
		require.NoError(t, validateAgainstSchema(t, s, []byte(e)))
	}
	for _, fields := range [][]yamlField{
		(&Rule{}).fields(nil), (&Override{}).fields(nil), (&Exception{}).fields(nil),
		(&loader{}).packFields(nil),
	} {
		for _, f := range fields {
			require.Contains(t, page, "`"+f.Name+"`")
		}
	}
	for _, k := range SupportedKinds {
		require.Contains(t, page, "`"+string(k)+"`")
	}
	for name := range conditionFields() {
		require.Contains(t, page, "`"+name[strings.LastIndexByte(name, '.')+1:]+"`")
	}
	for name := range exprFieldTypes(reflect.TypeFor[conditionEnv]()) {
		require.Contains(t, page, "`"+name+"`")
	}
	for _, f := range Functions() {
		require.Contains(t, page, "`"+f.Name+"(")
	}
}
