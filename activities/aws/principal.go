package aws

import (
	"context"
	"fmt"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"stanch/activities"
	"stanch/playbooks"
)

// principal is a role or a user as IAM has it now.
type principal struct {
	Kind playbooks.TargetKind `json:"kind"`
	Name string               `json:"name"`
	ID   string               `json:"id"` // RoleId or UserId
	ARN  string               `json:"arn"`

	longest time.Duration // of a role's sessions
	trust   string        // of a role
	role    *iam.GetRoleOutput
	now     time.Time // by IAM's clock
}

func (p principal) String() string { return fmt.Sprintf("%s %s", p.Kind, p.Name) }

// target is the principal as playbooks name it.
func (p principal) target(namespace, account string) playbooks.Target {
	return playbooks.Target{Kind: p.Kind, Namespace: namespace, Name: p.Name, UID: p.ID, Account: accountOf(p.ARN), ARN: p.ARN, ServiceAccount: account}
}

// gone says that the name has another id, or none.
type gone struct{ detail string }

func (g *gone) Error() string { return g.detail }

func (g *gone) Unwrap() error { return activities.ErrGone }

// whenPlanning makes a refusal of what is gone.
func whenPlanning(err error) error {
	if g, ok := err.(*gone); ok { //nolint:errorlint // made here and never wrapped
		return activities.Refuse("%s", g.detail)
	}
	return err
}

// find reads a role or user and makes sure that it is the very one: a *gone error if it is not.
func (a *Account) find(ctx context.Context, t playbooks.Target) (principal, error) {
	if t.UID == "" || t.Name == "" {
		return principal{}, activities.Refuse("the %s has no id: take it from `enrich: aws.identity`", t.Kind)
	}
	var p principal
	var err error
	switch t.Kind {
	case playbooks.TargetRole:
		p, err = a.readRole(ctx, t.Name)
	case playbooks.TargetUser:
		p, err = a.readUser(ctx, t.Name)
	default:
		return principal{}, activities.Refuse("%s is neither a role nor a user", t)
	}
	switch {
	case isGone(err):
		return principal{}, &gone{fmt.Sprintf("%s is gone", t)}
	case err != nil:
		return principal{}, err
	case p.ID != t.UID:
		return principal{}, &gone{fmt.Sprintf("%s with the id %s is gone; the one of that name now has the id %s", t, clip(t.UID, 40), p.ID)}
	case t.ARN != "" && t.ARN != p.ARN:
		return principal{}, activities.Refuse("%s is %s, and not %s: another account's, which Stanch does not work on", t, p.ARN, clip(t.ARN, 200))
	}
	return p, nil
}

// RoleID returns the RoleId of the role with this name, which is never reused.
func (a *Account) RoleID(ctx context.Context, name string) (string, error) {
	p, err := a.readRole(ctx, name)
	if err != nil {
		return "", err
	}
	return p.ID, nil
}

func (a *Account) readRole(ctx context.Context, name string) (principal, error) {
	out, err := a.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: &name})
	if err != nil {
		if isGone(err) {
			return principal{}, err //nolint:wrapcheck // the caller says what is gone
		}
		return principal{}, fail(err, "iam:GetRole", "read role "+name)
	}
	r := out.Role
	p := principal{
		Kind: playbooks.TargetRole, Name: awssdk.ToString(r.RoleName), ID: awssdk.ToString(r.RoleId), ARN: awssdk.ToString(r.Arn),
		longest: time.Duration(awssdk.ToInt32(r.MaxSessionDuration)) * time.Second, trust: plainText(awssdk.ToString(r.AssumeRolePolicyDocument)), role: out, now: time.Now(),
	}
	if p.longest == 0 {
		p.longest = time.Hour // IAM's default
	}
	if now, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok {
		p.now = now
	}
	return p, nil
}

func (a *Account) readUser(ctx context.Context, name string) (principal, error) {
	out, err := a.iam.GetUser(ctx, &iam.GetUserInput{UserName: &name})
	if err != nil {
		if isGone(err) {
			return principal{}, err //nolint:wrapcheck // the caller says what is gone
		}
		return principal{}, fail(err, "iam:GetUser", "read user "+name)
	}
	u := out.User
	return principal{Kind: playbooks.TargetUser, Name: awssdk.ToString(u.UserName), ID: awssdk.ToString(u.UserId), ARN: awssdk.ToString(u.Arn), now: time.Now()}, nil
}

// inline reads an inline policy; "" if there is none.
func (a *Account) inline(ctx context.Context, p principal, policy string) (string, error) {
	var text string
	var err error
	permission := "iam:GetRolePolicy"
	if p.Kind == playbooks.TargetUser {
		permission = "iam:GetUserPolicy"
		var out *iam.GetUserPolicyOutput
		if out, err = a.iam.GetUserPolicy(ctx, &iam.GetUserPolicyInput{UserName: &p.Name, PolicyName: &policy}); err == nil {
			text = awssdk.ToString(out.PolicyDocument)
		}
	} else {
		var out *iam.GetRolePolicyOutput
		if out, err = a.iam.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: &p.Name, PolicyName: &policy}); err == nil {
			text = awssdk.ToString(out.PolicyDocument)
		}
	}
	if isGone(err) {
		return "", nil
	}
	if err != nil {
		return "", fail(err, permission, fmt.Sprintf("read policy %s of %s", policy, p))
	}
	return plainText(text), nil
}

func (a *Account) putInline(ctx context.Context, p principal, policy, text string) error {
	var err error
	permission := "iam:PutRolePolicy"
	if p.Kind == playbooks.TargetUser {
		permission = "iam:PutUserPolicy"
		_, err = a.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: &p.Name, PolicyName: &policy, PolicyDocument: &text})
	} else {
		_, err = a.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &p.Name, PolicyName: &policy, PolicyDocument: &text})
	}
	if isGone(err) {
		return activities.Refuse("%s is gone", p)
	}
	return fail(err, permission, fmt.Sprintf("put policy %s on %s", policy, p))
}

func (a *Account) deleteInline(ctx context.Context, p principal, policy string) error {
	var err error
	permission := "iam:DeleteRolePolicy"
	if p.Kind == playbooks.TargetUser {
		permission = "iam:DeleteUserPolicy"
		_, err = a.iam.DeleteUserPolicy(ctx, &iam.DeleteUserPolicyInput{UserName: &p.Name, PolicyName: &policy})
	} else {
		_, err = a.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &p.Name, PolicyName: &policy})
	}
	if isGone(err) {
		return nil
	}
	return fail(err, permission, fmt.Sprintf("delete policy %s of %s", policy, p))
}

// maxInline bounds how many inline policies of one principal are looked at.
const maxInline = 60

// inlineNames lists inline policies.
func (a *Account) inlineNames(ctx context.Context, p principal) ([]string, error) {
	var names []string
	var marker *string
	for len(names) < maxInline {
		var more bool
		if p.Kind == playbooks.TargetUser {
			out, err := a.iam.ListUserPolicies(ctx, &iam.ListUserPoliciesInput{UserName: &p.Name, Marker: marker})
			if err != nil {
				return nil, fail(err, "iam:ListUserPolicies", fmt.Sprintf("list the policies of %s", p))
			}
			names, marker, more = append(names, out.PolicyNames...), out.Marker, out.IsTruncated
		} else {
			out, err := a.iam.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &p.Name, Marker: marker})
			if err != nil {
				return nil, fail(err, "iam:ListRolePolicies", fmt.Sprintf("list the policies of %s", p))
			}
			names, marker, more = append(names, out.PolicyNames...), out.Marker, out.IsTruncated
		}
		if !more {
			break
		}
	}
	return names, nil
}

// ours tells whether a name is that of a policy of this package.
func ours(policy string) bool { return strings.HasPrefix(policy, "stanch-") }
