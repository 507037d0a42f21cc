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
	maxBlocks = 50
	maxHeader = 150
	maxValue  = 2000
	maxTotal  = 12_000
)

// badBlocks is how Slack refuses blocks; nil if it takes them.
func (s *Slack) badBlocks(text string) object {
	if text == "" {
		return nil
	}
	if n := utf8.RuneCountInString(text); n > s.longest {
		return refuse("msg_blocks_too_long")
	}
	if why := wrong(text); why != "" {
		return object{"ok": false, "error": "invalid_blocks", "response_metadata": object{"messages": []string{why}}}
	}
	return nil
}

// wrong says what Slack would not take.
func wrong(text string) string {
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
	if hasEmpty(all) {
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
		if len(b.BlockID) > 255 || b.Type == "header" && len([]rune(b.Text.Text)) > maxHeader {
			return "too long: " + b.BlockID + b.Text.Text
		}
		actions := map[string]bool{}
		for _, e := range b.Elements {
			if b.Type == "actions" && (e.ActionID == "" || actions[e.ActionID] || len(e.Value) > maxValue) {
				return "bad button " + e.ActionID
			}
			actions[e.ActionID] = true
		}
	}
	return ""
}

// hasEmpty tells whether a text is empty, or a section or list has nothing in it.
func hasEmpty(v any) bool {
	switch v := v.(type) {
	case []any:
		if slices.ContainsFunc(v, hasEmpty) {
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
			if hasEmpty(one) {
				return true
			}
		}
	}
	return false
}
