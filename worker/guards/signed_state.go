package guards

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"stanch/activities"
	"stanch/sensors/attestation"
)

// signedState reads and makes signed states of a kill switch. Whoever can write where the state is kept can stop, as anybody
// may in an emergency; nobody can lift it without the authority, not with an older state either while this process
// lives.
type signedState struct {
	mu              sync.Mutex
	highestSequence int64
}

// readState tells what a stored state says. What is not signed, or older than what was seen, counts as stopped.
func (s *signedState) readState(text string, keys attestation.Keyring) attestation.KillSwitchState {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == "" && s.highestSequence == 0 {
		return attestation.KillSwitchState{}
	}
	var signed attestation.Envelope
	var state attestation.KillSwitchState
	switch err := json.Unmarshal([]byte(text), &signed); {
	case text == "":
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the switch's state was taken away"}
	case err != nil:
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the switch's state cannot be read"}
	}
	if err := keys.Verify(signed, attestation.PayloadTypeKillSwitch, &state); err != nil {
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the switch's state is not signed by the authority"}
	}
	if state.Sequence < s.highestSequence {
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the switch's state is older than one that was seen"}
	}
	s.highestSequence = state.Sequence
	return state
}

// signState signs a new state. Its number is the time in milliseconds, so that replicas need not agree on one.
func (s *signedState) signState(a activities.Authority, stopped bool, by, reason string, now time.Time) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if by == "" {
		by = "somebody"
	}
	s.highestSequence = max(s.highestSequence+1, now.UnixMilli())
	signed, err := a.Sign(attestation.PayloadTypeKillSwitch, attestation.KillSwitchState{Sequence: s.highestSequence, Paused: stopped, ChangedBy: by, ChangedAt: now.UTC(), Reason: reason})
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	raw, err := json.Marshal(signed)
	return string(raw), err //nolint:wrapcheck // plain data
}

// describePausedBy is who stopped, for a person.
func describePausedBy(s attestation.KillSwitchState) string {
	switch {
	case !s.Paused:
		return ""
	case s.ChangedAt.IsZero():
		return s.ChangedBy
	}
	text := fmt.Sprintf("by %s at %s", s.ChangedBy, s.ChangedAt.Format(time.RFC3339))
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}
