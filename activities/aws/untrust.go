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
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
)

// untrust is `contain: aws.irsa.untrust`.
type untrust struct{ account *Account }

var _ activities.Containment = (*untrust)(nil)

// untrustParams are the parameters of aws.irsa.untrust.
type untrustParams struct {
	ServiceAccounts []string `json:"service_accounts" jsonschema:"required" doc:"who may no longer assume the role: namespace/name of service accounts"`
}

var accountName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,252})/[a-z0-9]([a-z0-9.-]{0,252})$`)

// maxSubjects bounds them: a trust policy has 2048 characters unless the quota was raised.
const maxSubjects = 10

// Check finds what is no service account. An empty name is one that an expression did not find; Plan refuses it.
func (p *untrustParams) Check() (param, problem string) {
	if len(p.ServiceAccounts) > maxSubjects {
		return "service_accounts", fmt.Sprintf("%d service accounts; at most %d fit into a trust policy", len(p.ServiceAccounts), maxSubjects)
	}
	for _, s := range p.ServiceAccounts {
		if s != "" && !accountName.MatchString(s) {
			return "service_accounts", fmt.Sprintf("`%s` is not namespace/name", clip(s, 60))
		}
	}
	return "", ""
}

func (p *untrustParams) subjects() []string {
	var out []string
	for _, s := range p.ServiceAccounts {
		namespace, name, _ := strings.Cut(s, "/")
		out = append(out, "system:serviceaccount:"+namespace+":"+name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (*untrust) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "aws.irsa.untrust", Verb: playbooks.VerbContain, Class: playbooks.ClassDisrupt, Facet: playbooks.FacetTrust,
		Targets: []playbooks.TargetKind{playbooks.TargetRole}, Reversible: true, EndMechanism: playbooks.EndByProvider, D3FENDTechnique: "D3-AL", AttemptTimeout: 30 * time.Second, Params: untrustParams{},
		Doc:       "Tighten the role's trust policy so that these service accounts get no new credentials of it (IRSA).",
		PlanIAMPermissions: []playbooks.IAMPermission{roleRight("iam:GetRole")}, ApplyIAMPermissions: []playbooks.IAMPermission{roleRight("iam:GetRole", "iam:UpdateAssumeRolePolicy")},
		CombineParams: everySubject,
	}
}

// everySubject is the union of what two holders keep out.
func everySubject(a, b json.RawMessage) (json.RawMessage, error) {
	var x, y untrustParams
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return nil, fmt.Errorf("parameters of aws.irsa.untrust: %w", err)
	}
	x.ServiceAccounts = append(x.ServiceAccounts, y.ServiceAccounts...)
	slices.Sort(x.ServiceAccounts)
	x.ServiceAccounts = slices.Compact(x.ServiceAccounts)
	if _, problem := x.Check(); problem != "" {
		return nil, errors.New(problem)
	}
	return saved(x)
}

// trustPrior is what was there before, to the letter.
type trustPrior struct {
	Role  principal `json:"role"`
	Trust string    `json:"trust"`
}

// look reads the role and its trust policy.
func (a *untrust) look(ctx context.Context, r activities.Request) (principal, trust, untrustParams, error) {
	params, err := activities.Params[untrustParams](r)
	if err != nil {
		return principal{}, trust{}, params, err
	}
	if err := a.account.ready(); err != nil {
		return principal{}, trust{}, params, err
	}
	p, err := a.account.find(ctx, r.Target)
	if err != nil {
		return p, trust{}, params, err
	}
	t, err := readTrust(p.trust)
	if err != nil {
		return p, t, params, activities.Refuse("%s: %v", p, err)
	}
	return p, t, params, nil
}

// Plan says who would be kept out.
func (a *untrust) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	p, t, params, err := a.look(ctx, r)
	if err != nil {
		return activities.Plan{}, whenPlanning(err)
	}
	if err := a.account.protect(ctx, p); err != nil {
		return activities.Plan{}, err
	}
	rest, holds, _ := t.split()
	plan := activities.Plan{Held: len(holds) > 0}
	switch {
	case len(params.subjects()) == 0 || slices.Contains(params.ServiceAccounts, ""):
		return plan, activities.Refuse("no service account is named that %s should no longer trust", p)
	case len(rest.providers()) == 0:
		return plan, activities.Refuse("%s trusts no identity provider of a cluster: it is not used by IRSA", p)
	}
	for _, s := range params.subjects() {
		if !rest.admits(s) {
			return plan, activities.Refuse("%s does not trust %s by a web identity: there is nothing to take away", p, s)
		}
	}
	if n := weight(rest.with(params.subjects(), "x", time.Now()).text()); n > 2048 {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("the trust policy will have %d characters; more than 2048 need a raised quota", n))
	}
	plan.Changes = []string{fmt.Sprintf("deny %s to assume %s (%s), in its trust policy", strings.Join(params.subjects(), " and "), p, p.ID)}
	plan.Warnings = append(plan.Warnings, fmt.Sprintf("sessions that they have go on for up to %s: `aws.role.revoke-sessions` ends them too", duration.Format(p.longest)))
	plan.Prior, err = saved(trustPrior{Role: p, Trust: original(p, t)})
	return plan, err
}

// original is the trust policy as it was before any lease.
func original(p principal, t trust) string {
	rest, holds, _ := t.split()
	if len(holds) == 0 {
		return p.trust
	}
	return rest.text()
}

// Apply adds the deny. It reads again what it wrote; AWS has no simulation of trust policies.
func (a *untrust) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	p, t, params, err := a.look(ctx, r)
	if err != nil {
		return activities.Effect{}, whenPlanning(err)
	}
	if err := a.account.protect(ctx, p); err != nil {
		return activities.Effect{}, err
	}
	rest, holds, _ := t.split()
	until := stamped(r.Until)
	for _, h := range holds {
		if h.lease != shortID(r.Lease) {
			return activities.Effect{}, activities.Refuse("the trust policy of %s is held by another lease until %s", p, h.until.Format(time.RFC3339))
		}
		if err := mayShorten(r, h.until, until); err != nil {
			return activities.Effect{}, err
		}
	}
	want := rest.with(params.subjects(), r.Lease, until).text()
	effect := activities.Effect{Outcome: playbooks.OutcomeUnverified, AppliedAt: time.Now(), Reason: "the trust policy denies it, read back from IAM; AWS offers no simulation of trust policies"}
	if canonical(t.text()) == canonical(want) {
		return effect, nil
	}
	if err := a.put(ctx, p, want); err != nil {
		return effect, err
	}
	effect.AppliedAt = time.Now()
	again, err := a.account.find(ctx, p.target("", ""))
	if errors.Is(err, activities.ErrGone) {
		return effect, whenPlanning(err)
	}
	if err == nil && canonical(again.trust) != canonical(want) {
		err = fmt.Errorf("the trust policy of %s is not what was just written; somebody else writes it too", p)
	}
	return effect, err
}

func (a *untrust) put(ctx context.Context, p principal, text string) error {
	_, err := a.account.iam.UpdateAssumeRolePolicy(ctx, &iam.UpdateAssumeRolePolicyInput{RoleName: &p.Name, PolicyDocument: &text})
	return fail(err, "iam:UpdateAssumeRolePolicy", fmt.Sprintf("write the trust policy of %s", p))
}

// Verify reads whether the deny is there, for everybody who was named.
func (a *untrust) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	p, t, params, err := a.look(ctx, r)
	if err != nil {
		return false, "", err
	}
	rest, holds, theirs := t.split()
	if len(holds) == 0 || holds[0].lease != shortID(r.Lease) {
		return false, fmt.Sprintf("the deny in the trust policy of %s was taken away", p), nil
	}
	want := rest.with(params.subjects(), r.Lease, holds[0].until)
	_, _, wanted := want.split()
	if canonical(trust{statements: theirs}.text()) != canonical(trust{statements: wanted}.text()) {
		return false, fmt.Sprintf("the deny in the trust policy of %s was changed", p), nil
	}
	return true, "the trust policy denies it", nil
}

// Undo writes the trust policy that was saved, to the letter, unless somebody else changed it since.
func (a *untrust) Undo(ctx context.Context, r activities.Request, raw json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	prior, err := activities.Saved[trustPrior](raw)
	if err != nil {
		return nil, err
	}
	p, t, params, err := a.look(ctx, r)
	if errors.Is(err, activities.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rest, holds, theirs := t.split()
	holds = slices.DeleteFunc(holds, func(h trustHold) bool { return h.lease != shortID(r.Lease) })
	if len(holds) == 0 {
		return nil, nil // nothing of this lease is in force; a request alone must not set a trust policy
	}
	for _, h := range holds {
		if err := notYet(h.until, grant); err != nil {
			return nil, err
		}
	}
	_, _, wanted := rest.with(params.subjects(), r.Lease, holds[0].until).split()
	switch {
	case canonical(rest.text()) != canonical(normal(prior.Trust)):
		return &activities.Drift{Detail: fmt.Sprintf("the trust policy of %s was changed since: it is now %s, and was %s; take the statements of Stanch out by hand",
			p, clip(rest.text(), 400), clip(prior.Trust, 400))}, nil
	case canonical(trust{statements: theirs}.text()) != canonical(trust{statements: wanted}.text()):
		return &activities.Drift{Detail: fmt.Sprintf("the deny in the trust policy of %s was changed since: %s", p, clip(trust{statements: theirs}.text(), 400))}, nil
	}
	if err := a.put(ctx, p, prior.Trust); err != nil {
		return nil, err
	}
	again, err := a.account.find(ctx, p.target("", ""))
	if err == nil && canonical(again.trust) != canonical(prior.Trust) {
		err = fmt.Errorf("the trust policy of %s is not what was restored; somebody else writes it too", p)
	}
	if errors.Is(err, activities.ErrGone) {
		err = nil
	}
	return nil, err
}

// normal is a trust policy with its statements in a list.
func normal(text string) string {
	t, err := readTrust(text)
	if err != nil {
		return text
	}
	return t.text()
}
