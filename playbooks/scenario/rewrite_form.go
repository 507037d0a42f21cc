package scenario

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// keptOnly are the lines of `expect` where something of it came: each expected step that came, in the form in which its
// author wrote it, and no others, so that the test stays as strict as it was.
func keptOnly(c *comparison, lines []string, starts []int, kept map[int]int, indent string) []string {
	var out []string
	next := 0 // the first item whose comments are not written yet
	for k, ran := range c.Steps {
		item, ok := kept[k]
		if !ok {
			continue
		}
		for ; next <= item && next < len(starts); next++ {
			out = append(out, comment(lines, starts, next)...)
		}
		want := c.Expect[item]
		if key, _ := c.differs(want, ran); key == "" && item < len(starts) {
			out = append(out, body(lines, starts, item)...)
			continue
		}
		text := indent + "- " + c.form(want, ran)
		if said := lineComment(want.node); said != "" && item < len(starts) {
			text += " " + said
		}
		out = append(out, text+"\n")
	}
	for ; next < len(starts); next++ {
		out = append(out, comment(lines, starts, next)...)
	}
	return out
}

// form is an expected step with the keys that its author chose, and the values that came where others were expected.
func (c *comparison) form(want *Step, got Ran) string {
	var parts []string
	put := func(key, value string) { parts = append(parts, key+": "+value) }
	reasoned := false
	for i := 0; want.node != nil && i+1 < len(want.node.Content); i += 2 {
		key, value := want.node.Content[i].Value, want.node.Content[i+1]
		switch key {
		case "outcome":
			put(key, string(got.Outcome))
		case "reason":
			reasoned = true
			switch {
			case strings.Contains(got.Reason, want.Reason):
				put(key, quote(want.Reason))
			case got.Reason != "":
				put(key, quote(telling(got.Reason)))
			}
		case "within":
			limit := want.Within
			if got.At > limit+slack/10 {
				limit = got.At.Truncate(time.Second) + time.Second
			}
			put(key, limit.String())
		case "at":
			at := want.After
			if abs(got.At-at) > slack {
				at = got.At.Round(time.Second)
			}
			put(key, at.String())
		case "with":
			put(key, withValues(want.With.JSON, got.With))
		default:
			put(key, quoteIfNeeded(value.Value))
		}
	}
	changed := want.Outcome != "" && want.Outcome != got.Outcome
	if changed && !reasoned && (got.Outcome.RunsOnFailure() || got.Outcome.RunsOnDenied()) && got.Reason != "" {
		put("reason", quote(telling(got.Reason)))
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

// withValues are the parameters that were expected, with the values that came: null for one that did not come.
func withValues(want, got json.RawMessage) string {
	var w, g any
	if json.Unmarshal(want, &w) != nil || len(got) > 0 && json.Unmarshal(got, &g) != nil {
		return string(want)
	}
	raw, err := json.Marshal(valuesOf(w, g))
	if err != nil {
		return string(want)
	}
	return string(raw)
}

func valuesOf(want, got any) any {
	w, ok := want.(map[string]any)
	if !ok {
		return got
	}
	g, _ := got.(map[string]any)
	out := map[string]any{}
	for key := range w {
		out[key] = valuesOf(w[key], g[key])
	}
	return out
}

// CanRewrite reports whether rewriting `expect` can make a test pass, and else why not: an expectation of something else,
// or of a step that did not come, is its author's to change.
func CanRewrite(failures []Failure) (ok bool, why string) {
	if i := slices.IndexFunc(failures, func(f Failure) bool { return !f.Expects || f.Gone }); i >= 0 {
		return false, failures[i].What
	}
	return true, ""
}
