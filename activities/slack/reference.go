package slack

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// Kind is what a button does.
type Kind string

// The kinds of button.
const (
	KindApprove       Kind = "approve"
	KindDeny          Kind = "deny"
	KindBreakGlass    Kind = "break-glass"
	KindRelease       Kind = "release"
	KindExtend        Kind = "extend"
	KindTakeOver      Kind = "take-over"
	KindFalsePositive Kind = "false-positive"
)

// Reference is what a button stands for. It says nothing about who may press it.
type Reference struct {
	Kind     Kind   `json:"k"`
	Incident string `json:"i"`
	Question string `json:"q,omitempty"` // its id within the run
	Hash     string `json:"h,omitempty"` // of the plans that were shown
	Lease    string `json:"l,omitempty"`
}

// Sealer makes a keyed hash with a key of Stanch's own.
type Sealer interface {
	MAC(purpose string, message []byte) []byte
}

const (
	sealPurpose = "slack-button"
	sealSize    = 16
)

// errReference says that a button's value was not made here.
var errReference = errors.New("this button is not one of Stanch's, or from before its key was changed: use the message as it is now")

// Seal makes a button's value: the reference and a keyed hash of it.
func Seal(s Sealer, r Reference) string {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain strings
	}
	return base64.RawURLEncoding.EncodeToString(raw) + "." + base64.RawURLEncoding.EncodeToString(s.MAC(sealPurpose, raw)[:sealSize])
}

// Unseal reads a button's value.
func Unseal(s Sealer, value string) (Reference, error) {
	var r Reference
	body, seal, ok := strings.Cut(value, ".")
	if !ok || len(value) > 2000 {
		return r, errReference
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return r, errReference
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(seal)
	if err != nil || !hmac.Equal(mac, s.MAC(sealPurpose, raw)[:sealSize]) {
		return r, errReference
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, errReference
	}
	return r, nil
}
