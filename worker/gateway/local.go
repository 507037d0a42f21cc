package gateway

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"stanch/sensors/proof"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/guards"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

// Local is the API on the local socket: the kernel says who speaks (SO_PEERCRED), the configuration says what that
// person may do. It is what the command line uses.
type Local struct {
	Reader    *Reader
	Authority *authority.Authority
	Config    *config.Config
	Switch    guards.Lever
	Hub       *Hub
	Auditor   Auditor // nil tells no story
	Log       *slog.Logger

	mu     sync.Mutex
	drills map[string]string // secret to name
	limits map[uint32]*limit
}

type peerKey struct{}

// Listen opens the socket. Only the user who runs Stanch, and the group of the file, may connect.
func Listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil { //nolint:noctx // local
		_ = c.Close()
		return nil, fmt.Errorf("another Stanch answers at %s", path)
	}
	_ = os.Remove(path)
	l, err := net.Listen("unix", path) //nolint:noctx // local
	if err != nil {
		return nil, fmt.Errorf("open the local socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, fmt.Errorf("open the local socket: %w", err)
	}
	return l, nil
}

// Server is the HTTP server for the local socket.
func (l *Local) Server() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/incidents", l.answer(func(r *http.Request) (any, error) { return l.Reader.Incidents(r.Context()) }))
	mux.HandleFunc("GET /v1/incidents/{id}", l.answer(func(r *http.Request) (any, error) { return l.Reader.Incident(r.Context(), r.PathValue("id")) }))
	mux.HandleFunc("GET /v1/pending", l.answer(func(r *http.Request) (any, error) { return l.Reader.AllPending(r.Context()) }))
	mux.HandleFunc("GET /v1/leases", l.answer(func(r *http.Request) (any, error) {
		return l.Reader.Leases(r.Context(), r.URL.Query().Get("all") != "")
	}))
	mux.HandleFunc("GET /v1/nodes", l.answer(func(*http.Request) (any, error) { return l.Hub.Nodes(), nil }))
	l.auditRoutes(mux)
	mux.HandleFunc("POST /v1/vote", l.answer(l.vote))
	mux.HandleFunc("POST /v1/release", l.answer(l.release))
	mux.HandleFunc("POST /v1/extend", l.answer(l.extend))
	mux.HandleFunc("POST /v1/stop", l.answer(l.stop))
	mux.HandleFunc("POST /v1/resume", l.answer(l.resume))
	mux.HandleFunc("POST /v1/drill", l.answer(l.drill))
	return &http.Server{
		Handler: http.MaxBytesHandler(mux, 1<<20), ReadHeaderTimeout: 5 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := peerUID(c)
			if err != nil {
				return ctx
			}
			return context.WithValue(ctx, peerKey{}, uid)
		},
	}
}

func peerUID(c net.Conn) (uint32, error) {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a local socket")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("peer credentials: %w", credErr)
	}
	return cred.Uid, nil
}

// problem is an error with its HTTP status.
type problem struct {
	code int
	text string
}

func (p *problem) Error() string { return p.text }

func deny(format string, args ...any) error {
	return &problem{http.StatusForbidden, fmt.Sprintf(format, args...)}
}

func missing(format string, args ...any) error {
	return &problem{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

func (l *Local) answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			code := http.StatusInternalServerError
			var p *problem
			if errors.As(err, &p) {
				code = p.code
			}
			w.WriteHeader(code)
			out = map[string]string{"error": err.Error()}
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			l.Log.Warn("answer on the local socket", "error", err)
		}
	}
}

// speaker is who speaks on a connection: a person, and how that was proved.
type speaker struct {
	config.Person
	proved string
	uid    uint32
	drill  string
}

// limit bounds what one user may ask: a token bucket of changes.
type limit struct {
	left float64
	at   time.Time
}

const (
	limitBurst   = 60
	limitPerSec  = 2.0
	maxReasonLen = 500
)

func (l *Local) who(r *http.Request) (speaker, error) {
	uid, ok := r.Context().Value(peerKey{}).(uint32)
	if !ok {
		return speaker{}, deny("the socket does not say who you are")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limits == nil {
		l.limits = map[uint32]*limit{}
	}
	b := l.limits[uid]
	if b == nil {
		b = &limit{left: limitBurst, at: time.Now()}
		l.limits[uid] = b
	}
	now := time.Now()
	b.left = min(limitBurst, b.left+now.Sub(b.at).Seconds()*limitPerSec)
	b.at = now
	if b.left < 1 {
		return speaker{}, &problem{http.StatusTooManyRequests, "too many requests; wait a moment"}
	}
	b.left--
	s := speaker{uid: uid, proved: fmt.Sprintf("uid %d on the local socket", uid)}
	if key := r.Header.Get("Stanch-Drill"); key != "" {
		for secret, name := range l.drills {
			if subtle.ConstantTimeCompare([]byte(secret), []byte(key)) == 1 {
				s.drill = name
				s.Person = config.Person{Name: "drill " + name, Groups: []string{config.DrillScope, "responders"}}
				s.proved = "the key of drill " + name
				return s, nil
			}
		}
	}
	person, known := l.Config.PersonByUID(uid)
	if !known && (uid == 0 || uid == uint32(os.Getuid())) && len(l.Config.People) == 0 {
		// Nobody is configured: who runs Stanch on this machine is its operator.
		name := strconv.Itoa(int(uid))
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		person, known = config.Person{Name: name, Groups: []string{"responders"}}, true
	}
	if !known && (uid == 0 || uid == uint32(os.Getuid())) {
		// Who runs Stanch may stop and release, and answers no question unless the configuration says so.
		person, known = config.Person{Name: fmt.Sprintf("uid %d", uid)}, true
	}
	if !known {
		return speaker{}, deny("user id %d is nobody in the configuration: add a person with `uid: %d` under `people`", uid, uid)
	}
	s.Person = person
	return s, nil
}

func decodeBody(r *http.Request, out any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(out); err != nil {
		return &problem{http.StatusBadRequest, "the request cannot be read: " + err.Error()}
	}
	return nil
}

// VoteRequest is an answer to a pending question.
type VoteRequest struct {
	Incident string `json:"incident"`
	Step     string `json:"step"` // the question's id or its step's
	Approve  bool   `json:"approve"`
	Reason   string `json:"reason,omitempty"`
}

// vote proves who answers and gives the signed vote to the playbook's run.
func (l *Local) vote(r *http.Request) (any, error) {
	s, err := l.who(r)
	if err != nil {
		return nil, err
	}
	var v VoteRequest
	if err := decodeBody(r, &v); err != nil {
		return nil, err
	}
	pending, err := l.Reader.Pending(r.Context(), v.Incident)
	if err != nil {
		return nil, err
	}
	var open *playbook.Pending
	for i := range pending {
		if pending[i].ID == v.Step || pending[i].Step == v.Step || v.Step == "" && len(pending) == 1 {
			open = &pending[i]
			break
		}
	}
	if open == nil {
		return nil, missing("incident %s has no open question %q; `stanch incidents %s` lists them", v.Incident, clip(v.Step), v.Incident)
	}
	if !mayAnswer(s.Person, *open) {
		l.Log.Warn("an unauthorised answer", "person", s.Name, "uid", s.uid, "incident", v.Incident, "step", open.ID)
		return nil, deny("%s may not answer this: it is for %s", s.Name, strings.Join(append(open.Approvers.Groups, open.Approvers.Users...), ", "))
	}
	vote := proof.Vote{
		Incident: open.Incident, Run: open.Run, Step: open.ID, PlanHash: open.Hash, Person: s.Name, Proved: s.proved, Approve: v.Approve,
		Reason: v.Reason[:min(len(v.Reason), maxReasonLen)], Groups: s.Groups, At: time.Now(),
	}
	if s.drill != "" {
		inc, err := l.Reader.Incident(r.Context(), v.Incident)
		if err != nil {
			return nil, err
		}
		if !inc.Drill {
			return nil, deny("a drill's key answers for drills only")
		}
	}
	signed, err := l.Authority.Sign(proof.PurposeVote, vote)
	if err != nil {
		return nil, fmt.Errorf("sign the vote: %w", err)
	}
	if err := l.Reader.Temporal.SignalWorkflow(r.Context(), open.Run, "", workflows.SignalVote, signed); err != nil {
		return nil, fmt.Errorf("give the vote to %s: %w", open.Run, err)
	}
	return open, nil
}

func mayAnswer(p config.Person, q playbook.Pending) bool {
	for _, u := range q.Approvers.Users {
		if u == p.Name {
			return true
		}
	}
	for _, g := range q.Approvers.Groups {
		for _, mine := range p.Groups {
			if g == mine {
				return true
			}
		}
	}
	return false
}

func (l *Local) stop(r *http.Request) (any, error) {
	s, err := l.who(r)
	if err != nil {
		return nil, err
	}
	l.Log.Warn("the kill switch was set", "by", s.Name)
	return map[string]bool{"stopped": true}, l.Switch.Stop(r.Context(), s.Name)
}

func (l *Local) resume(r *http.Request) (any, error) {
	s, err := l.who(r)
	if err != nil {
		return nil, err
	}
	l.Log.Warn("the kill switch was lifted", "by", s.Name)
	return map[string]bool{"stopped": false}, l.Switch.Resume(r.Context())
}

// drill makes an approver key that answers for drills only, for root and the user who runs Stanch.
func (l *Local) drill(r *http.Request) (any, error) {
	uid, ok := r.Context().Value(peerKey{}).(uint32)
	if !ok || uid != 0 && uid != uint32(os.Getuid()) {
		return nil, deny("only root and the user who runs Stanch may run a drill")
	}
	var q struct {
		Name string `json:"name"`
	}
	if err := decodeBody(r, &q); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drills == nil || len(l.drills) > 100 {
		l.drills = map[string]string{}
	}
	secret := uuid.NewString()
	l.drills[secret] = q.Name
	return map[string]string{"key": secret}, nil
}
