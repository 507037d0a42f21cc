package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// disableKeyAction is `contain: aws.key.disable`. Access keys have no tags, so a tag of the user carries the expiry
// marker.
type disableKeyAction struct{ account *Account }

var (
	_ activities.Containment  = (*disableKeyAction)(nil)
	_ activities.OrphanFinder = (*disableKeyAction)(nil)
)

func (*disableKeyAction) Spec() playbooks.ActionSpec {
	plan := userPermission("iam:GetUser", "iam:ListAccessKeys", "iam:ListUserTags")
	return playbooks.ActionSpec{
		Name: "aws.key.disable", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetIdentity,
		Targets: []playbooks.TargetKind{playbooks.TargetKey}, Reversible: true, EndMechanism: playbooks.EndByStanch,
		D3FENDTechnique: "D3-ACI", AttemptTimeout: 30 * time.Second,
		Doc:                "Disable one access key; temporary credentials created with it stay valid.",
		PlanIAMPermissions: []playbooks.IAMPermission{plan}, ApplyIAMPermissions: []playbooks.IAMPermission{
			plan,
			userPermission("iam:UpdateAccessKey", "iam:TagUser", "iam:UntagUser"),
		},
	}
}

// keyPriorState is the key's state before the lease.
type keyPriorState struct {
	User   principal        `json:"user"`
	Status types.StatusType `json:"status"`
}

// keyState is the current state of a key.
type keyState struct {
	user   principal
	status types.StatusType
	marker keyExpiryMarker
}

// keyExpiryMarker is the lease of a key: the value of the tag stanch/key/ID of its user.
type keyExpiryMarker struct {
	activities.LeaseStamp
	priorStatus types.StatusType
}

func keyTagName(id string) string { return "stanch/key/" + id }

func (s keyExpiryMarker) encode() string {
	return fmt.Sprintf("%s/%s/%s", policyName("", s.ID), s.ExpiresAt.UTC().Format(expiryLayout), s.priorStatus)
}

func parseKeyExpiryMarker(text string) (keyExpiryMarker, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[2] != string(types.StatusTypeActive) && parts[2] != string(types.StatusTypeInactive) {
		return keyExpiryMarker{}, fmt.Errorf("the tag says %q", plainText(text, 60))
	}
	until, err := time.Parse(expiryLayout, parts[1])
	if err != nil {
		return keyExpiryMarker{}, fmt.Errorf("the tag says %q", plainText(text, 60))
	}
	return keyExpiryMarker{
		LeaseStamp: activities.LeaseStamp{ID: parts[0], ExpiresAt: until}, priorStatus: types.StatusType(parts[2]),
	}, nil
}

// readKeyState reads a key, its user and its marker. A key that is gone is a refusal that wraps
// activities.ErrTargetGone.
func (a *disableKeyAction) readKeyState(ctx context.Context, t playbooks.Target) (keyState, error) {
	if err := a.account.checkConfigured(); err != nil {
		return keyState{}, err
	}
	if t.Kind != playbooks.TargetKey || t.UID == "" || t.Name == "" {
		return keyState{}, activities.Refusef("%s does not identify an access key and its user", t)
	}
	user, err := a.account.readUser(ctx, t.Name)
	if isNotFound(err) {
		return keyState{}, activities.RefuseGonef("user %s is gone", t.Name)
	}
	if err != nil {
		return keyState{}, err
	}
	s := keyState{user: user}
	out, err := a.account.iam.ListAccessKeys(ctx, &iam.ListAccessKeysInput{UserName: &user.Name})
	if err != nil {
		return s, wrapError(err, "iam:ListAccessKeys", fmt.Sprintf("list the access keys of %s", user))
	}
	for _, k := range out.AccessKeyMetadata {
		if awssdk.ToString(k.AccessKeyId) == t.UID {
			s.status = k.Status
		}
	}
	if s.status == "" {
		return s, activities.RefuseGonef("%s is gone", t)
	}
	tags, err := a.account.iam.ListUserTags(ctx, &iam.ListUserTagsInput{UserName: &user.Name})
	if err != nil {
		return s, wrapError(err, "iam:ListUserTags", fmt.Sprintf("read the tags of %s", user))
	}
	for _, tag := range tags.Tags {
		if awssdk.ToString(tag.Key) == keyTagName(t.UID) {
			if s.marker, err = parseKeyExpiryMarker(awssdk.ToString(tag.Value)); err != nil {
				return s, activities.Refusef("the expiry marker of %s was changed by another writer: %v", t, err)
			}
		}
	}
	return s, nil
}

// refuseProtected returns a refusal for Stanch's own keys, and those of protected users.
func (a *disableKeyAction) refuseProtected(ctx context.Context, s keyState, key string) error {
	if own, err := a.account.credentials.Retrieve(ctx); err == nil && own.AccessKeyID == key {
		return activities.Refusef("key %s is Stanch's own key", key)
	}
	return a.account.refuseProtected(ctx, s.user)
}

// Plan returns which key would be disabled.
func (a *disableKeyAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	s, err := a.readKeyState(ctx, r.Target)
	if err != nil {
		return activities.Plan{}, err
	}
	if err := a.refuseProtected(ctx, s, r.Target.UID); err != nil {
		return activities.Plan{}, err
	}
	plan := activities.Plan{
		Changes: []string{fmt.Sprintf("deactivate %s", r.Target)},
		Warnings: []string{
			"temporary credentials that were created with the key stay valid until they expire, up to 36 hours; `aws.user.deny` denies them too",
		},
		AlreadyHeld: s.marker.ID != "",
		NothingToDo: s.status == types.StatusTypeInactive,
	}
	plan.PriorState, err = encodePrior(keyPriorState{User: s.user, Status: s.statusToRestore()})
	return plan, err
}

// statusToRestore returns the status that undo restores.
func (s keyState) statusToRestore() types.StatusType {
	if s.marker.ID != "" {
		return s.marker.priorStatus
	}
	return s.status
}

// Apply first tags the user and then disables the key: a disabled key without a marker would never be restored.
func (a *disableKeyAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	s, err := a.readKeyState(ctx, r.Target)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := a.refuseProtected(ctx, s, r.Target.UID); err != nil {
		return activities.Effect{}, err
	}
	want := keyExpiryMarker{
		LeaseStamp:  activities.LeaseStamp{ID: policyName("", r.LeaseID), ExpiresAt: truncateExpiry(r.ExpiresAt)},
		priorStatus: s.statusToRestore(),
	}
	switch {
	case s.marker.ID != "" && s.marker.ID != want.ID:
		return activities.Effect{}, activities.Refusef("%s is under another lease, %s, until %s", r.Target,
			s.marker.ID, s.marker.ExpiresAt.Format(time.RFC3339))
	case s.marker.ID != "":
		if err := activities.RefuseEarlyEnd(r, s.marker.ExpiresAt, want.ExpiresAt); err != nil {
			return activities.Effect{}, err
		}
	}
	if s.marker != want {
		_, err := a.account.iam.TagUser(ctx, &iam.TagUserInput{
			UserName: &s.user.Name,
			Tags:     []types.Tag{{Key: awssdk.String(keyTagName(r.Target.UID)), Value: awssdk.String(want.encode())}},
		})
		if err != nil {
			return activities.Effect{}, wrapError(err, "iam:TagUser", fmt.Sprintf("set the expiry marker of %s", s.user))
		}
	}
	effect := activities.Effect{
		Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now(),
		Reason: "IAM lists the key as inactive",
	}
	if s.status == types.StatusTypeInactive {
		if s.marker.ID == "" {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnchanged,
				"it was inactive before and stays inactive when the lease ends"
		}
		return effect, nil
	}
	if err := a.setKeyStatus(ctx, s.user, r.Target.UID, types.StatusTypeInactive); err != nil {
		return effect, err
	}
	effect.AppliedAt = time.Now()
	if now, err := a.readKeyState(ctx, r.Target); err != nil || now.status != types.StatusTypeInactive {
		return effect, errors.Join(err, fmt.Errorf("%s is %s after it was deactivated", r.Target, now.status))
	}
	return effect, nil
}

func (a *disableKeyAction) setKeyStatus(ctx context.Context, user principal, key string,
	status types.StatusType,
) error {
	_, err := a.account.iam.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{
		UserName: &user.Name, AccessKeyId: &key,
		Status: status,
	})
	return wrapError(err, "iam:UpdateAccessKey", fmt.Sprintf("set key %s of %s to %s", key, user, status))
}

// Verify reports whether the key is inactive.
func (a *disableKeyAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	s, err := a.readKeyState(ctx, r.Target)
	if err != nil {
		return false, "", err
	}
	switch {
	case s.status != types.StatusTypeInactive:
		return false, fmt.Sprintf("another writer activated %s", r.Target), nil
	case s.marker.ID != policyName("", r.LeaseID):
		return false, fmt.Sprintf("the expiry marker of %s was removed", r.Target), nil
	}
	return true, "IAM lists the key as inactive", nil
}

// Undo restores the key's status, and removes the marker last.
func (a *disableKeyAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	prior, err := activities.DecodePriorState[keyPriorState](raw)
	if err != nil {
		return nil, err
	}
	s, err := a.readKeyState(ctx, r.Target)
	if errors.Is(err, activities.ErrTargetGone) {
		return nil, a.removeMarker(ctx, r, s.user)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case s.marker.ID != policyName("", r.LeaseID):
		return nil, nil // nothing of this lease is in force; a request alone must not activate a key
	case prior.User.ID != "" && prior.User.ID != s.user.ID:
		return &activities.Drift{Detail: fmt.Sprintf("%s now has ID %s, but had ID %s", s.user, s.user.ID, prior.User.ID)},
			nil
	}
	if err := activities.RefuseEarlyUndo(s.marker.ExpiresAt, grant); err != nil {
		return nil, err
	}
	// A key that someone activated meanwhile stays active.
	if s.status == types.StatusTypeInactive && s.marker.priorStatus == types.StatusTypeActive {
		if err := a.setKeyStatus(ctx, s.user, r.Target.UID, s.marker.priorStatus); err != nil {
			return nil, err
		}
		if now, err := a.readKeyState(ctx, r.Target); err == nil && now.status != s.marker.priorStatus {
			return nil, fmt.Errorf("%s is %s after it was set to %s", r.Target, now.status, s.marker.priorStatus)
		}
	}
	return nil, a.removeMarker(ctx, r, s.user)
}

func (a *disableKeyAction) removeMarker(ctx context.Context, r activities.Request, user principal) error {
	if user.Name == "" {
		return nil
	}
	_, err := a.account.iam.UntagUser(ctx, &iam.UntagUserInput{
		UserName: &user.Name,
		TagKeys:  []string{keyTagName(r.Target.UID)},
	})
	if isNotFound(err) {
		return nil
	}
	return wrapError(err, "iam:UntagUser", fmt.Sprintf("remove the expiry marker of %s", user))
}

// FindOrphans returns the keys whose stamped end has passed.
func (a *disableKeyAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	if a.account == nil {
		return nil, nil
	}
	account, err := a.account.readAccount(ctx)
	var out []activities.Orphan
	for _, u := range account.users {
		for _, tag := range u.Tags {
			id, ok := strings.CutPrefix(awssdk.ToString(tag.Key), keyTagName(""))
			stamp, err := parseKeyExpiryMarker(awssdk.ToString(tag.Value))
			if !ok || err != nil || !stamp.ExpiresAt.Before(before) {
				continue
			}
			target := playbooks.Target{Kind: playbooks.TargetKey, Name: awssdk.ToString(u.UserName), UID: id}
			out = append(out, activities.Orphan{
				ObjectName: target.String(), Target: target, Facet: playbooks.FacetIdentity, Lease: stamp.LeaseStamp,
				Undo: func(ctx context.Context) (*activities.Drift, error) {
					return a.Undo(ctx, activities.Request{Target: target, LeaseID: stamp.ID}, nil, nil)
				},
			})
		}
	}
	return out, err
}
