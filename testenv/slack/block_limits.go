package slack

import (
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Slack's own bounds. That of all blocks together is not documented: from some 13,000 characters on messages were
// refused, so less than that is taken here.
const (
	maxBlocks      = 50
	maxHeaderChars = 150
	maxValueChars  = 2000
	maxTotalChars  = 12_000
)

// validateBlocks is how Slack refuses blocks; nil if it takes them.
func (s *FakeSlack) validateBlocks(text string) jsonObject {
	if text == "" {
		return nil
	}
	if n := utf8.RuneCountInString(text); n > s.maxBlockChars {
		return errorResponse("msg_blocks_too_long")
	}
	if why := blocksError(text); why != "" {
		return jsonObject{"ok": false, "error": "invalid_blocks", "response_metadata": jsonObject{"messages": []string{why}}}
	}
	return nil
}

// blocksError says what Slack would not take.
func blocksError(text string) string {
	var blocks []struct {
		Type    string `json:"type"`
		BlockID string `json:"block_id"`
		Text    struct {
			Text string `json:"text"`
		} `json:"text"`
		Elements []struct {
			Type     string `json:"type"`
			ActionID string `json:"action_id"`
			Value    string `json:"value"`
		} `json:"elements"`
	}
	if err := json.Unmarshal([]byte(text), &blocks); err != nil {
		return err.Error()
	}
	var all any
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return err.Error()
	}
	if hasEmptyText(all) {
		return "must be more than 0 characters"
	}
	if len(blocks) > maxBlocks {
		return fmt.Sprintf("%d blocks", len(blocks))
	}
	ids := map[string]bool{}
	for _, b := range blocks {
		if b.BlockID != "" && ids[b.BlockID] {
			return "block_id twice: " + b.BlockID
		}
		ids[b.BlockID] = true
		if len(b.BlockID) > 255 || b.Type == "header" && len([]rune(b.Text.Text)) > maxHeaderChars {
			return "too long: " + b.BlockID + b.Text.Text
		}
		actions := map[string]bool{}
		for _, e := range b.Elements {
			if b.Type == "actions" && (e.ActionID == "" || actions[e.ActionID] || len(e.Value) > maxValueChars) {
				return "bad button " + e.ActionID
			}
			actions[e.ActionID] = true
		}
	}
	return ""
}

// hasEmptyText tells whether a text is empty, or a section or list has nothing in it.
func hasEmptyText(v any) bool {
	switch v := v.(type) {
	case []any:
		if slices.ContainsFunc(v, hasEmptyText) {
			return true
		}
	case map[string]any:
		switch v["type"] {
		case "text", "plain_text", "mrkdwn":
			if v["text"] == "" || v["text"] == nil {
				return true
			}
		case "rich_text", "rich_text_section", "rich_text_list", "actions", "context":
			if elements, _ := v["elements"].([]any); len(elements) == 0 {
				return true
			}
		}
		for _, one := range v {
			if hasEmptyText(one) {
				return true
			}
		}
	}
	return false
}
