package slack

import (
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Slack's limits. The limit of all blocks together is undocumented: Slack refuses messages from about 13,000 characters
// on, so the fake accepts less than that.
const (
	maxBlocks      = 50
	maxHeaderChars = 150
	maxValueChars  = 2000
	maxTotalChars  = 12_000
)

// validateBlocks returns the error with which Slack refuses the blocks; nil if it accepts them.
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

// blocksError returns why Slack would refuse the blocks; "" if it would accept them.
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

// hasEmptyText reports whether a text, section or list is empty.
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
