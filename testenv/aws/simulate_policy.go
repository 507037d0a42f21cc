package aws

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
)

// simulationResult is one result of a simulation, in IAM's XML form.
type simulationResult struct {
	EvalActionName   string `xml:"EvalActionName"`
	EvalResourceName string `xml:"EvalResourceName"`
	EvalDecision     string `xml:"EvalDecision"`
}

// simulatePrincipalPolicy evaluates the principal's inline policies in moto.
func (s *FakeAWS) simulatePrincipalPolicy(w http.ResponseWriter, r apiRequest) {
	type body struct {
		XMLName     xml.Name           `xml:"SimulatePrincipalPolicyResponse"`
		IsTruncated bool               `xml:"SimulatePrincipalPolicyResult>IsTruncated"`
		Results     []simulationResult `xml:"SimulatePrincipalPolicyResult>EvaluationResults>member"`
	}
	policies, err := s.inlinePolicies(r.Context(), r.form.Get("PolicySourceArn"))
	if err != nil {
		writeError(w, r, "NoSuchEntity", err.Error())
		return
	}
	session := map[string]string{}
	for i := 1; r.form.Has(fmt.Sprintf("ContextEntries.member.%d.ContextKeyName", i)); i++ {
		prefix := fmt.Sprintf("ContextEntries.member.%d.", i)
		session[r.form.Get(prefix+"ContextKeyName")] = r.form.Get(prefix + "ContextKeyValues.member.1")
	}
	var out body
	for i := 1; r.form.Has(fmt.Sprintf("ActionNames.member.%d", i)); i++ {
		action := r.form.Get(fmt.Sprintf("ActionNames.member.%d", i))
		decision, err := evaluatePolicies(policies, action, session)
		if err != nil {
			writeError(w, r, "PolicyEvaluationException", err.Error())
			return
		}
		out.Results = append(out.Results, simulationResult{action, "*", decision})
	}
	writeResponse(w, http.StatusOK, "text/xml", mustXML(out))
}

// inlinePolicies reads the inline policies of a role or user from moto.
func (s *FakeAWS) inlinePolicies(ctx context.Context, arn string) ([]string, error) {
	name, client := arn[strings.LastIndexByte(arn, '/')+1:], s.IAMClient()
	var out []string
	if strings.Contains(arn, ":user/") {
		list, err := client.ListUserPolicies(ctx, &iam.ListUserPoliciesInput{UserName: &name})
		if err != nil {
			return nil, fmt.Errorf("list policies: %w", err)
		}
		for _, policy := range list.PolicyNames {
			one, err := client.GetUserPolicy(ctx, &iam.GetUserPolicyInput{UserName: &name, PolicyName: &policy})
			if err != nil {
				return nil, fmt.Errorf("read policy %s: %w", policy, err)
			}
			out = append(out, awssdk.ToString(one.PolicyDocument))
		}
		return out, nil
	}
	list, err := client.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &name})
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	for _, policy := range list.PolicyNames {
		one, err := client.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: &name, PolicyName: &policy})
		if err != nil {
			return nil, fmt.Errorf("read policy %s: %w", policy, err)
		}
		out = append(out, awssdk.ToString(one.PolicyDocument))
	}
	return out, nil
}

// evaluatePolicies applies IAM's order: a matching deny wins, then an allow; without either the request is denied.
func evaluatePolicies(policies []string, action string, session map[string]string) (string, error) {
	decision := "implicitDeny"
	for _, encoded := range policies {
		text, err := url.QueryUnescape(encoded)
		if err != nil {
			return "", fmt.Errorf("decode a policy: %w", err)
		}
		var doc struct {
			Statement []struct {
				Effect    string
				Action    any
				Condition map[string]map[string]string
			}
		}
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			return "", fmt.Errorf("the fake cannot read %s: %w", text, err)
		}
		for _, s := range doc.Statement {
			fits, err := conditionsMatch(s.Condition, session)
			if err != nil {
				return "", err
			}
			if !fits || !matchesAction(s.Action, action) {
				continue
			}
			if s.Effect == "Deny" {
				return "explicitDeny", nil
			}
			decision = "allowed"
		}
	}
	return decision, nil
}

func matchesAction(v any, action string) bool {
	var patterns []string
	switch v := v.(type) {
	case string:
		patterns = []string{v}
	case []any:
		for _, p := range v {
			patterns = append(patterns, fmt.Sprint(p))
		}
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, star := strings.CutSuffix(p, "*")
		return p == action || star && strings.HasPrefix(action, prefix)
	})
}

// conditionsMatch evaluates conditions. A condition on a key that the session lacks does not match.
func conditionsMatch(conditions map[string]map[string]string, session map[string]string) (bool, error) {
	for operator, keys := range conditions {
		for key, want := range keys {
			have, ok := session[key]
			if !ok {
				return false, nil
			}
			switch operator {
			case "StringEquals":
				ok = have == want
			case "DateLessThan":
				a, err := time.Parse(time.RFC3339, have)
				b, otherErr := time.Parse(time.RFC3339, want)
				if err != nil || otherErr != nil {
					return false, fmt.Errorf("%q or %q is no time", have, want)
				}
				ok = a.Before(b)
			default:
				return false, fmt.Errorf("the fake does not know the operator %s", operator)
			}
			if !ok {
				return false, nil
			}
		}
	}
	return true, nil
}
