package yamlnode_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

type testStruct struct {
	Port  uint16            `json:"port"`
	Names map[string]string `json:"names"`
	List  []float64         `json:"list"`
	On    bool              `json:"on"`
}

func TestStructFieldsAreReadByTheirTags(t *testing.T) {
	read := func(text string) (testStruct, []string) {
		var out testStruct
		r := &yamlnode.Reader{File: "f"}
		root := r.ParseDocument([]byte(text), yamlnode.Limits{})
		require.NotNil(t, root)
		r.ReadMapping(root, "this", []yamlnode.Field{yamlnode.StructField("inner", "", &out)})
		var lines []string
		for _, p := range r.Problems.Sorted() {
			lines = append(lines, p.String())
		}
		return out, lines
	}
	got, problems := read("inner: { port: 80, names: { a: b }, list: [1, 2.5], on: true }")
	require.Empty(t, problems)
	require.Equal(t, testStruct{Port: 80, Names: map[string]string{"a": "b"}, List: []float64{1, 2.5}, On: true}, got)

	_, problems = read("inner:\n  prot: 80\n  port: 70000\n  names: { a: 1 }\n  list: 7\n  on: maybe\n  on: true\n")
	require.Equal(t, []string{
		"f:2:3: error: `inner` has no key `prot` [unknown-key]",
		"f:3:9: error: `port` must be an integer, not `70000` [type]",
		"f:4:15: error: `a` must be a string, not `1` [type]",
		"f:5:9: error: `list` must be a list, not `7` [type]",
		"f:6:7: error: `on` must be true or false, not `maybe` [type]",
		"f:7:3: error: `on` is given twice; the first is at line 6 [duplicate-key]",
	}, problems)
}

func TestFileSizeAndNestingAreLimited(t *testing.T) {
	for _, c := range []struct {
		limits     yamlnode.Limits
		text, code string
	}{
		{yamlnode.Limits{MaxBytes: 3}, "a: b", "too-large"},
		{yamlnode.Limits{MaxNodes: 3}, "a: [b, c, d]", "too-large"},
		{yamlnode.Limits{MaxDepth: 3}, "a: [[[[b]]]]", "too-deep"},
		{yamlnode.Limits{}, "a: &x b\nc: *x", "alias"},
		{yamlnode.Limits{}, "a: \xff", "encoding"},
		{yamlnode.Limits{}, "", "empty"},
		{yamlnode.Limits{}, "a: b\n---\nc: d", "documents"},
	} {
		r := &yamlnode.Reader{File: "f"}
		root := r.ParseDocument([]byte(c.text), c.limits)
		require.Len(t, r.Problems, 1, c.text)
		require.Equal(t, c.code, r.Problems[0].Code)
		require.Equal(t, c.code == "documents", root != nil)
	}
}

func TestSchemaMatchesTheFields(t *testing.T) {
	var name string
	fields := []yamlnode.Field{
		yamlnode.StringField("name", "who", &name).AsRequired(),
		yamlnode.ListField("all", "more", "one", 3, nil,
			func(*yaml.Node) []yamlnode.Field { return []yamlnode.Field{yamlnode.StringField("x", "an x", &name)} }),
	}
	s := yamlnode.Schema(fields)
	require.Equal(t, []string{"name"}, s["required"])
	require.Equal(t, yamlnode.Object{"type": "string", "description": "who"}, s["properties"].(yamlnode.Object)["name"])
	list := s["properties"].(yamlnode.Object)["all"].(yamlnode.Object)
	require.Equal(t, 3, list["maxItems"])
	require.Contains(t, list["items"].(yamlnode.Object)["properties"], "x")
}
