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

// Orphan is a contained object whose stamped end has passed.
type Orphan struct {
	ObjectName string // for people
	Target     playbooks.Target
	Facet      playbooks.Facet // with the target, identifies the lease that should have ended it
	LeaseID    string          // from the marker
	ExpiredAt  time.Time

	undoFunc func(ctx context.Context) (*activities.Drift, error)
}

// Undo undoes the containment if the object is unchanged.
func (o Orphan) Undo(ctx context.Context) (*activities.Drift, error) { return o.undoFunc(ctx) }

// maxAccountPages limits how much of an account one sweep reads.
const maxAccountPages = 200

// FindOrphans returns everything that this package contained in the account and whose stamped end is before a time.
func (a *Account) FindOrphans(ctx context.Context, before time.Time) ([]Orphan, error) {
	var out []Orphan
	pages := iam.NewGetAccountAuthorizationDetailsPaginator(a.iam, &iam.GetAccountAuthorizationDetailsInput{
		Filter: []types.EntityType{types.EntityTypeRole, types.EntityTypeUser},
	})
	for n := 0; pages.HasMorePages() && n < maxAccountPages; n++ {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return out, wrapError(err, "iam:GetAccountAuthorizationDetails", "search the account")
		}
		for _, r := range page.RoleDetailList {
			p := principal{
				Kind: playbooks.TargetRole, Name: awssdk.ToString(r.RoleName), ID: awssdk.ToString(r.RoleId),
				ARN: awssdk.ToString(r.Arn),
			}
			out = append(out, a.orphanedPolicies(p, r.RolePolicyList, before)...)
			out = append(out, a.orphanedTrust(p, decodeURLEncoded(awssdk.ToString(r.AssumeRolePolicyDocument)), before)...)
		}
		for _, u := range page.UserDetailList {
			p := principal{
				Kind: playbooks.TargetUser, Name: awssdk.ToString(u.UserName), ID: awssdk.ToString(u.UserId),
				ARN: awssdk.ToString(u.Arn),
			}
			out = append(out, a.orphanedPolicies(p, u.UserPolicyList, before)...)
			out = append(out, a.orphanedKeys(p, u.Tags, before)...)
		}
	}
	return out, nil
}

func (a *Account) orphanedPolicies(p principal, policies []types.PolicyDetail, before time.Time) []Orphan {
	var out []Orphan
	for _, policy := range policies {
		name := awssdk.ToString(policy.PolicyName)
		have, err := parseDenyAll(decodeURLEncoded(awssdk.ToString(policy.PolicyDocument)))
		if err != nil || !isStanchPolicy(name) || !have.ExpiresAt.Before(before) {
			continue
		}
		o := Orphan{
			ObjectName: fmt.Sprintf("policy %s of %s", name, p), Target: p.target("", ""),
			Facet: playbooks.FacetIdentity, ExpiredAt: have.ExpiresAt,
		}
		for _, prefix := range []string{revokePrefix, denyPodPrefix, denyUserPrefix} {
			if lease, ok := strings.CutPrefix(name, prefix); ok {
				o.LeaseID = lease
			}
		}
		if uid := have.Condition["StringEquals"][podUIDTagKey]; uid != "" {
			o.Target = playbooks.Target{Kind: playbooks.TargetPod, UID: uid}
		}
		o.undoFunc = func(ctx context.Context) (*activities.Drift, error) {
			return a.undoPolicy(ctx, p.target("", ""), name, nil)
		}
		out = append(out, o)
	}
	return out
}

// orphanedTrust returns a role whose trust policy still denies. Statements of others stay.
func (a *Account) orphanedTrust(p principal, text string, before time.Time) []Orphan {
	t, err := parseTrustPolicy(text)
	if err != nil {
		return nil
	}
	_, holds, _ := t.splitOwnStatements()
	if len(holds) == 0 || slices.ContainsFunc(holds, func(h trustDeny) bool { return !h.expiresAt.Before(before) }) {
		return nil
	}
	o := Orphan{
		ObjectName: fmt.Sprintf("the trust policy of %s", p), Target: p.target("", ""),
		Facet: playbooks.FacetTrust, LeaseID: holds[0].shortLeaseID, ExpiredAt: holds[0].expiresAt,
	}
	o.undoFunc = func(ctx context.Context) (*activities.Drift, error) {
		now, err := a.findPrincipal(ctx, p.target("", ""))
		if err != nil {
			return nil, refuseIfGone(err)
		}
		t, err := parseTrustPolicy(now.trustPolicyText)
		if err != nil {
			return nil, err
		}
		rest, holds, _ := t.splitOwnStatements()
		if len(holds) == 0 || slices.ContainsFunc(holds, func(h trustDeny) bool { return !h.expiresAt.Before(before) }) {
			return nil, nil // it was ended or renewed meanwhile
		}
		return nil, (&denyAssumeAction{a}).putTrustPolicy(ctx, now, rest.render())
	}
	return []Orphan{o}
}

func (a *Account) orphanedKeys(p principal, tags []types.Tag, before time.Time) []Orphan {
	var out []Orphan
	for _, tag := range tags {
		id, ok := strings.CutPrefix(awssdk.ToString(tag.Key), keyTagName(""))
		stamp, err := parseKeyExpiryMarker(awssdk.ToString(tag.Value))
		if !ok || err != nil || !stamp.expiresAt.Before(before) {
			continue
		}
		target := playbooks.Target{Kind: playbooks.TargetKey, Name: p.Name, UID: id}
		out = append(out, Orphan{
			ObjectName: target.String(), Target: target, Facet: playbooks.FacetIdentity, LeaseID: stamp.leaseID,
			ExpiredAt: stamp.expiresAt,
			undoFunc: func(ctx context.Context) (*activities.Drift, error) {
				return (&disableKeyAction{a}).Undo(ctx, activities.Request{Target: target, LeaseID: stamp.leaseID}, nil, nil)
			},
		})
	}
	return out
}
