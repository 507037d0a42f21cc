package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/iam"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
)

// denyAssumeAction is `contain: aws.irsa.untrust`.
type denyAssumeAction struct{ account *Account }

var (
	_ activities.Containment  = (*denyAssumeAction)(nil)
	_ activities.OrphanFinder = (*denyAssumeAction)(nil)
)

// denyAssumeParams are the parameters of aws.irsa.untrust.
type denyAssumeParams struct {
	ServiceAccounts []string `json:"service_accounts" jsonschema:"required" doc:"service accounts (namespace/name) that may no longer assume the role"`
}

var serviceAccountPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,252})/[a-z0-9]([a-z0-9.-]{0,252})$`)

// maxDeniedSubjects limits the subjects: a trust policy has at most 2048 characters unless the quota was raised.
const maxDeniedSubjects = 10

// Check reports the first invalid service account. An empty name comes from an expression without a result; Plan
// refuses it.
func (p *denyAssumeParams) Check() (param, problem string) {
	if len(p.ServiceAccounts) > maxDeniedSubjects {
		return "service_accounts", fmt.Sprintf("%d service accounts; a trust policy has room for %d", len(p.ServiceAccounts),
			maxDeniedSubjects)
	}
	for _, s := range p.ServiceAccounts {
		if s != "" && !serviceAccountPattern.MatchString(s) {
			return "service_accounts", fmt.Sprintf("invalid service account `%s`; use the form namespace/name", plainText(s, 60))
		}
	}
	return "", ""
}

func (p *denyAssumeParams) subjectClaims() []string {
	var out []string
	for _, s := range p.ServiceAccounts {
		namespace, name, _ := strings.Cut(s, "/")
		out = append(out, "system:serviceaccount:"+namespace+":"+name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (*denyAssumeAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name:                "aws.irsa.untrust",
		Verb:                playbooks.VerbContain,
		Class:               playbooks.ClassDisrupt,
		Facet:               playbooks.FacetTrust,
		Targets:             []playbooks.TargetKind{playbooks.TargetRole},
		Reversible:          true,
		EndMechanism:        playbooks.EndByProvider,
		D3FENDTechnique:     "D3-AL",
		AttemptTimeout:      30 * time.Second,
		Params:              denyAssumeParams{},
		Doc:                 "Change the role's trust policy so that these service accounts can no longer obtain credentials for it (IRSA).",
		PlanIAMPermissions:  []playbooks.IAMPermission{rolePermission("iam:GetRole")},
		ApplyIAMPermissions: []playbooks.IAMPermission{rolePermission("iam:GetRole", "iam:UpdateAssumeRolePolicy")},
		CombineParams:       unionOfSubjects,
	}
}

// unionOfSubjects returns the union of two holders' subjects.
func unionOfSubjects(a, b json.RawMessage) (json.RawMessage, error) {
	var x, y denyAssumeParams
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return nil, fmt.Errorf("read the parameters of aws.irsa.untrust: %w", err)
	}
	x.ServiceAccounts = append(x.ServiceAccounts, y.ServiceAccounts...)
	slices.Sort(x.ServiceAccounts)
	x.ServiceAccounts = slices.Compact(x.ServiceAccounts)
	if _, problem := x.Check(); problem != "" {
		return nil, errors.New(problem)
	}
	return encodePrior(x)
}

// trustPrior is the exact trust policy before the lease.
type trustPrior struct {
	Role            principal `json:"role"`
	TrustPolicyText string    `json:"trust_policy_text"`
}

// readTrustPolicy reads the role and its trust policy.
func (a *denyAssumeAction) readTrustPolicy(ctx context.Context, r activities.Request) (principal, trustPolicy,
	denyAssumeParams, error,
) {
	params, err := activities.DecodeParams[denyAssumeParams](r)
	if err != nil {
		return principal{}, trustPolicy{}, params, err
	}
	if err := a.account.checkConfigured(); err != nil {
		return principal{}, trustPolicy{}, params, err
	}
	p, err := a.account.findPrincipal(ctx, r.Target)
	if err != nil {
		return p, trustPolicy{}, params, err
	}
	t, err := parseTrustPolicy(p.trustPolicyText)
	if err != nil {
		return p, t, params, activities.Refusef("%s: %v", p, err)
	}
	return p, t, params, nil
}

// Plan returns which service accounts would be denied.
func (a *denyAssumeAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	p, t, params, err := a.readTrustPolicy(ctx, r)
	if err != nil {
		return activities.Plan{}, err
	}
	if err := a.account.refuseProtected(ctx, p); err != nil {
		return activities.Plan{}, err
	}
	rest, holds, _ := t.splitOwnStatements()
	plan := activities.Plan{AlreadyHeld: len(holds) > 0}
	switch {
	case len(params.subjectClaims()) == 0 || slices.Contains(params.ServiceAccounts, ""):
		return plan, activities.Refusef("missing service accounts that %s should no longer trust", p)
	case len(rest.identityProviders()) == 0:
		return plan, activities.Refusef("%s does not trust the identity provider of a cluster, so IRSA does not use it", p)
	}
	for _, s := range params.subjectClaims() {
		if !rest.allowsSubject(s) {
			return plan, activities.Refusef("%s does not trust %s by web identity; nothing to deny", p, s)
		}
	}
	if n := policySize(rest.withDeny(params.subjectClaims(), "x", time.Now()).render()); n > 2048 {
		plan.Warnings = append(
			plan.Warnings,
			fmt.Sprintf("the trust policy will have %d characters; more than 2048 requires a quota increase", n),
		)
	}
	plan.Changes = []string{fmt.Sprintf("deny %s the right to assume %s (%s), in its trust policy",
		strings.Join(params.subjectClaims(), " and "), p, p.ID)}
	plan.Warnings = append(
		plan.Warnings,
		fmt.Sprintf(
			"existing sessions stay valid for up to %s; `aws.role.revoke-sessions` revokes them too",
			duration.Format(p.maxSession),
		),
	)
	plan.PriorState, err = encodePrior(trustPrior{Role: p, TrustPolicyText: originalTrustPolicy(p, t)})
	return plan, err
}

// originalTrustPolicy returns the trust policy as it was before any lease.
func originalTrustPolicy(p principal, t trustPolicy) string {
	rest, holds, _ := t.splitOwnStatements()
	if len(holds) == 0 {
		return p.trustPolicyText
	}
	return rest.render()
}

// Apply adds the deny and reads it back. AWS cannot simulate trust policies.
func (a *denyAssumeAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	p, t, params, err := a.readTrustPolicy(ctx, r)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := a.account.refuseProtected(ctx, p); err != nil {
		return activities.Effect{}, err
	}
	rest, holds, _ := t.splitOwnStatements()
	until := truncateExpiry(r.ExpiresAt)
	for _, h := range holds {
		if h.shortLeaseID != shortLeaseID(r.LeaseID) {
			return activities.Effect{}, activities.Refusef("the trust policy of %s is under another lease until %s", p,
				h.expiresAt.Format(time.RFC3339))
		}
		if err := activities.RefuseEarlyEnd(r, h.expiresAt, until); err != nil {
			return activities.Effect{}, err
		}
	}
	want := rest.withDeny(params.subjectClaims(), r.LeaseID, until).render()
	effect := activities.Effect{
		Outcome: playbooks.OutcomeUnverified, AppliedAt: time.Now(),
		Reason: "the trust policy denies it, as read back from IAM; AWS cannot simulate trust policies",
	}
	if canonicalJSON(t.render()) == canonicalJSON(want) {
		return effect, nil
	}
	if err := a.putTrustPolicy(ctx, p, want); err != nil {
		return effect, err
	}
	effect.AppliedAt = time.Now()
	again, err := a.account.findPrincipal(ctx, p.target("", ""))
	if errors.Is(err, activities.ErrTargetGone) {
		return effect, err
	}
	if err == nil && canonicalJSON(again.trustPolicyText) != canonicalJSON(want) {
		err = fmt.Errorf("the trust policy of %s differs from what was just written; another writer is also changing it", p)
	}
	return effect, err
}

func (a *denyAssumeAction) putTrustPolicy(ctx context.Context, p principal, text string) error {
	_, err := a.account.iam.UpdateAssumeRolePolicy(ctx, &iam.UpdateAssumeRolePolicyInput{
		RoleName:       &p.Name,
		PolicyDocument: &text,
	})
	return wrapError(err, "iam:UpdateAssumeRolePolicy", fmt.Sprintf("write the trust policy of %s", p))
}

// Verify reports whether the trust policy denies every named service account.
func (a *denyAssumeAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	p, t, params, err := a.readTrustPolicy(ctx, r)
	if err != nil {
		return false, "", err
	}
	rest, holds, theirs := t.splitOwnStatements()
	if len(holds) == 0 || holds[0].shortLeaseID != shortLeaseID(r.LeaseID) {
		return false, fmt.Sprintf("the deny in the trust policy of %s was removed", p), nil
	}
	want := rest.withDeny(params.subjectClaims(), r.LeaseID, holds[0].expiresAt)
	_, _, wanted := want.splitOwnStatements()
	if canonicalJSON(trustPolicy{statements: theirs}.render()) != canonicalJSON(trustPolicy{statements: wanted}.render()) {
		return false, fmt.Sprintf("the deny in the trust policy of %s was changed", p), nil
	}
	return true, "the trust policy denies it", nil
}

// Undo restores the saved trust policy exactly, unless someone else changed it since.
func (a *denyAssumeAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	prior, err := activities.DecodePriorState[trustPrior](raw)
	if err != nil {
		return nil, err
	}
	p, t, params, err := a.readTrustPolicy(ctx, r)
	if errors.Is(err, activities.ErrTargetGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rest, holds, theirs := t.splitOwnStatements()
	holds = slices.DeleteFunc(holds, func(h trustDeny) bool { return h.shortLeaseID != shortLeaseID(r.LeaseID) })
	if len(holds) == 0 {
		return nil, nil // nothing of this lease is in force; a request alone must not set a trust policy
	}
	for _, h := range holds {
		if err := activities.RefuseEarlyUndo(h.expiresAt, grant); err != nil {
			return nil, err
		}
	}
	_, _, wanted := rest.withDeny(params.subjectClaims(), r.LeaseID, holds[0].expiresAt).splitOwnStatements()
	switch {
	case canonicalJSON(rest.render()) != canonicalJSON(normalizeTrustPolicy(prior.TrustPolicyText)):
		return &activities.Drift{
			Detail: fmt.Sprintf(
				"the trust policy of %s has been changed since then: it is now %s, but was %s; remove Stanch's statements manually",
				p,
				plainText(rest.render(), 400),
				plainText(prior.TrustPolicyText, 400),
			),
		}, nil
	case canonicalJSON(trustPolicy{statements: theirs}.render()) !=
		canonicalJSON(trustPolicy{statements: wanted}.render()):
		return &activities.Drift{Detail: fmt.Sprintf("the deny in the trust policy of %s has been changed since then: %s", p,
			plainText(trustPolicy{statements: theirs}.render(), 400))}, nil
	}
	if err := a.putTrustPolicy(ctx, p, prior.TrustPolicyText); err != nil {
		return nil, err
	}
	again, err := a.account.findPrincipal(ctx, p.target("", ""))
	if err == nil && canonicalJSON(again.trustPolicyText) != canonicalJSON(prior.TrustPolicyText) {
		err = fmt.Errorf("the trust policy of %s differs from what was restored; another writer is also changing it", p)
	}
	if errors.Is(err, activities.ErrTargetGone) {
		err = nil
	}
	return nil, err
}

// normalizeTrustPolicy returns a trust policy with its statements in a list.
func normalizeTrustPolicy(text string) string {
	t, err := parseTrustPolicy(text)
	if err != nil {
		return text
	}
	return t.render()
}

// FindOrphans returns the roles whose trust policy still denies although every stamped end has passed.
func (a *denyAssumeAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	if a.account == nil {
		return nil, nil
	}
	account, err := a.account.readAccount(ctx)
	var out []activities.Orphan
	for _, r := range account.roles {
		p := principalFromRole(r)
		_, expired, parseErr := expiredTrustDenies(p.trustPolicyText, before)
		if parseErr != nil || len(expired) == 0 {
			continue // a policy that others wrote may be in a form that this version does not know
		}
		out = append(out, activities.Orphan{
			ObjectName: fmt.Sprintf("the trust policy of %s", p), Target: p.target("", ""), Facet: playbooks.FacetTrust,
			Lease: activities.LeaseStamp{ID: expired[0].shortLeaseID, ExpiresAt: expired[0].expiresAt},
			Undo: func(ctx context.Context) (*activities.Drift, error) {
				return nil, a.removeExpiredDenies(ctx, p, before)
			},
		})
	}
	return out, err
}

// expiredTrustDenies returns the denies of a trust policy, and the policy without them. It returns none if one has not
// ended.
func expiredTrustDenies(text string, before time.Time) (rest trustPolicy, expired []trustDeny, err error) {
	t, err := parseTrustPolicy(text)
	if err != nil {
		return t, nil, err
	}
	rest, expired, _ = t.splitOwnStatements()
	if slices.ContainsFunc(expired, func(d trustDeny) bool { return !d.expiresAt.Before(before) }) {
		return rest, nil, nil
	}
	return rest, expired, nil
}

// removeExpiredDenies removes the statements of leases from a trust policy. Statements of others stay.
func (a *denyAssumeAction) removeExpiredDenies(ctx context.Context, p principal, before time.Time) error {
	now, err := a.account.findPrincipal(ctx, p.target("", ""))
	if err != nil {
		return err
	}
	rest, expired, err := expiredTrustDenies(now.trustPolicyText, before)
	if err != nil {
		return err
	}
	if len(expired) == 0 {
		return nil // it was ended or renewed meanwhile
	}
	return a.putTrustPolicy(ctx, now, rest.render())
}
