// Package httpserver contains what Stanch's HTTP servers share: errors with a status, the addresses of peers, and time
// limits. It knows no routes and authenticates nobody.
package httpserver

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Error is an error with its HTTP status. Its message is for the caller.
type Error struct {
	Status  int
	Message string
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Errorf returns an error with a status.
func Errorf(status int, format string, args ...any) error {
	return &Error{status, fmt.Sprintf(format, args...)}
}

// BadRequest returns an error with the status 400.
func BadRequest(format string, args ...any) error {
	return Errorf(http.StatusBadRequest, format, args...)
}

// Forbidden returns an error with the status 403.
func Forbidden(format string, args ...any) error {
	return Errorf(http.StatusForbidden, format, args...)
}

// NotFound returns an error with the status 404.
func NotFound(format string, args ...any) error { return Errorf(http.StatusNotFound, format, args...) }

// Conflict returns an error with the status 409.
func Conflict(format string, args ...any) error { return Errorf(http.StatusConflict, format, args...) }

// TooManyRequests returns an error with the status 429.
func TooManyRequests(format string, args ...any) error {
	return Errorf(http.StatusTooManyRequests, format, args...)
}

// StatusOf returns the status of an error: 500 for those of other types.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return http.StatusInternalServerError
}

// PeerHost returns the host of a request's peer.
func PeerHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// New returns a server with the time limits of an API for people, whose requests may wait for a workflow.
func New(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: 5 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
}
