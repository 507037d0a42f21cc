package yamlnode

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var errorLinePattern = regexp.MustCompile(`line (\d+):\s*`)

// parseErrorExplanations maps messages of the YAML library to explanations and hints.
var parseErrorExplanations = []struct{ said, means, hint string }{
	{
		"did not find expected key", "the indentation of this line does not match the lines above",
		"all keys of a mapping begin in the same column; indent the value of a key further",
	},
	{
		"did not find expected '-' indicator", "the indentation of this line does not match the lines above",
		"all items of a list begin in the same column, each with `- `",
	},
	{
		"mapping values are not allowed", "a `:` is not allowed here",
		"quote a value that contains `:`, or check whether the line is indented too far",
	},
	{"cannot start any token", "the value begins with a character that YAML reserves", "put the value in quotes"},
	{"unexpected end of stream", "a quote is not closed", "close it"},
	{"did not find expected ',' or ']'", "a `[` is not closed, or a comma is missing", ""},
	{"did not find expected ',' or '}'", "a `{` is not closed, or a comma is missing", ""},
	{"did not find expected whitespace or line break", "", "put the value in quotes"},
}

// explainParseError returns the position at which a text stops being valid YAML, with an explanation and a hint. The
// library itself reports the line at which the surrounding mapping began.
func explainParseError(source []byte, err error) (at Position, text, hint string) {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := errorLinePattern.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.Replace(text, m[0], "", 1)
	}
	lines := strings.Split(string(source), "\n")
	line = firstInvalidLine(lines, line)
	own := ""
	if line <= len(lines) {
		own = lines[line-1]
	}
	indent := own[:len(own)-len(strings.TrimLeft(own, " \t"))]
	at = Position{line, len(indent) + 1}
	if tab := strings.IndexByte(indent, '\t'); tab >= 0 {
		return Position{line, tab + 1}, "the line is indented with a tab", "use spaces only"
	}
	for _, m := range parseErrorExplanations {
		if strings.Contains(text, m.said) {
			if m.means != "" {
				text = m.means
			}
			return at, text, m.hint
		}
	}
	return at, text, ""
}

// The limits of the search for the invalid line, in lines and in total bytes.
const (
	maxSearchLines = 400
	maxSearchBytes = 8 << 20
)

// firstInvalidLine returns the first line with which the text cannot be valid YAML anymore: the line after the
// longest valid prefix. said is the line that the library reports.
func firstInvalidLine(lines []string, said int) int {
	last, read := max(said-2, 0), 0
	for n := last + 1; n <= min(len(lines), said+maxSearchLines) && read < maxSearchBytes; n++ {
		beginning := strings.Join(lines[:n], "\n")
		read += len(beginning)
		var doc yaml.Node
		if err := yaml.NewDecoder(bytes.NewReader([]byte(beginning))).Decode(&doc); err == nil || errors.Is(err, io.EOF) {
			last = n
		}
	}
	return min(last+1, len(lines))
}
