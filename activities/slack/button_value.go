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

// The kinds of buttons.
const (
	ButtonApprove       ButtonKind = "approve"
	ButtonDeny          ButtonKind = "deny"
	ButtonBreakGlass    ButtonKind = "break-glass"
	ButtonRelease       ButtonKind = "release"
	ButtonExtend        ButtonKind = "extend"
	ButtonAssign        ButtonKind = "assign"
	ButtonFalsePositive ButtonKind = "false-positive"
)

// ButtonReference is what a button refers to. It does not say who may press it.
type ButtonReference struct {
	Kind       ButtonKind `json:"k"`
	IncidentID string     `json:"i"`
	RequestID  string     `json:"q,omitempty"` // id within the run
	PlansHash  string     `json:"h,omitempty"` // hash of the plans that were shown
	LeaseID    string     `json:"l,omitempty"`
}

// Signer computes a MAC with one of Stanch's keys.
type Signer interface {
	MAC(purpose string, message []byte) []byte
}

const (
	macPurpose = "slack-button"
	macBytes   = 16
)

// errInvalidButton means that a button's value was not signed by this installation.
var errInvalidButton = errors.New("this button is invalid or was signed with an older key; use the current message")

// Sign returns a button's value: the reference and its MAC.
func Sign(s Signer, r ButtonReference) string {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // it contains only strings
	}
	return base64.RawURLEncoding.EncodeToString(raw) + "." + base64.RawURLEncoding.EncodeToString(s.MAC(macPurpose,
		raw)[:macBytes])
}

// Verify decodes a button's value. It returns an error if the MAC is invalid.
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
