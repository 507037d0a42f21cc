package embeddedtemporal

import (
	"context"
	"log/slog"

	"go.temporal.io/server/common/log/tag"
)

// errorOnlyLogger logs Temporal's errors and, at debug level, its warnings. Its other messages do not help users of
// Stanch.
type errorOnlyLogger struct{ log *slog.Logger }

func (l errorOnlyLogger) logAt(level slog.Level, msg string, tags []tag.Tag) {
	if l.log == nil || !l.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]any, 0, 2*len(tags))
	for _, t := range tags {
		attrs = append(attrs, t.Key(), t.Value())
	}
	l.log.Log(context.Background(), level, "temporal: "+msg, attrs...)
}

func (errorOnlyLogger) Debug(string, ...tag.Tag)             {}
func (errorOnlyLogger) Info(string, ...tag.Tag)              {}
func (l errorOnlyLogger) Warn(msg string, tags ...tag.Tag)   { l.logAt(slog.LevelDebug, msg, tags) }
func (l errorOnlyLogger) Error(msg string, tags ...tag.Tag)  { l.logAt(slog.LevelDebug, msg, tags) }
func (l errorOnlyLogger) DPanic(msg string, tags ...tag.Tag) { l.logAt(slog.LevelError, msg, tags) }
func (l errorOnlyLogger) Panic(msg string, tags ...tag.Tag) {
	l.logAt(slog.LevelError, msg, tags)
	panic(msg)
}

func (l errorOnlyLogger) Fatal(msg string, tags ...tag.Tag) {
	l.logAt(slog.LevelError, msg, tags)
	panic(msg)
}

// nopLogger discards the messages of the client that checks whether the server is up.
type nopLogger struct{}

func (nopLogger) Debug(string, ...any) {}
func (nopLogger) Info(string, ...any)  {}
func (nopLogger) Warn(string, ...any)  {}
func (nopLogger) Error(string, ...any) {}
