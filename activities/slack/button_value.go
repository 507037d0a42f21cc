package slack

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// ButtonKind is what a button does.
type ButtonKind string

// The kinds of button.
const (
	ButtonApprove       ButtonKind = "approve"
	ButtonDeny          ButtonKind = "deny"
	ButtonBreakGlass    ButtonKind = "break-glass"
	ButtonRelease       ButtonKind = "release"
	ButtonExtend        ButtonKind = "extend"
	ButtonAssign        ButtonKind = "take-over"
	ButtonFalsePositive ButtonKind = "false-positive"
)

// ButtonReference is what a button stands for. It says nothing about who may press it.
type ButtonReference struct {
	Kind       ButtonKind `json:"k"`
	IncidentID string     `json:"i"`
	RequestID  string     `json:"q,omitempty"` // its id within the run
	PlansHash  string     `json:"h,omitempty"` // of the plans that were shown
	LeaseID    string     `json:"l,omitempty"`
}

// Signer makes a keyed hash with a key of Stanch's own.
type Signer interface {
	MAC(purpose string, message []byte) []byte
}

const (
	macPurpose = "slack-button"
	macBytes   = 16
)

// errInvalidButton says that a button's value was not made here.
var errInvalidButton = errors.New("this button is not one of Stanch's, or from before its key was changed: use the message as it is now")

// Sign makes a button's value: the reference and a keyed hash of it.
func Sign(s Signer, r ButtonReference) string {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain strings
	}
	return base64.RawURLEncoding.EncodeToString(raw) + "." + base64.RawURLEncoding.EncodeToString(s.MAC(macPurpose, raw)[:macBytes])
}

// Verify reads a button's value.
func Verify(s Signer, value string) (ButtonReference, error) {
	var r ButtonReference
	body, seal, ok := strings.Cut(value, ".")
	if !ok || len(value) > 2000 {
		return r, errInvalidButton
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return r, errInvalidButton
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(seal)
	if err != nil || !hmac.Equal(mac, s.MAC(macPurpose, raw)[:macBytes]) {
		return r, errInvalidButton
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, errInvalidButton
	}
	return r, nil
}
