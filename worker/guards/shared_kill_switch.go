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

// KillSwitch is a kill switch that people can set and clear.
type KillSwitch interface {
	KillSwitchReader
	// State returns whether new containments are paused, since when, by whom, and why.
	State(ctx context.Context) (attestation.KillSwitchState, error)
	// Pause pauses new containments, Resume resumes them.
	Pause(ctx context.Context, by, reason string) error
	Resume(ctx context.Context, by string) error
}

var (
	_ KillSwitch = (*FileKillSwitch)(nil)
	_ KillSwitch = (*SharedKillSwitch)(nil)
)

// KillSwitchConfigMap is the ConfigMap of the shared kill switch, in Stanch's own namespace. It is part of the
// installation, so that Stanch needs permission to change this one object only. If it is deleted, new containments are
// paused.
const KillSwitchConfigMap = "stanch-kill-switch"

const (
	// switchCacheTTL is how long a state is cached: another replica may learn of a pause this much later.
	switchCacheTTL = time.Second
	// switchStaleMaxAge is how long the last state is used while the API server is unavailable. Nobody can pause by it
	// meanwhile, and the node's lock does not need it: an outage of the cluster must not disable the response at once.
	// A response that the object is missing or forbidden is no outage and pauses at once.
	switchStaleMaxAge = 5 * time.Minute
)

// SharedKillSwitch is the kill switch of all replicas: a ConfigMap whose key "state" contains a signed state. In an
// emergency, any value of its key "by" pauses too: pausing with `kubectl patch` needs no signing key. It is safe for
// concurrent use.
type SharedKillSwitch struct {
	KubeClient kubernetes.Interface
	Namespace  string
	Authority  activities.Authority
	Now        func() time.Time // nil means time.Now

	mu          sync.Mutex
	readAt      time.Time // time of the last read
	lastState   attestation.KillSwitchState
	signedState signedState
}

func (s *SharedKillSwitch) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// State reads the state. An unreadable or unsigned state counts as paused.
func (s *SharedKillSwitch) State(ctx context.Context) (attestation.KillSwitchState, error) {
	stopped, _, err := s.IsPaused(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.lastState
	state.Paused = stopped
	return state, err
}

// IsPaused reads the state, or returns the cached one.
func (s *SharedKillSwitch) IsPaused(ctx context.Context) (bool, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.readAt) >= switchCacheTTL {
		if err := s.refreshState(ctx); err != nil && (s.readAt.IsZero() || s.now().Sub(s.readAt) >= switchStaleMaxAge ||
			!kube.IsUnavailable(err) && !apierrors.IsTooManyRequests(err)) {
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
		return err //nolint:wrapcheck // the caller adds context
	}
	s.lastState, s.readAt = s.signedState.readState(m.Data["state"], s.Authority.Keyring()), s.now()
	if by := m.Data["by"]; by != "" {
		s.lastState = attestation.KillSwitchState{Paused: true, ChangedBy: "by " + by + " in the ConfigMap"}
	}
	return nil
}

// Pause pauses new containments on every replica.
func (s *SharedKillSwitch) Pause(ctx context.Context, by, reason string) error {
	return s.writeState(ctx, "set", true, by, reason)
}

// Resume resumes new containments on every replica.
func (s *SharedKillSwitch) Resume(ctx context.Context, by string) error {
	return s.writeState(ctx, "clear", false, by, "")
}

func (s *SharedKillSwitch) writeState(ctx context.Context, what string, stopped bool, by, reason string) error {
	fail := func(err error) error {
		return fmt.Errorf("%s the kill switch %s/%s: %w", what, s.Namespace, KillSwitchConfigMap, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refreshState(ctx); err != nil { // a new state must be newer than the last one
		return fail(err)
	}
	text, sequence, err := s.signedState.signState(s.Authority, stopped, by, reason, s.now())
	if err != nil {
		return fail(err)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]any{"state": text, "by": nil}})
	if err != nil {
		return fail(err)
	}
	if _, err := s.KubeClient.CoreV1().ConfigMaps(s.Namespace).Patch(ctx, KillSwitchConfigMap, types.MergePatchType, patch,
		metav1.PatchOptions{FieldManager: "stanch"}); err != nil {
		return fail(err)
	}
	s.signedState.rememberStored(sequence)
	s.readAt = time.Time{} // the cached state is outdated
	return s.refreshState(ctx)
}
