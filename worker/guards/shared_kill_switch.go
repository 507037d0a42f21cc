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

// KillSwitch is a kill switch that a person can set and lift.
type KillSwitch interface {
	KillSwitchReader
	// State is what the switch says now: whether new containments are paused, since when, by whom, and why.
	State(ctx context.Context) (attestation.KillSwitchState, error)
	// Pause sets the switch, Resume lifts it.
	Pause(ctx context.Context, by, reason string) error
	Resume(ctx context.Context, by string) error
}

var (
	_ KillSwitch = (*FileKillSwitch)(nil)
	_ KillSwitch = (*SharedKillSwitch)(nil)
)

// KillSwitchConfigMap is the ConfigMap of the shared kill switch, in Stanch's own namespace. It is there from the start, so that
// the right to change this one object suffices; one that was deleted counts as stopped.
const KillSwitchConfigMap = "stanch-kill-switch"

const (
	// switchCacheTTL is how long a reading serves: so late may another replica learn of a stop.
	switchCacheTTL = time.Second
	// switchStaleMaxAge is how long the last reading serves while the API server is away. Nobody can stop through it
	// meanwhile, and the node's lock does not need it: a cluster in trouble must not switch the response off at once. An
	// answer that the switch is gone or may not be read is no outage and counts as stopped at once.
	switchStaleMaxAge = 5 * time.Minute
)

// SharedKillSwitch is the kill switch of all replicas: a ConfigMap whose key "state" holds a signed state. In an emergency
// anything under its key "by" stops too: `kubectl patch` needs no key for the safe direction.
type SharedKillSwitch struct {
	KubeClient kubernetes.Interface
	Namespace  string
	Authority  activities.Authority
	Now        func() time.Time // nil means time.Now

	mu          sync.Mutex
	readAt      time.Time // of the last reading
	lastState   attestation.KillSwitchState
	signedState signedState
}

func (s *SharedKillSwitch) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// State reads the switch. One that cannot be read counts as stopped.
func (s *SharedKillSwitch) State(ctx context.Context) (attestation.KillSwitchState, error) {
	stopped, _, err := s.IsPaused(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.lastState
	state.Paused = stopped
	return state, err
}

// IsPaused reads the switch.
func (s *SharedKillSwitch) IsPaused(ctx context.Context) (bool, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.readAt) >= switchCacheTTL {
		if err := s.refreshState(ctx); err != nil && (s.readAt.IsZero() || s.now().Sub(s.readAt) >= switchStaleMaxAge || !kube.IsUnavailable(err) && !apierrors.IsTooManyRequests(err)) {
			return true, "", fmt.Errorf("read the kill switch %s/%s: %w", s.Namespace, KillSwitchConfigMap, err)
		}
	}
	return s.lastState.Paused, describePausedBy(s.lastState), nil
}

func (s *SharedKillSwitch) refreshState(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := s.KubeClient.CoreV1().ConfigMaps(s.Namespace).Get(ctx, KillSwitchConfigMap, metav1.GetOptions{})
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was read
	}
	s.lastState, s.readAt = s.signedState.readState(m.Data["state"], s.Authority.Keyring()), s.now()
	if by := m.Data["by"]; by != "" {
		s.lastState = attestation.KillSwitchState{Paused: true, ChangedBy: "by " + by + " in the ConfigMap"}
	}
	return nil
}

// Pause sets the switch for every replica.
func (s *SharedKillSwitch) Pause(ctx context.Context, by, reason string) error {
	return s.writeState(ctx, "set", true, by, reason)
}

// Resume lifts it for every replica.
func (s *SharedKillSwitch) Resume(ctx context.Context, by string) error {
	return s.writeState(ctx, "lift", false, by, "")
}

func (s *SharedKillSwitch) writeState(ctx context.Context, what string, stopped bool, by, reason string) error {
	fail := func(err error) error {
		return fmt.Errorf("%s the kill switch %s/%s: %w", what, s.Namespace, KillSwitchConfigMap, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refreshState(ctx); err != nil { // what was seen last must not be newer than what is written now
		return fail(err)
	}
	text, err := s.signedState.signState(s.Authority, stopped, by, reason, s.now())
	if err != nil {
		return fail(err)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]any{"state": text, "by": nil}})
	if err != nil {
		return fail(err)
	}
	if _, err := s.KubeClient.CoreV1().ConfigMaps(s.Namespace).Patch(ctx, KillSwitchConfigMap, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stanch"}); err != nil {
		return fail(err)
	}
	s.readAt = time.Time{} // what was read before is no longer so
	return s.refreshState(ctx)
}
