package httpclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"

	"stanch/activities"
	"stanch/sensors/redact"
)

// SanitizeLine makes a string that may be an attacker's fit to be shown in one line of at most so many characters.
func SanitizeLine(s string, most int) string {
	return truncate(redact.Text(redact.EscapeControlChars(strings.Join(strings.Fields(s), " "))), most)
}

// SanitizeText makes a string that may be an attacker's fit to be shown; its lines stay lines.
func SanitizeText(s string, most int) string {
	s = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = redact.EscapeControlChars(l)
	}
	return truncate(strings.TrimRight(redact.Text(strings.Join(lines, "\n")), "\n"), most)
}

func truncate(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// IdempotencyKey names what a step sends, so that a receiver can drop repetitions: the same for every attempt of one activity, and
// no other's. at is when the step began, whichever attempt this is.
func IdempotencyKey(ctx context.Context, r activities.Request, to string) (id string, at time.Time) {
	parts := []string{r.Action, r.IncidentRef.ID, to}
	if activity.IsActivity(ctx) {
		info := activity.GetInfo(ctx)
		parts, at = append(parts, info.WorkflowExecution.ID, info.ActivityID), info.ScheduledTime
	} else {
		parts, at = append(parts, string(r.Params)), time.Now()
	}
	h := sha256.New()
	for _, p := range parts {
		sum := sha256.Sum256([]byte(p)) // so that no two lists of parts are written alike
		h.Write(sum[:])
	}
	return "stanch_" + hex.EncodeToString(h.Sum(nil)[:16]), at.UTC()
}
