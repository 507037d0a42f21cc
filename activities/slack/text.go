package slack

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/slack-go/slack"

	"stanch/sensors/redact"
)

// Limits of one text, by weight (see runeWeight).
const (
	maxTextWeight   = 600
	maxHeaderWeight = 140
	maxFooterWeight = 600
)

// longHexPattern matches ids and hashes, which are abbreviated.
var longHexPattern = regexp.MustCompile(`[0-9a-f]{40,}`)

// runeWeight returns how much a character adds to the size of a message. A character that JSON escapes weighs more.
func runeWeight(r rune) int {
	switch r {
	case '<', '>', '&':
		return len(`\u003c`)
	case '"', '\\', '\t':
		return 2
	}
	return utf8.RuneLen(r)
}

func textWeight(s string) (n int) {
	for _, r := range s {
		n += runeWeight(r)
	}
	return n
}

// truncateToWeight truncates a text to a weight.
func truncateToWeight(s string, n int) string {
	left := n
	for i, r := range s {
		if left -= runeWeight(r); left < 0 {
			return s[:i] + "…"
		}
	}
	return s
}

// sanitizeText returns literal text: control, invisible and direction-changing characters become dots.
func sanitizeText(s string, n int) string {
	return truncateToWeight(longHexPattern.ReplaceAllStringFunc(redact.EscapeControlChars(s),
		func(id string) string { return id[:12] + "…" }), n)
}

func plainElement(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(sanitizeText(s, maxTextWeight), nil)
}

func boldElement(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(sanitizeText(s, maxTextWeight), &slack.RichTextSectionTextStyle{Bold: true})
}

// textSection returns a block of literal text.
func textSection(s string) slack.Block {
	if s == "" {
		s = "(no text)"
	}
	return slack.NewRichTextBlock("", slack.NewRichTextSection(plainElement(s)))
}

// listLine is one line of a list: a label, and literal text.
type listLine struct {
	label, text, code string
	// neverTruncated means that the line is shown completely or not at all.
	neverTruncated bool
}

// render returns the line without empty parts, which Slack rejects.
func (l listLine) render(n int) *slack.RichTextSection {
	shown := func(s string) string {
		if l.neverTruncated {
			return redact.EscapeControlChars(s)
		}
		return sanitizeText(s, n)
	}
	elements := []slack.RichTextSectionElement{boldElement(sanitizeText(l.label, 80) + "  ")}
	if l.text != "" {
		elements = append(elements, slack.NewRichTextSectionTextElement(shown(l.text), nil))
	}
	if l.code != "" {
		elements = append(elements, slack.NewRichTextSectionTextElement(shown(l.code),
			&slack.RichTextSectionTextStyle{Code: true}))
	}
	return slack.NewRichTextSection(elements...)
}

// bulletList returns the lines, each truncated to a weight.
func bulletList(lines []listLine, n int) slack.RichTextElement {
	elements := make([]slack.RichTextElement, len(lines))
	for i, l := range lines {
		elements[i] = l.render(n)
	}
	return slack.NewRichTextList(slack.RTEListBullet, 0, elements...)
}

// escapeMarkup keeps only letters, digits and a few other characters of a text that Slack parses as markup.
func escapeMarkup(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-./:, ", r) {
			return r
		}
		return '.'
	}, sanitizeText(s, 160))
}

// sizeBudget is the number of JSON characters that a message may still use.
type sizeBudget int

// jsonSize returns the size of a value in a message.
func jsonSize(v any) int {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0 // the library's own types; one that cannot be encoded fails when it is sent
	}
	return len(raw) + 1
}

func totalJSONSize(blocks []slack.Block) (n int) {
	for _, b := range blocks {
		n += jsonSize(b)
	}
	return n
}

// reserve subtracts the size of the blocks, and returns false if they do not fit.
func (r *sizeBudget) reserve(blocks ...slack.Block) bool {
	n := sizeBudget(totalJSONSize(blocks))
	if n > *r {
		return false
	}
	*r -= n
	return true
}

// listOverhead is the size of an empty list, and noteOverhead that of a note about omitted lines.
const (
	listOverhead = 120
	noteOverhead = 260
)

// fitList returns the lines as a list that fits. It first truncates lines, and then omits the first or the last ones.
func (r *sizeBudget) fitList(lines []listLine, keepLast bool, note string) []slack.RichTextElement {
	const least = 160
	for _, n := range []int{maxTextWeight, least} {
		if all := bulletList(lines, n); len(lines) > 0 && sizeBudget(jsonSize(all)+listOverhead) <= *r {
			*r -= sizeBudget(jsonSize(all) + listOverhead)
			return []slack.RichTextElement{all}
		}
	}
	left, kept := *r-listOverhead-noteOverhead, 0
	for kept < len(lines) {
		l := lines[kept]
		if keepLast {
			l = lines[len(lines)-1-kept]
		}
		n := sizeBudget(jsonSize(l.render(least)))
		if n > left {
			break
		}
		left -= n
		kept++
	}
	if kept == 0 {
		return nil
	}
	rest := listLine{label: "More", text: note}
	if keepLast {
		lines = append([]listLine{rest}, lines[len(lines)-kept:]...)
	} else {
		lines = append(firstN(lines, kept), rest)
	}
	*r = left
	return []slack.RichTextElement{bulletList(lines, least)}
}

func hashBlocks(blocks []slack.Block) string {
	raw, err := json.Marshal(blocks)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

func firstN[T any](all []T, n int) []T { return all[:min(len(all), n):min(len(all), n)] }
