package testspec

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

// HasEmptyExpect reports whether the test has an `expect` without a value.
func (t *TestCase) HasEmptyExpect() bool {
	return t.expectSpan != nil && len(t.ExpectedSteps) == 0 && t.expectSpan.valueNode.Tag == "!!null"
}

// RewriteExpectations returns the file with the `expect` of the given tests replaced by the actual results. It changes
// only these lines: an expected step that matched keeps its text, one that differed keeps the keys that its author
// chose, and comments are kept unless they are inside brackets. If there were no expected steps, or none of them
// occurred, every actual step is written. It returns an error, and no file, if this is not possible line by line.
func RewriteExpectations(f *TestFile, tests map[*TestCase]Result) ([]byte, error) {
	if breaks := strings.ReplaceAll(string(f.Source), "\r\n", ""); strings.ContainsAny(breaks, "\r\u0085\u2028\u2029") {
		return nil, fmt.Errorf("%s has unsupported line breaks; change it manually", f.File)
	}
	lines := strings.SplitAfter(string(f.Source), "\n")
	// Last test first, so that line numbers before it stay valid.
	order := slices.Clone(f.Tests)
	slices.SortFunc(order, func(a, b *TestCase) int { return b.Pos.Line - a.Pos.Line })
	for _, t := range order {
		h, ok := tests[t]
		if !ok || t.expectSpan == nil {
			continue
		}
		if line := lines[t.expectSpan.keyNode.Line-1]; strings.Trim(line[:min(t.expectSpan.keyNode.Column-1, len(line))],
			" -") != "" || !strings.HasPrefix(line[min(t.expectSpan.keyNode.Column-1, len(line)):], "expect:") {
			return nil,
				fmt.Errorf("%s:%d:%d: `expect` can be rewritten only if it starts its own line", f.File, t.expectSpan.keyNode.Line,
					t.expectSpan.keyNode.Column)
		}
		if lines, ok = rewriteTest(lines, t, h); !ok {
			return nil, cannotRewriteError(f, yamlnode.PositionOf(t.expectSpan.keyNode))
		}
	}
	out := []byte(strings.Join(lines, ""))
	if err := f.checkOnlyExpectChanged(out, tests); err != nil {
		return nil, err
	}
	return out, nil
}

// checkOnlyExpectChanged compares the rewritten file with the original. It returns an error if anything differs except
// the `expect` of the rewritten tests.
func (f *TestFile) checkOnlyExpectChanged(out []byte, tests map[*TestCase]Result) error {
	again, problems := ParseTestFile(f.File, out)
	if problems.HasErrors() || len(again.Tests) != len(f.Tests) {
		for _, t := range f.Tests {
			if _, ok := tests[t]; ok && t.expectSpan != nil {
				return cannotRewriteError(f, yamlnode.PositionOf(t.expectSpan.keyNode))
			}
		}
		return cannotRewriteError(f, Pos{Line: 1, Column: 1})
	}
	for i, t := range f.Tests {
		if _, ok := tests[t]; !ok && t.expectSpan != nil && (again.Tests[i].expectSpan == nil ||
			findDifferenceOutsideExpect(t.expectSpan.valueNode, again.Tests[i].expectSpan.valueNode) != nil) {
			return cannotRewriteError(f, yamlnode.PositionOf(t.expectSpan.keyNode))
		}
	}
	var before, after yaml.Node
	if yaml.Unmarshal(f.Source, &before) != nil || yaml.Unmarshal(out, &after) != nil {
		return cannotRewriteError(f, Pos{Line: 1, Column: 1})
	}
	if n := findDifferenceOutsideExpect(&before, &after); n != nil {
		return cannotRewriteError(f, yamlnode.PositionOf(n))
	}
	return nil
}

func cannotRewriteError(f *TestFile, at Pos) error {
	return fmt.Errorf("%s:%d:%d: `expect` cannot be rewritten without also changing this line or the lines after it; change it manually",
		f.File, at.Line, at.Column)
}

func rewriteTest(lines []string, t *TestCase, h Result) ([]string, bool) {
	key, list := t.expectSpan.keyNode, t.expectSpan.valueNode
	indent := strings.Repeat(" ", key.Column-1+2)
	block := list.Kind == yaml.SequenceNode && list.Style&yaml.FlowStyle == 0 && len(list.Content) > 0
	if !block {
		head, rest, ok := cutExpectValue(lines, key, list)
		return slices.Concat(lines[:key.Line-1], head, renderExpectedSteps(nil, nil, t, h, indent), rest), ok
	}
	indent = strings.Repeat(" ", list.Column-1)
	from := list.Content[0].Line - 1
	end := from
	for i := from; i < len(lines); i++ {
		text := strings.TrimRight(lines[i], " \r\n")
		in := len(text) - len(strings.TrimLeft(text, " "))
		if text != "" && !strings.HasPrefix(strings.TrimLeft(text, " "), "#") {
			if in < list.Column-1 || in == list.Column-1 && text[in] != '-' {
				break
			}
			end = i + 1
		}
	}
	var starts []int
	for i, item := range list.Content {
		if starts = append(starts, item.Line-1); item.Line > end || i > 0 && starts[i] <= starts[i-1] {
			return nil, false // the item shares its line with something else
		}
	}
	return slices.Concat(lines[:from], renderExpectedSteps(lines[:end], starts, t, h, indent), lines[end:]), true
}

// renderExpectedSteps returns the lines of `expect` for the actual result. An existing item keeps its lines if the step
// matched, and always keeps its comments.
func renderExpectedSteps(lines []string, starts []int, t *TestCase, h Result, indent string) []string {
	c := &comparison{TestCase: t, Result: h}
	kept := map[int]int{} // index of the kept item, by index of the actual step
	cursor := 0
	for i, want := range t.ExpectedSteps {
		near := -1
		for k := cursor; k < len(h.Steps); k++ {
			if !c.matchesStep(want, h.Steps[k]) {
				continue
			}
			if near < 0 {
				near = k
			}
			if key, _ := c.firstDifference(want, h.Steps[k]); key == "" {
				near = k
				break
			}
		}
		if near >= 0 {
			kept[near], cursor = i, near+1
		}
	}
	if len(kept) > 0 {
		return renderKeptSteps(c, lines, starts, kept, indent)
	}
	var out []string
	next := 0 // first item whose comments are not written yet
	comments := func(upTo int) {
		for ; next <= upTo && next < len(starts); next++ {
			out = append(out, leadingCommentLines(lines, starts, next)...)
		}
	}
	for _, ran := range h.Steps {
		out = append(out, indent+"- "+c.renderStep(ran)+"\n")
	}
	comments(len(starts))
	return out
}

// itemLines returns the lines of an item, without the comments that belong to the next item.
func itemLines(lines []string, starts []int, i int) []string {
	end := len(lines)
	if i+1 < len(starts) {
		end = starts[i+1] - len(leadingCommentLines(lines, starts, i+1))
	}
	out := slices.Clone(lines[starts[i]:end])
	if n := len(out); n > 0 && !strings.HasSuffix(out[n-1], "\n") {
		out[n-1] += "\n"
	}
	return out
}

// leadingCommentLines returns the comments and empty lines before an item. Those before the first item are outside of
// the rewritten part.
func leadingCommentLines(lines []string, starts []int, i int) []string {
	if i == 0 {
		return nil
	}
	from := starts[i]
	for from > starts[i-1]+1 {
		text := strings.TrimSpace(lines[from-1])
		if text != "" && !strings.HasPrefix(text, "#") {
			break
		}
		from--
	}
	return lines[from:starts[i]]
}

func firstLineComment(n *yaml.Node) string {
	if n == nil {
		return ""
	}
	if n.LineComment != "" {
		return n.LineComment
	}
	for _, child := range n.Content {
		if s := firstLineComment(child); s != "" {
			return s
		}
	}
	return ""
}

// renderStep returns an actual step in the form of an expected step.
func (c *comparison) renderStep(r StepRun) string {
	parts := []string{"step: " + quoteYAMLIfNeeded(r.Step)}
	if len(c.Playbooks) > 1 {
		parts = append(parts, "playbook: "+quoteYAMLIfNeeded(r.Playbook))
	}
	same := 0
	for _, s := range c.Steps {
		if s.Step == r.Step && s.Playbook == r.Playbook {
			same++
		}
	}
	if t, ok := c.TargetsByID[r.Target]; ok && same > 1 {
		parts = append(parts, "target: "+quoteYAMLIfNeeded(t.Name))
	}
	parts = append(parts, "outcome: "+string(r.Outcome))
	if (r.Outcome.RunsOnFailure() || r.Outcome.RunsOnDenied()) && r.Reason != "" {
		parts = append(parts, "reason: "+quoteYAML(shortenReason(r.Reason)))
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

// shortenReason returns the last part of a long reason, which is the most specific one where errors wrap each other.
func shortenReason(reason string) string {
	const long = 100
	r := []rune(reason)
	if len(r) <= long {
		return reason
	}
	if i := strings.LastIndex(reason, "): "); i >= 0 {
		r = []rune(reason[i+3:])
	}
	return string(r[:min(long, len(r))])
}

// quoteYAML returns a double-quoted YAML string. JSON strings are valid YAML.
func quoteYAML(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Sprintf("%q", s)
	}
	return string(raw)
}

// quoteYAMLIfNeeded returns s unchanged if it is a plain scalar.
func quoteYAMLIfNeeded(s string) string {
	plain := s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == ""
	if plain && (s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z') &&
		!slices.Contains([]string{"true", "false", "null", "yes", "no"}, strings.ToLower(s)) {
		return s
	}
	return quoteYAML(s)
}
