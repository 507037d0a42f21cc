package main

import (
	"log/slog"
)

// temporalLogger logs the messages of Temporal's SDK one level lower: its warnings matter only when debugging Stanch.
type temporalLogger struct{ log *slog.Logger }

// Debug discards the message.
func (temporalLogger) Debug(string, ...any) {}

// Info discards the message.
func (temporalLogger) Info(string, ...any) {}

// Warn logs at the debug level.
func (l temporalLogger) Warn(msg string, keyvals ...any) {
	l.log.Debug("temporal sdk: "+msg, keyvals...)
}

// Error logs at the warning level.
func (l temporalLogger) Error(msg string, keyvals ...any) {
	l.log.Warn("temporal sdk: "+msg, keyvals...)
}
