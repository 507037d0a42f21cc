package guards

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/sensors/attestation"
)

// Lever is a kill switch that a person can set and lift.
type Lever interface {
	Switch
	// State is what the switch says now: whether new containments are paused, since when, by whom, and why.
	State(ctx context.Context) (attestation.KillSwitchState, error)
	// Stop sets the switch, Resume lifts it.
	Stop(ctx context.Context, by, reason string) error
	Resume(ctx context.Context, by string) error
}

var (
	_ Lever = (*FileSwitch)(nil)
	_ Lever = (*SharedSwitch)(nil)
)

// SwitchName is the ConfigMap of the shared kill switch, in Stanch's own namespace. It is there from the start, so that
// the right to change this one object suffices; one that was deleted counts as stopped.
const SwitchName = "stanch-kill-switch"

const (
	// switchFresh is how long a reading serves: so late may another replica learn of a stop.
	switchFresh = time.Second
	// switchGrace is how long the last reading serves while the API server is away. Nobody can stop through it
	// meanwhile, and the node's lock does not need it: a cluster in trouble must not switch the response off at once. An
	// answer that the switch is gone or may not be read is no outage and counts as stopped at once.
	switchGrace = 5 * time.Minute
)

// SharedSwitch is the kill switch of all replicas: a ConfigMap whose key "state" holds a signed state. In an emergency
// anything under its key "by" stops too: `kubectl patch` needs no key for the safe direction.
type SharedSwitch struct {
	Client    kubernetes.Interface
	Namespace string
	Authority activities.Authority
	Now       func() time.Time // nil means time.Now

	mu     sync.Mutex
	at     time.Time // of the last reading
	last   attestation.KillSwitchState
	sealed sealed
}

func (s *SharedSwitch) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// State reads the switch. One that cannot be read counts as stopped.
func (s *SharedSwitch) State(ctx context.Context) (attestation.KillSwitchState, error) {
	stopped, _, err := s.Stopped(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.last
	state.Paused = stopped
	return state, err
}

// Stopped reads the switch.
func (s *SharedSwitch) Stopped(ctx context.Context) (bool, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.at) >= switchFresh {
		if err := s.read(ctx); err != nil && (s.at.IsZero() || s.now().Sub(s.at) >= switchGrace || !kube.IsUnavailable(err) && !apierrors.IsTooManyRequests(err)) {
			return true, "", fmt.Errorf("read the kill switch %s/%s: %w", s.Namespace, SwitchName, err)
		}
	}
	return s.last.Paused, said(s.last), nil
}

func (s *SharedSwitch) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := s.Client.CoreV1().ConfigMaps(s.Namespace).Get(ctx, SwitchName, metav1.GetOptions{})
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was read
	}
	s.last, s.at = s.sealed.open(m.Data["state"], s.Authority.Keys()), s.now()
	if by := m.Data["by"]; by != "" {
		s.last = attestation.KillSwitchState{Paused: true, ChangedBy: "by " + by + " in the ConfigMap"}
	}
	return nil
}

// Stop sets the switch for every replica.
func (s *SharedSwitch) Stop(ctx context.Context, by, reason string) error {
	return s.write(ctx, "set", true, by, reason)
}

// Resume lifts it for every replica.
func (s *SharedSwitch) Resume(ctx context.Context, by string) error {
	return s.write(ctx, "lift", false, by, "")
}

func (s *SharedSwitch) write(ctx context.Context, what string, stopped bool, by, reason string) error {
	fail := func(err error) error {
		return fmt.Errorf("%s the kill switch %s/%s: %w", what, s.Namespace, SwitchName, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.read(ctx); err != nil { // what was seen last must not be newer than what is written now
		return fail(err)
	}
	text, err := s.sealed.next(s.Authority, stopped, by, reason, s.now())
	if err != nil {
		return fail(err)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]any{"state": text, "by": nil}})
	if err != nil {
		return fail(err)
	}
	if _, err := s.Client.CoreV1().ConfigMaps(s.Namespace).Patch(ctx, SwitchName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stanch"}); err != nil {
		return fail(err)
	}
	s.at = time.Time{} // what was read before is no longer so
	return s.read(ctx)
}
