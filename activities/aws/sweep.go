package aws

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"stanch/activities"
	"stanch/playbooks"
)

// Orphan is something contained whose stamped end has passed.
type Orphan struct {
	Object  string // as people say it
	Target  playbooks.Target
	Facet   playbooks.Facet // with the target, the lease that should have ended it
	Lease   string          // as it is stamped
	Expired time.Time

	undo func(ctx context.Context) (*activities.Drift, error)
}

// Undo takes it back, if it is as it was written.
func (o Orphan) Undo(ctx context.Context) (*activities.Drift, error) { return o.undo(ctx) }

// maxPages bounds how much of an account is looked at in one round.
const maxPages = 200

// Sweep lists everything of this package's in the account whose stamped end is before the time given.
func (a *Account) Sweep(ctx context.Context, before time.Time) ([]Orphan, error) {
	var out []Orphan
	pages := iam.NewGetAccountAuthorizationDetailsPaginator(a.iam, &iam.GetAccountAuthorizationDetailsInput{
		Filter: []types.EntityType{types.EntityTypeRole, types.EntityTypeUser},
	})
	for n := 0; pages.HasMorePages() && n < maxPages; n++ {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return out, fail(err, "iam:GetAccountAuthorizationDetails", "look through the account")
		}
		for _, r := range page.RoleDetailList {
			p := principal{Kind: playbooks.TargetRole, Name: awssdk.ToString(r.RoleName), ID: awssdk.ToString(r.RoleId), ARN: awssdk.ToString(r.Arn)}
			out = append(out, a.strayPolicies(p, r.RolePolicyList, before)...)
			out = append(out, a.strayTrust(p, plainText(awssdk.ToString(r.AssumeRolePolicyDocument)), before)...)
		}
		for _, u := range page.UserDetailList {
			p := principal{Kind: playbooks.TargetUser, Name: awssdk.ToString(u.UserName), ID: awssdk.ToString(u.UserId), ARN: awssdk.ToString(u.Arn)}
			out = append(out, a.strayPolicies(p, u.UserPolicyList, before)...)
			out = append(out, a.strayKeys(p, u.Tags, before)...)
		}
	}
	return out, nil
}

func (a *Account) strayPolicies(p principal, policies []types.PolicyDetail, before time.Time) []Orphan {
	var out []Orphan
	for _, policy := range policies {
		name := awssdk.ToString(policy.PolicyName)
		have, err := readDenyAll(plainText(awssdk.ToString(policy.PolicyDocument)))
		if err != nil || !ours(name) || !have.Until.Before(before) {
			continue
		}
		o := Orphan{Object: fmt.Sprintf("policy %s of %s", name, p), Target: p.target("", ""), Facet: playbooks.FacetIdentity, Expired: have.Until}
		for _, prefix := range []string{revokePrefix, denyPodPrefix, denyUserPrefix} {
			if lease, ok := strings.CutPrefix(name, prefix); ok {
				o.Lease = lease
			}
		}
		if uid := have.Condition["StringEquals"][podTag]; uid != "" {
			o.Target = playbooks.Target{Kind: playbooks.TargetPod, UID: uid}
		}
		o.undo = func(ctx context.Context) (*activities.Drift, error) {
			return a.undoPolicy(ctx, p.target("", ""), name, nil)
		}
		out = append(out, o)
	}
	return out
}

// strayTrust finds a role whose trust policy still denies. What others wrote in it stays as it is.
func (a *Account) strayTrust(p principal, text string, before time.Time) []Orphan {
	t, err := readTrust(text)
	if err != nil {
		return nil
	}
	_, holds, _ := t.split()
	if len(holds) == 0 || slices.ContainsFunc(holds, func(h trustHold) bool { return !h.until.Before(before) }) {
		return nil
	}
	o := Orphan{Object: fmt.Sprintf("the trust policy of %s", p), Target: p.target("", ""), Facet: playbooks.FacetTrust, Lease: holds[0].lease, Expired: holds[0].until}
	o.undo = func(ctx context.Context) (*activities.Drift, error) {
		now, err := a.find(ctx, p.target("", ""))
		if err != nil {
			return nil, whenPlanning(err)
		}
		t, err := readTrust(now.trust)
		if err != nil {
			return nil, err
		}
		rest, holds, _ := t.split()
		if len(holds) == 0 || slices.ContainsFunc(holds, func(h trustHold) bool { return !h.until.Before(before) }) {
			return nil, nil // it was ended, or held anew, meanwhile
		}
		return nil, (&untrust{a}).put(ctx, now, rest.text())
	}
	return []Orphan{o}
}

func (a *Account) strayKeys(p principal, tags []types.Tag, before time.Time) []Orphan {
	var out []Orphan
	for _, tag := range tags {
		id, ok := strings.CutPrefix(awssdk.ToString(tag.Key), keyTag(""))
		stamp, err := readKeyStamp(awssdk.ToString(tag.Value))
		if !ok || err != nil || !stamp.until.Before(before) {
			continue
		}
		target := playbooks.Target{Kind: playbooks.TargetKey, Name: p.Name, UID: id}
		out = append(out, Orphan{
			Object: target.String(), Target: target, Facet: playbooks.FacetIdentity, Lease: stamp.lease, Expired: stamp.until,
			undo: func(ctx context.Context) (*activities.Drift, error) {
				return (&disableKey{a}).Undo(ctx, activities.Request{Target: target, Lease: stamp.lease}, nil, nil)
			},
		})
	}
	return out
}
