package engine

import (
	"context"
	"log/slog"

	"go.temporal.io/server/common/log/tag"
)

// quietLogger passes on Temporal's errors and, at debug, its warnings: the rest is noise to who runs Stanch.
type quietLogger struct{ log *slog.Logger }

func (l quietLogger) say(level slog.Level, msg string, tags []tag.Tag) {
	if l.log == nil || !l.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]any, 0, 2*len(tags))
	for _, t := range tags {
		attrs = append(attrs, t.Key(), t.Value())
	}
	l.log.Log(context.Background(), level, "temporal: "+msg, attrs...)
}

func (quietLogger) Debug(string, ...tag.Tag)             {}
func (quietLogger) Info(string, ...tag.Tag)              {}
func (l quietLogger) Warn(msg string, tags ...tag.Tag)   { l.say(slog.LevelDebug, msg, tags) }
func (l quietLogger) Error(msg string, tags ...tag.Tag)  { l.say(slog.LevelDebug, msg, tags) }
func (l quietLogger) DPanic(msg string, tags ...tag.Tag) { l.say(slog.LevelError, msg, tags) }
func (l quietLogger) Panic(msg string, tags ...tag.Tag) {
	l.say(slog.LevelError, msg, tags)
	panic(msg)
}

func (l quietLogger) Fatal(msg string, tags ...tag.Tag) {
	l.say(slog.LevelError, msg, tags)
	panic(msg)
}

// nopLogger silences the client that only asks whether the server is up.
type nopLogger struct{}

func (nopLogger) Debug(string, ...any) {}
func (nopLogger) Info(string, ...any)  {}
func (nopLogger) Warn(string, ...any)  {}
func (nopLogger) Error(string, ...any) {}
