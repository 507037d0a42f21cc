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
)

// Lever is a kill switch that a person can set and lift.
type Lever interface {
	Switch
	// Stop sets the switch, Resume lifts it.
	Stop(ctx context.Context, by string) error
	Resume(ctx context.Context) error
}

var (
	_ Lever = FileSwitch{}
	_ Lever = (*SharedSwitch)(nil)
)

// SwitchName is the ConfigMap of the shared kill switch, in Stanch's own namespace. It is there from the start, so that
// the right to change this one object suffices; one that was deleted counts as stopped.
const SwitchName = "stanch-kill-switch"

const (
	// switchFresh is how long a reading serves: so late may another replica learn of a stop.
	switchFresh = time.Second
	// switchGrace is how long the last reading serves while the API server is away. Nobody can stop through it
	// meanwhile, and the node's lock does not need it: a cluster in trouble must not switch the response off at once.
	switchGrace = 5 * time.Minute
)

// SharedSwitch is the kill switch of all replicas: a ConfigMap whose key "by" says who stopped.
type SharedSwitch struct {
	Client    kubernetes.Interface
	Namespace string
	Now       func() time.Time // nil means time.Now

	mu   sync.Mutex
	at   time.Time // of the last reading
	last stopped   // By is empty unless stopped
}

func (s *SharedSwitch) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// Stopped reads the switch.
func (s *SharedSwitch) Stopped(ctx context.Context) (bool, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.at) >= switchFresh {
		if err := s.read(ctx); err != nil && (s.at.IsZero() || s.now().Sub(s.at) >= switchGrace || isGone(err)) {
			return true, "", fmt.Errorf("read the kill switch %s/%s: %w", s.Namespace, SwitchName, err)
		}
	}
	if s.last.By == "" {
		return false, "", nil
	}
	return true, fmt.Sprintf("by %s at %s", s.last.By, s.last.At.Format(time.RFC3339)), nil
}

func (s *SharedSwitch) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := s.Client.CoreV1().ConfigMaps(s.Namespace).Get(ctx, SwitchName, metav1.GetOptions{})
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was read
	}
	s.last, s.at = stopped{By: m.Data["by"]}, s.now()
	if at, err := time.Parse(time.RFC3339, m.Data["at"]); err == nil {
		s.last.At = at
	}
	return nil
}

// Stop sets the switch for every replica.
func (s *SharedSwitch) Stop(ctx context.Context, by string) error {
	if by == "" {
		by = "somebody"
	}
	return s.write(ctx, "set", map[string]any{"by": by, "at": s.now().UTC().Format(time.RFC3339)})
}

// Resume lifts it for every replica.
func (s *SharedSwitch) Resume(ctx context.Context) error {
	return s.write(ctx, "lift", map[string]any{"by": nil, "at": nil})
}

func (s *SharedSwitch) write(ctx context.Context, what string, data map[string]any) error {
	patch, err := json.Marshal(map[string]any{"data": data})
	if err == nil {
		_, err = s.Client.CoreV1().ConfigMaps(s.Namespace).Patch(ctx, SwitchName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stanch"})
	}
	if err != nil {
		return fmt.Errorf("%s the kill switch %s/%s: %w", what, s.Namespace, SwitchName, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = time.Time{} // what was read before is no longer so
	return s.read(ctx)
}

// isGone tells that the switch itself was taken away or may not be read: no grace for that.
func isGone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) }
