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
	"stanch/sensors/truncate"
)

// SanitizeLine returns an attacker-controlled string as one printable line of at most the given number of characters.
func SanitizeLine(s string, most int) string {
	return truncate.Text(redact.Text(redact.EscapeControlChars(strings.Join(strings.Fields(s), " "))), most)
}

// SanitizeText returns an attacker-controlled string as printable text; it keeps line breaks.
func SanitizeText(s string, most int) string {
	s = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = redact.EscapeControlChars(l)
	}
	return truncate.Text(strings.TrimRight(redact.Text(strings.Join(lines, "\n")), "\n"), most)
}

// IdempotencyKey returns an id of a step's message, so that a receiver can drop repetitions. It is the same for every
// attempt of one activity, and different for any other. at is when the step began, whichever attempt this is.
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
		sum := sha256.Sum256([]byte(p)) // fixed length, so that different lists of parts never collide
		h.Write(sum[:])
	}
	return "stanch_" + hex.EncodeToString(h.Sum(nil)[:16]), at.UTC()
}
