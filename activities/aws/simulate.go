package aws

import (
	"context"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
)

// probes are the actions that a simulation asks about: harmless, and of several services. All must be denied.
var probes = []string{"s3:GetObject", "sts:AssumeRole", "ec2:DescribeInstances"}

// sessionKey is a key of a session's context, such as the time at which it was issued.
type sessionKey struct {
	name, value string
	date        bool
}

func issuedAt(t time.Time) sessionKey {
	return sessionKey{name: issueTime, value: t.UTC().Format(time.RFC3339), date: true}
}

func ofPod(uid string) sessionKey { return sessionKey{name: podTag, value: uid} }

// simulated is what a simulation answered.
type simulated struct {
	denied bool
	detail string // what it answered, or why it did not
	silent bool   // it did not answer
}

// simulate asks AWS whether such a session would be denied everything. An error is the context's end only: that the
// service does not answer is an answer.
func (a *Account) simulate(ctx context.Context, p principal, keys ...sessionKey) (simulated, error) {
	in := &iam.SimulatePrincipalPolicyInput{PolicySourceArn: &p.ARN, ActionNames: probes}
	// The end of a deny is a condition on the time: asked is what holds now.
	now := sessionKey{name: currentTime, value: time.Now().UTC().Format(time.RFC3339), date: true}
	for _, k := range append([]sessionKey{now}, keys...) {
		kind := types.ContextKeyTypeEnumString
		if k.date {
			kind = types.ContextKeyTypeEnumDate
		}
		in.ContextEntries = append(in.ContextEntries, types.ContextEntry{ContextKeyName: &k.name, ContextKeyType: kind, ContextKeyValues: []string{k.value}})
	}
	out, err := a.iam.SimulatePrincipalPolicy(ctx, in)
	if ctx.Err() != nil {
		return simulated{}, fmt.Errorf("simulate the policies of %s: %w", p, ctx.Err())
	}
	switch {
	case isDenied(err):
		return simulated{silent: true, detail: "Stanch may not simulate policies (iam:SimulatePrincipalPolicy), so the effect was not observed"}, nil
	case err != nil:
		return simulated{silent: true, detail: "the policy simulation did not answer, so the effect was not observed: " + clip(err.Error(), 300)}, nil
	case len(out.EvaluationResults) == 0:
		return simulated{silent: true, detail: "the policy simulation answered nothing, so the effect was not observed"}, nil
	}
	for _, r := range out.EvaluationResults {
		if r.EvalDecision != types.PolicyEvaluationDecisionTypeExplicitDeny {
			return simulated{detail: fmt.Sprintf("the policy simulation says that %s is %s for %s", p, r.EvalDecision, clip(awssdk.ToString(r.EvalActionName), 60))}, nil
		}
	}
	return simulated{denied: true, detail: "the policy simulation says that such a session is denied everything"}, nil
}

// settle is how long a simulation may take to see what was written: IAM is consistent in the end only.
const settle = 8 * time.Second

// settled simulates until the deny is seen, or until it should have been.
func (a *Account) settled(ctx context.Context, p principal, keys ...sessionKey) (simulated, error) {
	begin := time.Now()
	for {
		s, err := a.simulate(ctx, p, keys...)
		if err != nil || s.denied || s.silent || time.Since(begin) > settle {
			return s, err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return s, err
		}
	}
}
