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

// Bounds of one text, by what it weighs.
const (
	maxTextWeight   = 600
	maxHeaderWeight = 140
	maxFooterWeight = 600
)

// longHexPattern matches ids and hashes, of which nobody reads more than the beginning.
var longHexPattern = regexp.MustCompile(`[0-9a-f]{40,}`)

// runeWeight is how much a character makes a message longer: what JSON escapes weighs more than what one sees.
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

// truncateToWeight shortens a text to a weight.
func truncateToWeight(s string, n int) string {
	left := n
	for i, r := range s {
		if left -= runeWeight(r); left < 0 {
			return s[:i] + "…"
		}
	}
	return s
}

// sanitizeText is literal: control characters, invisible ones and those that turn the direction are shown as dots.
func sanitizeText(s string, n int) string {
	return truncateToWeight(longHexPattern.ReplaceAllStringFunc(redact.EscapeControlChars(s), func(id string) string { return id[:12] + "…" }), n)
}

func plainElement(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(sanitizeText(s, maxTextWeight), nil)
}

func boldElement(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(sanitizeText(s, maxTextWeight), &slack.RichTextSectionTextStyle{Bold: true})
}

// textSection is one block of literal text.
func textSection(s string) slack.Block {
	if s == "" {
		s = "(no text)"
	}
	return slack.NewRichTextBlock("", slack.NewRichTextSection(plainElement(s)))
}

// listLine is one line of a list: what it is about, in words, and what is somebody else's word for word.
type listLine struct {
	label, text, code string
	// neverTruncated: it is shown as it is or not at all.
	neverTruncated bool
}

// render leaves out what is empty, since Slack refuses empty texts.
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
		elements = append(elements, slack.NewRichTextSectionTextElement(shown(l.code), &slack.RichTextSectionTextStyle{Code: true}))
	}
	return slack.NewRichTextSection(elements...)
}

// bulletList are lines, each cut to a weight.
func bulletList(lines []listLine, n int) slack.RichTextElement {
	elements := make([]slack.RichTextElement, len(lines))
	for i, l := range lines {
		elements[i] = l.render(n)
	}
	return slack.NewRichTextList(slack.RTEListBullet, 0, elements...)
}

// escapeMarkup leaves letters, digits and a few signs of a text that Slack reads as markup.
func escapeMarkup(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-./:, ", r) {
			return r
		}
		return '.'
	}, sanitizeText(s, 160))
}

// sizeBudget is how many characters of JSON a message may still have.
type sizeBudget int

// jsonSize is how long something is in a message.
func jsonSize(v any) int {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0 // the library's own types; one that cannot be written fails when it is sent
	}
	return len(raw) + 1
}

func totalJSONSize(blocks []slack.Block) (n int) {
	for _, b := range blocks {
		n += jsonSize(b)
	}
	return n
}

// reserve takes blocks in, if there is room for them.
func (r *sizeBudget) reserve(blocks ...slack.Block) bool {
	n := sizeBudget(totalJSONSize(blocks))
	if n > *r {
		return false
	}
	*r -= n
	return true
}

// listOverhead is what a list needs besides its lines, and noteOverhead what a line about what is left out needs.
const (
	listOverhead = 120
	noteOverhead = 260
)

// fitList makes lines a list that has room: each is shortened before any is left out, the last ones or the first ones.
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
