package aws

import (
	"context"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
)

// probeActions are the actions that a simulation asks about: harmless, and of several services. All must be denied.
var probeActions = []string{"s3:GetObject", "sts:AssumeRole", "ec2:DescribeInstances"}

// sessionContextKey is a key of a session's context, such as the time at which it was issued.
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

// simulationResult is what a simulation answered.
type simulationResult struct {
	denied      bool
	detail      string // what it answered, or why it did not
	unavailable bool   // it did not answer
}

// simulateDeny asks AWS whether such a session would be denied everything. An error is the context's end only: that the
// service does not answer is an answer.
func (a *Account) simulateDeny(ctx context.Context, p principal, keys ...sessionContextKey) (simulationResult, error) {
	in := &iam.SimulatePrincipalPolicyInput{PolicySourceArn: &p.ARN, ActionNames: probeActions}
	// The end of a deny is a condition on the time: asked is what holds now.
	now := sessionContextKey{name: currentTimeKey, value: time.Now().UTC().Format(time.RFC3339), isDate: true}
	for _, k := range append([]sessionContextKey{now}, keys...) {
		kind := types.ContextKeyTypeEnumString
		if k.isDate {
			kind = types.ContextKeyTypeEnumDate
		}
		in.ContextEntries = append(in.ContextEntries, types.ContextEntry{ContextKeyName: &k.name, ContextKeyType: kind, ContextKeyValues: []string{k.value}})
	}
	out, err := a.iam.SimulatePrincipalPolicy(ctx, in)
	if ctx.Err() != nil {
		return simulationResult{}, fmt.Errorf("simulate the policies of %s: %w", p, ctx.Err())
	}
	switch {
	case isAccessDenied(err):
		return simulationResult{unavailable: true, detail: "Stanch may not simulate policies (iam:SimulatePrincipalPolicy), so the effect was not observed"}, nil
	case err != nil:
		return simulationResult{unavailable: true, detail: "the policy simulation did not answer, so the effect was not observed: " + truncate(err.Error(), 300)}, nil
	case len(out.EvaluationResults) == 0:
		return simulationResult{unavailable: true, detail: "the policy simulation answered nothing, so the effect was not observed"}, nil
	}
	for _, r := range out.EvaluationResults {
		if r.EvalDecision != types.PolicyEvaluationDecisionTypeExplicitDeny {
			return simulationResult{detail: fmt.Sprintf("the policy simulation says that %s is %s for %s", p, r.EvalDecision, truncate(awssdk.ToString(r.EvalActionName), 60))}, nil
		}
	}
	return simulationResult{denied: true, detail: "the policy simulation says that such a session is denied everything"}, nil
}

// maxPropagationDelay is how long a simulation may take to see what was written: IAM is consistent in the end only.
const maxPropagationDelay = 8 * time.Second

// simulateUntilDenied simulates until the deny is seen, or until it should have been.
func (a *Account) simulateUntilDenied(ctx context.Context, p principal, keys ...sessionContextKey) (simulationResult, error) {
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
