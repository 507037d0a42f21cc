package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"stanch/sensors/attestation"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/snapshot"
)

var _ gatewayrpc.CommandHandler = (*Agent)(nil)

// maxSnapshotDetectionAge is the maximum age of an attested detection that permits a snapshot of its target.
const maxSnapshotDetectionAge = 24 * time.Hour

// Handle verifies the proof of one command with keys and executes the command. It returns the result and, for a
// snapshot, the attachments. The error wraps gatewayrpc.ErrRefused if the command is unknown, malformed or not
// permitted.
func (a *Agent) Handle(ctx context.Context, kind gatewayrpc.CommandKind, body []byte, keys attestation.Keyring) (any,
	[]gatewayrpc.Attachment, error,
) {
	switch kind {
	case gatewayrpc.CommandSnapshot:
		var c gatewayrpc.SnapshotCommand
		if err := decodeCommand(body, &c); err != nil {
			return nil, nil, err
		}
		if _, err := keys.VerifyAttestation(c.Attestation, c.Target.ID(), time.Now(), maxSnapshotDetectionAge); err != nil {
			return nil, nil, wrapRefused(err)
		}
		return a.takeSnapshot(ctx, c.Target)
	case gatewayrpc.CommandLock, gatewayrpc.CommandFreeze:
		var c gatewayrpc.ContainmentCommand
		if err := decodeCommand(body, &c); err != nil {
			return nil, nil, err
		}
		token, err := a.verifyToken(c, keys)
		if err != nil {
			return nil, nil, wrapRefused(err)
		}
		if kind == gatewayrpc.CommandFreeze {
			state, err := a.freeze(ctx, c, token)
			return state, nil, err
		}
		state, err := a.applyLock(ctx, c, token, keys)
		return state, nil, err
	case gatewayrpc.CommandUnlock, gatewayrpc.CommandThaw:
		var c gatewayrpc.ReleaseCommand
		if err := decodeCommand(body, &c); err != nil {
			return nil, nil, err
		}
		state, err := a.endContainment(ctx, kind, c, keys)
		return state, nil, err
	case gatewayrpc.CommandLockState, gatewayrpc.CommandFreezeState:
		var c gatewayrpc.StateQuery
		if err := decodeCommand(body, &c); err != nil {
			return nil, nil, err
		}
		if kind == gatewayrpc.CommandFreezeState {
			state, err := a.freezeState(ctx, c.Target)
			return state, nil, err
		}
		state, err := a.lockState(ctx, c.Target)
		return state, nil, err
	}
	return nil, nil,
		wrapRefused(fmt.Errorf("unknown command %q; upgrade this sensor if it is older than the gateway", kind))
}

func decodeCommand(body []byte, out any) error {
	if err := json.Unmarshal(body, out); err != nil {
		return wrapRefused(fmt.Errorf("decode the command: %w", err))
	}
	return nil
}

func wrapRefused(err error) error { return fmt.Errorf("%w: %w", gatewayrpc.ErrRefused, err) }

// verifyToken checks that the lease token covers the command.
func (a *Agent) verifyToken(c gatewayrpc.ContainmentCommand, keys attestation.Keyring) (attestation.LeaseToken, error) {
	token, err := keys.VerifyLeaseToken(c.Token, c.Action, c.Target.ID(), time.Now())
	if err != nil {
		return token, err
	}
	switch {
	case token.LeaseID != c.LeaseID:
		return token, fmt.Errorf("%w: the token is for lease %s", attestation.ErrUnverified, token.LeaseID)
	case token.ParamsHash != attestation.HashJSON(c.Params):
		return token, fmt.Errorf("%w: the token is for different parameters", attestation.ErrUnverified)
	case c.ExpiresAt.After(token.ExpiresAt):
		return token,
			fmt.Errorf("%w: the command expires at %s, after its token at %s", attestation.ErrUnverified,
				c.ExpiresAt.Format(time.RFC3339), token.ExpiresAt.Format(time.RFC3339))
	case a.revocations.isTokenRevoked(token.LeaseID, token.IssuedAt):
		return token, fmt.Errorf("%w: the lease was released, so its token is no longer valid", attestation.ErrUnverified)
	}
	// Compare with the token and not with the containment in force: otherwise many small changes could end a
	// containment without a grant.
	if c.ExpiresAt.Before(token.ExpiresAt.Add(-expiryTolerance)) {
		if _, err := verifyReleaseGrant(c.Grant, c.LeaseID, keys); err != nil {
			return token,
				fmt.Errorf("end a containment at %s, before its token expires at %s: %w", c.ExpiresAt.Format(time.RFC3339),
					token.ExpiresAt.Format(time.RFC3339), err)
		}
	}
	return token, nil
}

// expiryTolerance is how much earlier than its token a containment may end, because timestamps are written with
// different precision.
const expiryTolerance = time.Second

// checkNotReleased checks that a new containment is based on a detection or grant that is newer than the last release
// of its target by a person.
func (a *Agent) checkNotReleased(target string, token attestation.LeaseToken) error {
	if !token.DetectedAt.IsZero() && a.revocations.isTargetReleased(target, token.DetectedAt) {
		return wrapRefused(
			fmt.Errorf(
				"%w: a person released %s after its last detection; containing it again needs a new detection or a grant",
				attestation.ErrUnverified,
				target,
			),
		)
	}
	return nil
}

// verifyReleaseGrant verifies a grant that ends a containment before its expiry.
func verifyReleaseGrant(grant *attestation.Envelope, lease string, keys attestation.Keyring) (attestation.Grant,
	error,
) {
	if grant == nil {
		return attestation.Grant{},
			fmt.Errorf("%w: the containment has not expired, and the grant is missing", attestation.ErrUnverified)
	}
	g, err := keys.VerifyGrant(*grant, attestation.OperationRelease, time.Now())
	if err != nil {
		if g, err = keys.VerifyGrant(*grant, attestation.OperationRollback, time.Now()); err != nil {
			return g, err
		}
	}
	if g.LeaseID != lease {
		return g, fmt.Errorf("%w: the grant releases lease %s", attestation.ErrUnverified, g.LeaseID)
	}
	return g, nil
}

// endContainment removes a lock or a freeze: with a grant, or after its expiry.
func (a *Agent) endContainment(ctx context.Context, kind gatewayrpc.CommandKind, c gatewayrpc.ReleaseCommand,
	keys attestation.Keyring,
) (gatewayrpc.ContainmentState, error) {
	if kind == gatewayrpc.CommandUnlock {
		return a.releaseLock(ctx, c, keys)
	}
	return a.thaw(ctx, c, keys)
}

func (a *Agent) takeSnapshot(ctx context.Context, t gatewayrpc.NodeTarget) (any, []gatewayrpc.Attachment, error) {
	at, err := a.locateTarget(ctx, t)
	if err != nil {
		if errors.Is(err, containermeta.ErrNotFound) {
			return nil, nil, wrapRefused(fmt.Errorf("the target no longer runs on this node: %w", err))
		}
		return nil, nil, err
	}
	take := snapshot.Take
	if a.SnapshotHelper != nil {
		take = a.SnapshotHelper.Take
	}
	taken, blobs, err := take(ctx, snapshot.Target{CgroupDirs: at.dirs}, snapshot.Limits{})
	if err != nil {
		return nil, nil, fmt.Errorf("take a snapshot: %w", err)
	}
	out := make([]gatewayrpc.Attachment, 0, len(blobs))
	for _, b := range blobs {
		out = append(out, gatewayrpc.Attachment{Name: b.Name, Data: b.Data})
	}
	return taken, out, nil
}
