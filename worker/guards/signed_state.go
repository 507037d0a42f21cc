package guards

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"stanch/activities"
	"stanch/sensors/attestation"
)

// signedState reads and writes signed states of a kill switch. Whoever can write the stored state can pause, as anybody
// may in an emergency. Only the authority can resume, and while this process runs, an older state cannot either.
type signedState struct {
	mu              sync.Mutex
	highestSequence int64
}

// readState decodes a stored state. An unsigned state, or one older than the last, counts as paused.
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
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the kill switch's state was deleted"}
	case err != nil:
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the kill switch's state is not valid JSON"}
	}
	if err := keys.Verify(signed, attestation.PayloadTypeKillSwitch, &state); err != nil {
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the kill switch's state is not signed by the authority"}
	}
	if state.Sequence < s.highestSequence {
		return attestation.KillSwitchState{Paused: true, ChangedBy: "the kill switch's state is older than a previous one"}
	}
	s.highestSequence = state.Sequence
	return state
}

// signState signs a new state. Its sequence number is the time in milliseconds, so that replicas need not agree on one.
// The caller passes the number to rememberStored when the state is stored: a state that could not be stored must not
// make the stored one look outdated.
func (s *signedState) signState(a activities.Authority, stopped bool, by, reason string, now time.Time) (text string,
	sequence int64, err error,
) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if by == "" {
		by = "someone"
	}
	sequence = max(s.highestSequence+1, now.UnixMilli())
	signed, err := a.Sign(attestation.PayloadTypeKillSwitch, attestation.KillSwitchState{
		Sequence: sequence,
		Paused:   stopped, ChangedBy: by, ChangedAt: now.UTC(), Reason: reason,
	})
	if err != nil {
		return "", 0, fmt.Errorf("sign the state of the kill switch: %w", err)
	}
	raw, err := json.Marshal(signed)
	return string(raw), sequence, err //nolint:wrapcheck // plain data
}

// rememberStored makes this process refuse states that are older than a stored one.
func (s *signedState) rememberStored(sequence int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.highestSequence = max(s.highestSequence, sequence)
}

// describePausedBy returns who paused new containments, for people.
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
