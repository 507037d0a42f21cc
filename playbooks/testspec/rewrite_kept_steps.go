package testspec

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// renderKeptSteps returns the lines of `expect` if some expected steps occurred: these steps, in their author's form,
// and no others, so that the test stays as strict as it was.
func renderKeptSteps(c *comparison, lines []string, starts []int, kept map[int]int, indent string) []string {
	var out []string
	next := 0 // first item whose comments are not written yet
	for k, ran := range c.Steps {
		item, ok := kept[k]
		if !ok {
			continue
		}
		for ; next <= item && next < len(starts); next++ {
			out = append(out, leadingCommentLines(lines, starts, next)...)
		}
		want := c.ExpectedSteps[item]
		if key, _ := c.firstDifference(want, ran); key == "" && item < len(starts) {
			out = append(out, itemLines(lines, starts, item)...)
			continue
		}
		text := indent + "- " + c.renderStepInAuthorForm(want, ran)
		if said := firstLineComment(want.node); said != "" && item < len(starts) {
			text += " " + said
		}
		out = append(out, text+"\n")
	}
	for ; next < len(starts); next++ {
		out = append(out, leadingCommentLines(lines, starts, next)...)
	}
	return out
}

// renderStepInAuthorForm returns an expected step with the keys that its author chose and the actual values.
func (c *comparison) renderStepInAuthorForm(want *ExpectedStep, got StepRun) string {
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
				put(key, quoteYAML(want.Reason))
			case got.Reason != "":
				put(key, quoteYAML(shortenReason(got.Reason)))
			}
		case "within":
			limit := want.NotAfter
			if got.EndedAt > limit+timeTolerance/10 {
				limit = got.EndedAt.Truncate(time.Second) + time.Second
			}
			put(key, limit.String())
		case "at":
			at := want.ExpectedAt
			if absDuration(got.EndedAt-at) > timeTolerance {
				at = got.EndedAt.Round(time.Second)
			}
			put(key, at.String())
		case "with":
			put(key, replaceJSONValues(want.Params.JSON, got.Params))
		default:
			put(key, quoteYAMLIfNeeded(value.Value))
		}
	}
	changed := want.Outcome != "" && want.Outcome != got.Outcome
	if changed && !reasoned && (got.Outcome.RunsOnFailure() || got.Outcome.RunsOnDenied()) && got.Reason != "" {
		put("reason", quoteYAML(shortenReason(got.Reason)))
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

// replaceJSONValues returns the expected parameters with the actual values; null for a missing one.
func replaceJSONValues(want, got json.RawMessage) string {
	var w, g any
	if json.Unmarshal(want, &w) != nil || len(got) > 0 && json.Unmarshal(got, &g) != nil {
		return string(want)
	}
	raw, err := json.Marshal(matchingValues(w, g))
	if err != nil {
		return string(want)
	}
	return string(raw)
}

func matchingValues(want, got any) any {
	w, ok := want.(map[string]any)
	if !ok {
		return got
	}
	g, _ := got.(map[string]any)
	out := map[string]any{}
	for key := range w {
		out[key] = matchingValues(w[key], g[key])
	}
	return out
}

// CanFixByRewriting reports whether rewriting `expect` can make a test pass, and otherwise why not: its author must
// change other expectations, and steps that did not occur.
func CanFixByRewriting(failures []Failure) (ok bool, why string) {
	if i := slices.IndexFunc(failures, func(f Failure) bool { return !f.IsExpectedStep || f.StepMissing }); i >= 0 {
		return false, failures[i].Message
	}
	return true, ""
}
