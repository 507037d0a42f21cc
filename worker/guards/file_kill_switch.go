package guards

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"stanch/activities"
	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
)

// FileKillSwitch is a kill switch in a file with a signed state. Without a file, new containments were never paused. It
// is safe for concurrent use.
type FileKillSwitch struct {
	FilePath  string
	Authority activities.Authority

	signedState signedState
}

var _ KillSwitchReader = (*FileKillSwitch)(nil)

// IsPaused reads the file.
func (s *FileKillSwitch) IsPaused(context.Context) (bool, string, error) {
	state, err := s.readState()
	if err != nil {
		return true, "", err
	}
	return state.Paused, describePausedBy(state), nil
}

func (s *FileKillSwitch) readState() (attestation.KillSwitchState, error) {
	raw, err := os.ReadFile(s.FilePath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return attestation.KillSwitchState{}, fmt.Errorf("read the kill switch: %w", err)
	}
	return s.signedState.readState(string(raw), s.Authority.Keyring()), nil
}

// State reads the state. An unreadable or unsigned state counts as paused.
func (s *FileKillSwitch) State(context.Context) (attestation.KillSwitchState, error) {
	state, err := s.readState()
	state.Paused = state.Paused || err != nil
	return state, err
}

// Pause pauses new containments.
func (s *FileKillSwitch) Pause(_ context.Context, by, reason string) error {
	return s.writeState("set", true, by, reason)
}

// Resume resumes new containments.
func (s *FileKillSwitch) Resume(_ context.Context, by string) error {
	return s.writeState("clear", false, by, "")
}

func (s *FileKillSwitch) writeState(what string, stopped bool, by, reason string) error {
	_, err := s.readState()
	var text string
	var sequence int64
	if err == nil {
		text, sequence, err = s.signedState.signState(s.Authority, stopped, by, reason, time.Now())
	}
	if err == nil {
		err = durablefile.Write(s.FilePath, []byte(text), 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s the kill switch: %w", what, err)
	}
	s.signedState.rememberStored(sequence)
	return nil
}
