package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"stanch/sensors/identity"
	"stanch/sensors/link"
	"stanch/sensors/proof"
	"stanch/sensors/snapshot"
)

var _ link.Handler = (*Agent)(nil)

// snapshotFresh is how old an attested detection may be for a snapshot of its target.
const snapshotFresh = 24 * time.Hour

// Handle obeys one command, if its proof holds.
func (a *Agent) Handle(ctx context.Context, kind link.CommandKind, body []byte, keys proof.Keyring) (any, []link.Blob, error) {
	switch kind {
	case link.CommandSnapshot:
		var c link.SnapshotCommand
		if err := decode(body, &c); err != nil {
			return nil, nil, err
		}
		if _, err := keys.OpenAttestation(c.Proof, c.Target.ID(), time.Now(), snapshotFresh); err != nil {
			return nil, nil, refused(err)
		}
		return a.snapshot(ctx, c.Target)
	case link.CommandLock, link.CommandFreeze:
		var c link.HoldCommand
		if err := decode(body, &c); err != nil {
			return nil, nil, err
		}
		token, err := a.prove(c, keys)
		if err != nil {
			return nil, nil, refused(err)
		}
		if kind == link.CommandFreeze {
			state, err := a.freeze(ctx, c, token)
			return state, nil, err
		}
		state, err := a.lock(ctx, c, token, keys)
		return state, nil, err
	case link.CommandUnlock, link.CommandThaw:
		var c link.EndCommand
		if err := decode(body, &c); err != nil {
			return nil, nil, err
		}
		state, err := a.end(ctx, kind, c, keys)
		return state, nil, err
	case link.CommandLockState, link.CommandFreezeState:
		var c link.StateCommand
		if err := decode(body, &c); err != nil {
			return nil, nil, err
		}
		if kind == link.CommandFreezeState {
			state, err := a.freezeState(ctx, c.Target)
			return state, nil, err
		}
		state, err := a.lockState(ctx, c.Target)
		return state, nil, err
	}
	return nil, nil, refused(fmt.Errorf("this sensor does not know the command %q; is it older than the gateway?", kind))
}

func decode(body []byte, out any) error {
	if err := json.Unmarshal(body, out); err != nil {
		return refused(fmt.Errorf("the command cannot be read: %w", err))
	}
	return nil
}

func refused(err error) error { return fmt.Errorf("%w: %w", link.ErrRefused, err) }

// prove checks that the authority's token covers what the command asks.
func (a *Agent) prove(c link.HoldCommand, keys proof.Keyring) (proof.Token, error) {
	token, err := keys.OpenToken(c.Token, c.Action, c.Target.ID(), time.Now())
	if err != nil {
		return token, err
	}
	switch {
	case token.Lease != c.Lease:
		return token, fmt.Errorf("%w: the token is for lease %s", proof.ErrUnproved, token.Lease)
	case token.Params != proof.Hash(c.Params):
		return token, fmt.Errorf("%w: the token is for other parameters", proof.ErrUnproved)
	case c.Until.After(token.Until):
		return token, fmt.Errorf("%w: the command ends at %s, the token at %s", proof.ErrUnproved, c.Until.Format(time.RFC3339), token.Until.Format(time.RFC3339))
	case a.released.isSpent(token.Lease, token.Issued):
		return token, fmt.Errorf("%w: the lease was released, its token is spent", proof.ErrUnproved)
	}
	// Against the token and not against what is in force: else many small steps would end a hold without a grant.
	if c.Until.Before(token.Until.Add(-endTolerance)) {
		if _, err := mayEnd(c.Grant, c.Lease, keys); err != nil {
			return token, fmt.Errorf("ending a hold at %s, its token at %s: %w", c.Until.Format(time.RFC3339), token.Until.Format(time.RFC3339), err)
		}
	}
	return token, nil
}

// endTolerance is by how much a hold's end may be earlier than its token's: ends are written with different precisions.
const endTolerance = time.Second

// anew checks that a hold which is not in force yet rests on something newer than people's release of its target.
func (a *Agent) anew(target string, token proof.Token) error {
	if !token.Since.IsZero() && a.released.isReleased(target, token.Since) {
		return refused(fmt.Errorf("%w: %s was released by a person after the last detection of it; a new detection or a person's grant contains it again", proof.ErrUnproved, target))
	}
	return nil
}

// mayEnd checks a grant that ends a hold before its time.
func mayEnd(grant *proof.Signed, lease string, keys proof.Keyring) (proof.Grant, error) {
	if grant == nil {
		return proof.Grant{}, fmt.Errorf("%w: its end has not come, and no grant was given", proof.ErrUnproved)
	}
	g, err := keys.OpenGrant(*grant, proof.OperationRelease, time.Now())
	if err != nil {
		if g, err = keys.OpenGrant(*grant, proof.OperationRollback, time.Now()); err != nil {
			return g, err
		}
	}
	if g.Lease != lease {
		return g, fmt.Errorf("%w: the grant releases lease %s", proof.ErrUnproved, g.Lease)
	}
	return g, nil
}

// end lifts a lock or a freeze: with a grant, or when its stamped end has passed.
func (a *Agent) end(ctx context.Context, kind link.CommandKind, c link.EndCommand, keys proof.Keyring) (link.HoldState, error) {
	if kind == link.CommandUnlock {
		return a.unlock(ctx, c, keys)
	}
	return a.thaw(ctx, c, keys)
}

func (a *Agent) snapshot(ctx context.Context, t link.NodeTarget) (any, []link.Blob, error) {
	at, err := a.find(ctx, t)
	if err != nil {
		if errors.Is(err, identity.ErrNotFound) {
			return nil, nil, refused(fmt.Errorf("it no longer runs on this node: %w", err))
		}
		return nil, nil, err
	}
	take := snapshot.Take
	if a.Snapshots != nil {
		take = a.Snapshots.Take
	}
	taken, blobs, err := take(ctx, snapshot.Target{CgroupDirs: at.dirs}, snapshot.Limits{})
	if err != nil {
		return nil, nil, fmt.Errorf("take a snapshot: %w", err)
	}
	out := make([]link.Blob, 0, len(blobs))
	for _, b := range blobs {
		out = append(out, link.Blob{Name: b.Name, Data: b.Data})
	}
	return taken, out, nil
}
