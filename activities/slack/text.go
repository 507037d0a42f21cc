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
	maxText   = 600
	maxHeader = 140
	maxFoot   = 600
)

// longID matches ids and hashes, of which nobody reads more than the beginning.
var longID = regexp.MustCompile(`[0-9a-f]{40,}`)

// weight is how much a character makes a message longer: what JSON escapes weighs more than what one sees.
func weight(r rune) int {
	switch r {
	case '<', '>', '&':
		return len(`\u003c`)
	case '"', '\\', '\t':
		return 2
	}
	return utf8.RuneLen(r)
}

func weightOf(s string) (n int) {
	for _, r := range s {
		n += weight(r)
	}
	return n
}

// cut shortens a text to a weight.
func cut(s string, n int) string {
	left := n
	for i, r := range s {
		if left -= weight(r); left < 0 {
			return s[:i] + "…"
		}
	}
	return s
}

// text is literal: control characters, invisible ones and those that turn the direction are shown as dots.
func text(s string, n int) string {
	return cut(longID.ReplaceAllStringFunc(redact.EscapeControlChars(s), func(id string) string { return id[:12] + "…" }), n)
}

func words(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(text(s, maxText), nil)
}

func bold(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(text(s, maxText), &slack.RichTextSectionTextStyle{Bold: true})
}

// section is one block of literal text.
func section(s string) slack.Block {
	if s == "" {
		s = "(no text)"
	}
	return slack.NewRichTextBlock("", slack.NewRichTextSection(words(s)))
}

// line is one line of a list: what it is about, in words, and what is somebody else's word for word.
type line struct {
	label, words, code string
	// exact: it is shown as it is or not at all.
	exact bool
}

// show leaves out what is empty, since Slack refuses empty texts.
func (l line) show(n int) *slack.RichTextSection {
	shown := func(s string) string {
		if l.exact {
			return redact.EscapeControlChars(s)
		}
		return text(s, n)
	}
	elements := []slack.RichTextSectionElement{bold(text(l.label, 80) + "  ")}
	if l.words != "" {
		elements = append(elements, slack.NewRichTextSectionTextElement(shown(l.words), nil))
	}
	if l.code != "" {
		elements = append(elements, slack.NewRichTextSectionTextElement(shown(l.code), &slack.RichTextSectionTextStyle{Code: true}))
	}
	return slack.NewRichTextSection(elements...)
}

// bullets are lines, each cut to a weight.
func bullets(lines []line, n int) slack.RichTextElement {
	elements := make([]slack.RichTextElement, len(lines))
	for i, l := range lines {
		elements[i] = l.show(n)
	}
	return slack.NewRichTextList(slack.RTEListBullet, 0, elements...)
}

// safe leaves letters, digits and a few signs of a text that Slack reads as markup.
func safe(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-./:, ", r) {
			return r
		}
		return '.'
	}, text(s, 160))
}

// room is how many characters of JSON a message may still have.
type room int

// size is how long something is in a message.
func size(v any) int {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0 // the library's own types; one that cannot be written fails when it is sent
	}
	return len(raw) + 1
}

func sizes(blocks []slack.Block) (n int) {
	for _, b := range blocks {
		n += size(b)
	}
	return n
}

// take takes blocks in, if there is room for them.
func (r *room) take(blocks ...slack.Block) bool {
	n := room(sizes(blocks))
	if n > *r {
		return false
	}
	*r -= n
	return true
}

// listRoom is what a list needs besides its lines, and noteRoom what a line about what is left out needs.
const (
	listRoom = 120
	noteRoom = 260
)

// fit makes lines a list that has room: each is shortened before any is left out, the last ones or the first ones.
func (r *room) fit(lines []line, keepLast bool, note string) []slack.RichTextElement {
	const least = 160
	for _, n := range []int{maxText, least} {
		if all := bullets(lines, n); len(lines) > 0 && room(size(all)+listRoom) <= *r {
			*r -= room(size(all) + listRoom)
			return []slack.RichTextElement{all}
		}
	}
	left, kept := *r-listRoom-noteRoom, 0
	for kept < len(lines) {
		l := lines[kept]
		if keepLast {
			l = lines[len(lines)-1-kept]
		}
		n := room(size(l.show(least)))
		if n > left {
			break
		}
		left -= n
		kept++
	}
	if kept == 0 {
		return nil
	}
	rest := line{label: "More", words: note}
	if keepLast {
		lines = append([]line{rest}, lines[len(lines)-kept:]...)
	} else {
		lines = append(first(lines, kept), rest)
	}
	*r = left
	return []slack.RichTextElement{bullets(lines, least)}
}

func hashOf(blocks []slack.Block) string {
	raw, err := json.Marshal(blocks)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

func first[T any](all []T, n int) []T { return all[:min(len(all), n):min(len(all), n)] }
