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

// disableKey is `contain: aws.key.disable`. A key has no place for a stamp; a tag of its user carries it.
type disableKey struct{ account *Account }

var _ activities.Containment = (*disableKey)(nil)

func (*disableKey) Spec() playbooks.ActionSpec {
	plan := userRight("iam:GetUser", "iam:ListAccessKeys", "iam:ListUserTags")
	return playbooks.ActionSpec{
		Name: "aws.key.disable", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetIdentity,
		Targets: []playbooks.TargetKind{playbooks.TargetKey}, Reversible: true, EndMechanism: playbooks.EndByStanch, D3FENDTechnique: "D3-ACI", AttemptTimeout: 30 * time.Second,
		Doc:       "Make one access key inactive; credentials that were made with it outlive that.",
		PlanIAMPermissions: []playbooks.IAMPermission{plan}, ApplyIAMPermissions: []playbooks.IAMPermission{plan, userRight("iam:UpdateAccessKey", "iam:TagUser", "iam:UntagUser")},
	}
}

// keyPrior is what was before.
type keyPrior struct {
	User   principal        `json:"user"`
	Status types.StatusType `json:"status"`
}

// keyState is a key as IAM has it now.
type keyState struct {
	user   principal
	status types.StatusType
	stamp  keyStamp
}

// keyStamp is the lease of a key: the value of the tag stanch/key/ID.
type keyStamp struct {
	lease string
	until time.Time
	prior types.StatusType
}

func keyTag(id string) string { return "stanch/key/" + id }

func (s keyStamp) text() string {
	return fmt.Sprintf("%s/%s/%s", policyName("", s.lease), s.until.UTC().Format(stampLayout), s.prior)
}

func readKeyStamp(text string) (keyStamp, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[2] != string(types.StatusTypeActive) && parts[2] != string(types.StatusTypeInactive) {
		return keyStamp{}, fmt.Errorf("the tag says %q", clip(text, 60))
	}
	until, err := time.Parse(stampLayout, parts[1])
	if err != nil {
		return keyStamp{}, fmt.Errorf("the tag says %q", clip(text, 60))
	}
	return keyStamp{lease: parts[0], until: until, prior: types.StatusType(parts[2])}, nil
}

// look reads a key, its user and its stamp. A key that is gone is a *gone error.
func (a *disableKey) look(ctx context.Context, t playbooks.Target) (keyState, error) {
	if err := a.account.ready(); err != nil {
		return keyState{}, err
	}
	if t.Kind != playbooks.TargetKey || t.UID == "" || t.Name == "" {
		return keyState{}, activities.Refuse("%s is no access key with its user", t)
	}
	user, err := a.account.readUser(ctx, t.Name)
	if isGone(err) {
		return keyState{}, &gone{fmt.Sprintf("user %s is gone", t.Name)}
	}
	if err != nil {
		return keyState{}, err
	}
	s := keyState{user: user}
	out, err := a.account.iam.ListAccessKeys(ctx, &iam.ListAccessKeysInput{UserName: &user.Name})
	if err != nil {
		return s, fail(err, "iam:ListAccessKeys", fmt.Sprintf("list the keys of %s", user))
	}
	for _, k := range out.AccessKeyMetadata {
		if awssdk.ToString(k.AccessKeyId) == t.UID {
			s.status = k.Status
		}
	}
	if s.status == "" {
		return s, &gone{fmt.Sprintf("%s is gone", t)}
	}
	tags, err := a.account.iam.ListUserTags(ctx, &iam.ListUserTagsInput{UserName: &user.Name})
	if err != nil {
		return s, fail(err, "iam:ListUserTags", fmt.Sprintf("read the tags of %s", user))
	}
	for _, tag := range tags.Tags {
		if awssdk.ToString(tag.Key) == keyTag(t.UID) {
			if s.stamp, err = readKeyStamp(awssdk.ToString(tag.Value)); err != nil {
				return s, activities.Refuse("the stamp of %s was changed by somebody: %v", t, err)
			}
		}
	}
	return s, nil
}

// protect refuses Stanch's own keys, and those of users that are protected.
func (a *disableKey) protect(ctx context.Context, s keyState, key string) error {
	if own, err := a.account.creds.Retrieve(ctx); err == nil && own.AccessKeyID == key {
		return activities.Refuse("key %s is what Stanch itself works with", key)
	}
	return a.account.protect(ctx, s.user)
}

// Plan says which key.
func (a *disableKey) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	s, err := a.look(ctx, r.Target)
	if err != nil {
		return activities.Plan{}, whenPlanning(err)
	}
	if err := a.protect(ctx, s, r.Target.UID); err != nil {
		return activities.Plan{}, err
	}
	plan := activities.Plan{
		Changes:  []string{fmt.Sprintf("make %s inactive", r.Target)},
		Warnings: []string{"temporary credentials that were made with the key go on until they expire, up to 36 hours: `aws.user.deny` ends them"},
		Held:     s.stamp.lease != "", Nothing: s.status == types.StatusTypeInactive,
	}
	plan.Prior, err = saved(keyPrior{User: s.user, Status: s.before()})
	return plan, err
}

// before is the status that undo restores.
func (s keyState) before() types.StatusType {
	if s.stamp.lease != "" {
		return s.stamp.prior
	}
	return s.status
}

// Apply stamps the user and makes the key inactive, in this order: what is inactive without a stamp stays so.
func (a *disableKey) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	s, err := a.look(ctx, r.Target)
	if err != nil {
		return activities.Effect{}, whenPlanning(err)
	}
	if err := a.protect(ctx, s, r.Target.UID); err != nil {
		return activities.Effect{}, err
	}
	want := keyStamp{lease: policyName("", r.Lease), until: stamped(r.Until), prior: s.before()}
	switch {
	case s.stamp.lease != "" && s.stamp.lease != want.lease:
		return activities.Effect{}, activities.Refuse("%s is held by another lease, %s, until %s", r.Target, s.stamp.lease, s.stamp.until.Format(time.RFC3339))
	case s.stamp.lease != "":
		if err := mayShorten(r, s.stamp.until, want.until); err != nil {
			return activities.Effect{}, err
		}
	}
	if s.stamp != want {
		_, err := a.account.iam.TagUser(ctx, &iam.TagUserInput{UserName: &s.user.Name, Tags: []types.Tag{{Key: awssdk.String(keyTag(r.Target.UID)), Value: awssdk.String(want.text())}}})
		if err != nil {
			return activities.Effect{}, fail(err, "iam:TagUser", fmt.Sprintf("stamp %s", s.user))
		}
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now(), Reason: "IAM lists the key as inactive"}
	if s.status == types.StatusTypeInactive {
		if s.stamp.lease == "" {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnchanged, "it was inactive before, and stays so at the end"
		}
		return effect, nil
	}
	if err := a.set(ctx, s.user, r.Target.UID, types.StatusTypeInactive); err != nil {
		return effect, err
	}
	effect.AppliedAt = time.Now()
	if now, err := a.look(ctx, r.Target); err != nil || now.status != types.StatusTypeInactive {
		return effect, errors.Join(whenPlanning(err), fmt.Errorf("%s is %s after it was made inactive", r.Target, now.status))
	}
	return effect, nil
}

func (a *disableKey) set(ctx context.Context, user principal, key string, status types.StatusType) error {
	_, err := a.account.iam.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &user.Name, AccessKeyId: &key, Status: status})
	return fail(err, "iam:UpdateAccessKey", fmt.Sprintf("make key %s of %s %s", key, user, status))
}

// Verify reads the key's status.
func (a *disableKey) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	s, err := a.look(ctx, r.Target)
	if err != nil {
		return false, "", err
	}
	switch {
	case s.status != types.StatusTypeInactive:
		return false, fmt.Sprintf("somebody made %s active", r.Target), nil
	case s.stamp.lease != policyName("", r.Lease):
		return false, fmt.Sprintf("the stamp of %s was taken away", r.Target), nil
	}
	return true, "IAM lists the key as inactive", nil
}

// Undo gives the key the status that it had, and takes the stamp off last.
func (a *disableKey) Undo(ctx context.Context, r activities.Request, raw json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	prior, err := activities.Saved[keyPrior](raw)
	if err != nil {
		return nil, err
	}
	s, err := a.look(ctx, r.Target)
	if errors.Is(err, activities.ErrGone) {
		return nil, a.untag(ctx, r, s.user)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case s.stamp.lease != policyName("", r.Lease):
		return nil, nil // nothing of this lease is in force; a request alone must not make a key active
	case prior.User.ID != "" && prior.User.ID != s.user.ID:
		return &activities.Drift{Detail: fmt.Sprintf("%s has the id %s now, and had %s", s.user, s.user.ID, prior.User.ID)}, nil
	}
	if err := notYet(s.stamp.until, grant); err != nil {
		return nil, err
	}
	// One that somebody made active meanwhile is as it was, or as they want it.
	if s.status == types.StatusTypeInactive && s.stamp.prior == types.StatusTypeActive {
		if err := a.set(ctx, s.user, r.Target.UID, s.stamp.prior); err != nil {
			return nil, err
		}
		if now, err := a.look(ctx, r.Target); err == nil && now.status != s.stamp.prior {
			return nil, fmt.Errorf("%s is %s after it was made %s", r.Target, now.status, s.stamp.prior)
		}
	}
	return nil, a.untag(ctx, r, s.user)
}

func (a *disableKey) untag(ctx context.Context, r activities.Request, user principal) error {
	if user.Name == "" {
		return nil
	}
	_, err := a.account.iam.UntagUser(ctx, &iam.UntagUserInput{UserName: &user.Name, TagKeys: []string{keyTag(r.Target.UID)}})
	if isGone(err) {
		return nil
	}
	return fail(err, "iam:UntagUser", fmt.Sprintf("take the stamp off %s", user))
}
