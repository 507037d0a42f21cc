package aws

import (
	"context"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"stanch/activities"
	"stanch/playbooks"
)

// principal is a role or a user, as read from IAM.
type principal struct {
	Kind playbooks.TargetKind `json:"kind"`
	Name string               `json:"name"`
	ID   string               `json:"id"` // RoleId or UserId
	ARN  string               `json:"arn"`

	maxSession      time.Duration // maximum session of a role
	trustPolicyText string        // trust policy of a role
	role            *iam.GetRoleOutput
	fetchedAt       time.Time // by IAM's clock
}

func (p principal) String() string { return fmt.Sprintf("%s %s", p.Kind, p.Name) }

// target returns the principal as a playbook target.
func (p principal) target(namespace, account string) playbooks.Target {
	return playbooks.Target{
		Kind: p.Kind, Namespace: namespace, Name: p.Name, UID: p.ID, Account: accountFromARN(p.ARN),
		ARN: p.ARN, ServiceAccount: account,
	}
}

// findPrincipal reads a role or user and compares its id. If the name belongs to another
// principal or to none, it returns a refusal that wraps activities.ErrTargetGone.
func (a *Account) findPrincipal(ctx context.Context, t playbooks.Target) (principal, error) {
	if t.UID == "" || t.Name == "" {
		return principal{}, activities.Refusef("the %s has no id; use a target from `enrich: aws.identity`", t.Kind)
	}
	var p principal
	var err error
	switch t.Kind {
	case playbooks.TargetRole:
		p, err = a.readRole(ctx, t.Name)
	case playbooks.TargetUser:
		p, err = a.readUser(ctx, t.Name)
	default:
		return principal{}, activities.Refusef("%s is not a role or user", t)
	}
	switch {
	case isNotFound(err):
		return principal{}, activities.RefuseGonef("%s is gone", t)
	case err != nil:
		return principal{}, err
	case p.ID != t.UID:
		return principal{}, activities.RefuseGonef("%s with the id %s is gone; a different object with the same name has the id %s", t,
			plainText(t.UID, 40), p.ID)
	case t.ARN != "" && t.ARN != p.ARN:
		return principal{}, activities.Refusef("%s is %s, not %s: it belongs to an account that Stanch is not configured for",
			t, p.ARN, plainText(t.ARN, 200))
	}
	return p, nil
}

// LookupRoleID returns the RoleId of the role with this name. RoleIds are never reused.
func (a *Account) LookupRoleID(ctx context.Context, name string) (string, error) {
	p, err := a.readRole(ctx, name)
	if err != nil {
		return "", err
	}
	return p.ID, nil
}

func (a *Account) readRole(ctx context.Context, name string) (principal, error) {
	out, err := a.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: &name})
	if err != nil {
		if isNotFound(err) {
			return principal{}, err //nolint:wrapcheck // the caller adds context
		}
		return principal{}, wrapError(err, "iam:GetRole", "read role "+name)
	}
	r := out.Role
	p := principal{
		Kind: playbooks.TargetRole, Name: awssdk.ToString(r.RoleName), ID: awssdk.ToString(r.RoleId),
		ARN:             awssdk.ToString(r.Arn),
		maxSession:      time.Duration(awssdk.ToInt32(r.MaxSessionDuration)) * time.Second,
		trustPolicyText: decodeURLEncoded(awssdk.ToString(r.AssumeRolePolicyDocument)), role: out, fetchedAt: time.Now(),
	}
	if p.maxSession == 0 {
		p.maxSession = time.Hour // IAM's default
	}
	if now, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok {
		p.fetchedAt = now
	}
	return p, nil
}

func (a *Account) readUser(ctx context.Context, name string) (principal, error) {
	out, err := a.iam.GetUser(ctx, &iam.GetUserInput{UserName: &name})
	if err != nil {
		if isNotFound(err) {
			return principal{}, err //nolint:wrapcheck // the caller adds context
		}
		return principal{}, wrapError(err, "iam:GetUser", "read user "+name)
	}
	u := out.User
	return principal{
		Kind: playbooks.TargetUser, Name: awssdk.ToString(u.UserName), ID: awssdk.ToString(u.UserId),
		ARN: awssdk.ToString(u.Arn), fetchedAt: time.Now(),
	}, nil
}

// readInlinePolicy returns an inline policy; "" if there is none.
func (a *Account) readInlinePolicy(ctx context.Context, p principal, policy string) (string, error) {
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
	if isNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", wrapError(err, permission, fmt.Sprintf("read policy %s of %s", policy, p))
	}
	return decodeURLEncoded(text), nil
}

func (a *Account) putInlinePolicy(ctx context.Context, p principal, policy, text string) error {
	var err error
	permission := "iam:PutRolePolicy"
	if p.Kind == playbooks.TargetUser {
		permission = "iam:PutUserPolicy"
		_, err = a.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{
			UserName: &p.Name, PolicyName: &policy,
			PolicyDocument: &text,
		})
	} else {
		_, err = a.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{
			RoleName: &p.Name, PolicyName: &policy,
			PolicyDocument: &text,
		})
	}
	if isNotFound(err) {
		return activities.Refusef("%s is gone", p)
	}
	return wrapError(err, permission, fmt.Sprintf("put policy %s on %s", policy, p))
}

func (a *Account) deleteInlinePolicy(ctx context.Context, p principal, policy string) error {
	var err error
	permission := "iam:DeleteRolePolicy"
	if p.Kind == playbooks.TargetUser {
		permission = "iam:DeleteUserPolicy"
		_, err = a.iam.DeleteUserPolicy(ctx, &iam.DeleteUserPolicyInput{UserName: &p.Name, PolicyName: &policy})
	} else {
		_, err = a.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &p.Name, PolicyName: &policy})
	}
	if isNotFound(err) {
		return nil
	}
	return wrapError(err, permission, fmt.Sprintf("delete policy %s of %s", policy, p))
}

// maxInlinePolicies is the maximum number of inline policies that are read of one principal.
const maxInlinePolicies = 60

// listInlinePolicies returns the names of inline policies.
func (a *Account) listInlinePolicies(ctx context.Context, p principal) ([]string, error) {
	var names []string
	var marker *string
	for len(names) < maxInlinePolicies {
		var more bool
		if p.Kind == playbooks.TargetUser {
			out, err := a.iam.ListUserPolicies(ctx, &iam.ListUserPoliciesInput{UserName: &p.Name, Marker: marker})
			if err != nil {
				return nil, wrapError(err, "iam:ListUserPolicies", fmt.Sprintf("list the policies of %s", p))
			}
			names, marker, more = append(names, out.PolicyNames...), out.Marker, out.IsTruncated
		} else {
			out, err := a.iam.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &p.Name, Marker: marker})
			if err != nil {
				return nil, wrapError(err, "iam:ListRolePolicies", fmt.Sprintf("list the policies of %s", p))
			}
			names, marker, more = append(names, out.PolicyNames...), out.Marker, out.IsTruncated
		}
		if !more {
			break
		}
	}
	return names, nil
}
