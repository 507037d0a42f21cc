package simulate

import (
	"stanch/sensors/attestation"
)

// newSimulatedAuthority returns an authority for one simulation. Its signatures are valid nowhere else.
func newSimulatedAuthority() (simulatedAuthority, error) {
	key, err := attestation.NewSigningKey([]byte("simulation key; its signatures prove nothing"[:32]))
	if err != nil {
		return simulatedAuthority{}, err //nolint:wrapcheck // a programming error
	}
	return simulatedAuthority{signingKey: key, keyring: attestation.NewKeyring(key.PublicKey())}, nil
}

type simulatedAuthority struct {
	signingKey attestation.SigningKey
	keyring    attestation.Keyring
}

func (a simulatedAuthority) Keyring() attestation.Keyring { return a.keyring }

func (a simulatedAuthority) Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error) {
	return a.signingKey.Sign(purpose, body) //nolint:wrapcheck // the error names the purpose
}
