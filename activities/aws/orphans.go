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

const (
	// maxAccountPages limits how much of an account one reading reads.
	maxAccountPages = 200
	// accountReadingMaxAge is how long a reading is used again. The actions search one after the other, so one sweep
	// reads the account once. An undo always reads its object again.
	accountReadingMaxAge = time.Minute
)

// accountReading contains the roles and users of an account that Stanch may have changed, as read at a time.
type accountReading struct {
	roles  []types.RoleDetail
	users  []types.UserDetail
	readAt time.Time
	err    error // why the reading is incomplete
}

// readAccount reads every role and user and keeps those that Stanch may have changed, or returns the last reading if it
// is recent. With an error, it returns what was read until then; a failed reading is also used again, so that a
// throttled account is not read once for every action.
func (a *Account) readAccount(ctx context.Context) (accountReading, error) {
	a.readingMu.Lock()
	defer a.readingMu.Unlock()
	if !a.lastReading.readAt.IsZero() && time.Since(a.lastReading.readAt) < accountReadingMaxAge {
		return a.lastReading, a.lastReading.err
	}
	var out accountReading
	pages := iam.NewGetAccountAuthorizationDetailsPaginator(a.iam, &iam.GetAccountAuthorizationDetailsInput{
		Filter: []types.EntityType{types.EntityTypeRole, types.EntityTypeUser},
	})
	for n := 0; pages.HasMorePages() && n < maxAccountPages; n++ {
		page, err := pages.NextPage(ctx)
		if err != nil {
			out.err = wrapError(err, "iam:GetAccountAuthorizationDetails", "search the account")
			break
		}
		for _, r := range page.RoleDetailList {
			if slices.ContainsFunc(r.RolePolicyList, isStanchPolicy) ||
				strings.Contains(awssdk.ToString(r.AssumeRolePolicyDocument), trustStatementIDPrefix) {
				out.roles = append(out.roles, r)
			}
		}
		for _, u := range page.UserDetailList {
			if slices.ContainsFunc(u.UserPolicyList, isStanchPolicy) || slices.ContainsFunc(u.Tags, isKeyTag) {
				out.users = append(out.users, u)
			}
		}
	}
	out.readAt = time.Now()
	a.lastReading = out
	return out, out.err
}

// isStanchPolicy reports whether a policy's name is one of this package.
func isStanchPolicy(p types.PolicyDetail) bool {
	return strings.HasPrefix(awssdk.ToString(p.PolicyName), "stanch-")
}

// isKeyTag reports whether a tag is the expiry marker of a key.
func isKeyTag(t types.Tag) bool { return strings.HasPrefix(awssdk.ToString(t.Key), keyTagName("")) }

func principalFromRole(r types.RoleDetail) principal {
	return principal{
		Kind: playbooks.TargetRole, Name: awssdk.ToString(r.RoleName), ID: awssdk.ToString(r.RoleId),
		ARN: awssdk.ToString(r.Arn), trustPolicyText: decodeURLEncoded(awssdk.ToString(r.AssumeRolePolicyDocument)),
	}
}

func principalFromUser(u types.UserDetail) principal {
	return principal{
		Kind: playbooks.TargetUser, Name: awssdk.ToString(u.UserName), ID: awssdk.ToString(u.UserId),
		ARN: awssdk.ToString(u.Arn),
	}
}

// findOrphanedDenies returns the inline denies with a prefix whose stamped end has passed.
func (a *Account) findOrphanedDenies(ctx context.Context, prefix string,
	before time.Time,
) ([]activities.Orphan, error) {
	if a == nil {
		return nil, nil
	}
	account, err := a.readAccount(ctx)
	var out []activities.Orphan
	for _, r := range account.roles {
		out = append(out, a.orphanedDenies(principalFromRole(r), prefix, r.RolePolicyList, before)...)
	}
	for _, u := range account.users {
		out = append(out, a.orphanedDenies(principalFromUser(u), prefix, u.UserPolicyList, before)...)
	}
	return out, err
}

func (a *Account) orphanedDenies(p principal, prefix string, policies []types.PolicyDetail,
	before time.Time,
) []activities.Orphan {
	var out []activities.Orphan
	for _, policy := range policies {
		name := awssdk.ToString(policy.PolicyName)
		lease, ours := strings.CutPrefix(name, prefix)
		have, err := parseDenyAll(decodeURLEncoded(awssdk.ToString(policy.PolicyDocument)))
		if err != nil || !ours || !have.ExpiresAt.Before(before) {
			continue
		}
		target := p.target("", "")
		if uid := have.Condition["StringEquals"][podUIDTagKey]; uid != "" {
			target = playbooks.Target{Kind: playbooks.TargetPod, UID: uid}
		}
		out = append(out, activities.Orphan{
			ObjectName: fmt.Sprintf("policy %s of %s", name, p), Target: target, Facet: playbooks.FacetIdentity,
			Lease: activities.LeaseStamp{ID: lease, ExpiresAt: have.ExpiresAt},
			Undo: func(ctx context.Context) (*activities.Drift, error) {
				return a.undoPolicy(ctx, p.target("", ""), name, nil)
			},
		})
	}
	return out
}
