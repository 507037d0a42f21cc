package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/drills"
	"stanch/worker/httpserver"
)

// Local is the API on the local Unix socket. The kernel identifies the caller (SO_PEERCRED), and the configuration
// says what that person may do.
type Local struct {
	API
	// DrillRegistry issues the keys of drills; nil disables drills.
	DrillRegistry *drills.Registry
}

// peerUIDContextKey is the context key of the uid of a connection's peer.
type peerUIDContextKey struct{}

// HTTPServer returns the HTTP server for the local socket.
func (l *Local) HTTPServer() *http.Server {
	l.Identify = l.identifyPeer
	if l.DrillRegistry != nil {
		l.IssueDrillKey, l.RegisterDrillTargets = l.issueDrillKey, l.registerDrillTargets
	}
	return &http.Server{
		Handler: l.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: 5 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := peerUID(c)
			if err != nil {
				return ctx
			}
			return context.WithValue(ctx, peerUIDContextKey{}, uid)
		},
	}
}

// peerUID returns the uid of the process at the other end of a Unix socket.
func peerUID(c net.Conn) (uint32, error) {
	if wrapped, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = wrapped.NetConn()
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("read peer credentials: not a Unix socket")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET,
			unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("read peer credentials: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("read peer credentials: %w", credErr)
	}
	return cred.Uid, nil
}

// isOperator reports whether uid is root or the user who runs Stanch.
func isOperator(uid uint32) bool { return uid == 0 || int(uid) == os.Getuid() }

func (l *Local) identifyPeer(r *http.Request) (decisions.Principal, error) {
	uid, ok := r.Context().Value(peerUIDContextKey{}).(uint32)
	if !ok {
		return decisions.Principal{}, httpserver.Forbidden("the socket has no peer credentials")
	}
	s := decisions.Principal{
		AuthenticatedBy: fmt.Sprintf("uid %d on the local socket", uid),
		RateLimitKey: fmt.Sprintf("uid:%d",
			uid), IsOperator: isOperator(uid),
	}
	if key := r.Header.Get("Stanch-Drill"); key != "" {
		if name, ok := l.DrillRegistry.NameForKey(key); ok {
			s.DrillName, s.AuthenticatedBy = name, "the key of drill "+name
			s.Person = config.Person{Name: "drill " + name, Groups: []string{config.DrillScope, "responders"}}
			return s, nil
		}
	}
	cfg, err := l.Roster.Current()
	if err != nil {
		if !s.IsOperator {
			return decisions.Principal{}, httpserver.Forbidden("%v", err)
		}
		// The operator can pause and release also while the configuration is invalid.
		s.Person = config.Person{Name: fmt.Sprintf("uid %d", uid)}
		return s, nil
	}
	person, known := cfg.PersonByUID(uid)
	switch {
	case known:
	case s.IsOperator && len(cfg.People) == 0:
		// Without configured people, the operator is also the only responder.
		name := strconv.Itoa(int(uid))
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		person = config.Person{Name: name, Groups: []string{"responders"}}
	case s.IsOperator:
		// The operator may pause and release, and may approve only if the configuration says so.
		person = config.Person{Name: fmt.Sprintf("uid %d", uid)}
	default:
		return decisions.Principal{},
			httpserver.Forbidden("unknown user id %d; add a person with `uid: %d` under `people` in the "+
				"configuration", uid, uid)
	}
	s.Person = person
	return s, nil
}

// issueDrillKey issues an approver key that is valid for drills only. Only the operator may get one.
func (l *Local) issueDrillKey(r *http.Request) (any, error) {
	uid, ok := r.Context().Value(peerUIDContextKey{}).(uint32)
	if !ok || !isOperator(uid) {
		return nil, httpserver.Forbidden("only root and the user who runs Stanch are allowed to run a drill")
	}
	var q struct {
		Name string `json:"name"`
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, httpserver.BadRequest("parse the request: %v", err)
	}
	secret, err := l.DrillRegistry.IssueKey(q.Name)
	if err != nil {
		return nil, err
	}
	return drills.Key{Key: secret, Phase: l.DrillRegistry.CurrentPhase()}, nil
}

// registerDrillTargets registers the targets that a drill created. The caller must be the operator and have the
// drill's key.
func (l *Local) registerDrillTargets(r *http.Request) (any, error) {
	uid, ok := r.Context().Value(peerUIDContextKey{}).(uint32)
	if !ok || !isOperator(uid) {
		return nil, httpserver.Forbidden("only root and the user who runs Stanch are allowed to run a drill")
	}
	var q drills.Targets
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&q); err != nil {
		return nil, httpserver.BadRequest("parse the request: %v", err)
	}
	return l.DrillRegistry.Register(r.Context(), r.Header.Get("Stanch-Drill"), q)
}
