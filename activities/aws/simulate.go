package aws

import (
	"context"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
)

// probeActions are the actions of a simulation: harmless, and of several services. All must be denied.
var probeActions = []string{"s3:GetObject", "sts:AssumeRole", "ec2:DescribeInstances"}

// sessionContextKey is a context key of a session, such as the time at which it was issued.
type sessionContextKey struct {
	name, value string
	isDate      bool
}

func issuedAtContext(t time.Time) sessionContextKey {
	return sessionContextKey{name: tokenIssueTimeKey, value: t.UTC().Format(time.RFC3339), isDate: true}
}

func podUIDContext(uid string) sessionContextKey {
	return sessionContextKey{name: podUIDTagKey, value: uid}
}

// simulationResult is the result of a simulation.
type simulationResult struct {
	denied      bool
	detail      string // the result, or why there is none
	unavailable bool   // the simulation failed
}

// simulateDeny asks AWS whether a session would be denied everything. It returns an error only if the context ends; a
// failed simulation is a result.
func (a *Account) simulateDeny(ctx context.Context, p principal, keys ...sessionContextKey) (simulationResult, error) {
	in := &iam.SimulatePrincipalPolicyInput{PolicySourceArn: &p.ARN, ActionNames: probeActions}
	// The end of a deny is a condition on the time, so the simulation uses the current time.
	now := sessionContextKey{name: currentTimeKey, value: time.Now().UTC().Format(time.RFC3339), isDate: true}
	for _, k := range append([]sessionContextKey{now}, keys...) {
		kind := types.ContextKeyTypeEnumString
		if k.isDate {
			kind = types.ContextKeyTypeEnumDate
		}
		in.ContextEntries = append(in.ContextEntries, types.ContextEntry{
			ContextKeyName: &k.name, ContextKeyType: kind,
			ContextKeyValues: []string{k.value},
		})
	}
	out, err := a.iam.SimulatePrincipalPolicy(ctx, in)
	if ctx.Err() != nil {
		return simulationResult{}, fmt.Errorf("simulate the policies of %s: %w", p, ctx.Err())
	}
	switch {
	case isAccessDenied(err):
		return simulationResult{
			unavailable: true,
			detail:      "Stanch is not allowed to simulate policies (iam:SimulatePrincipalPolicy), so the effect is unverified",
		}, nil
	case err != nil:
		return simulationResult{unavailable: true, detail: "the policy simulation failed, so the effect is unverified: " +
			plainText(err.Error(), 300)}, nil
	case len(out.EvaluationResults) == 0:
		return simulationResult{
			unavailable: true,
			detail:      "the policy simulation returned no result, so the effect is unverified",
		}, nil
	}
	for _, r := range out.EvaluationResults {
		if r.EvalDecision != types.PolicyEvaluationDecisionTypeExplicitDeny {
			return simulationResult{detail: fmt.Sprintf("according to the policy simulation, %s is %s for %s", p, r.EvalDecision,
				plainText(awssdk.ToString(r.EvalActionName), 60))}, nil
		}
	}
	return simulationResult{
		denied: true,
		detail: "according to the policy simulation, such a session is denied everything",
	}, nil
}

// maxPropagationDelay is how long a simulation may need to see a change: IAM is eventually consistent.
const maxPropagationDelay = 8 * time.Second

// simulateUntilDenied repeats the simulation until it denies, or until maxPropagationDelay is over.
func (a *Account) simulateUntilDenied(ctx context.Context, p principal, keys ...sessionContextKey) (simulationResult,
	error,
) {
	begin := time.Now()
	for {
		s, err := a.simulateDeny(ctx, p, keys...)
		if err != nil || s.denied || s.unavailable || time.Since(begin) > maxPropagationDelay {
			return s, err
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return s, err
		}
	}
}
