package aws

import (
	"fmt"
	"slices"
	"strings"
)

// riskyPermission is a permission that lets an attacker do more than the workload needs.
type riskyPermission struct {
	action             string // a statement that allows this is risky
	onlyOnAllResources bool   // only on every resource
	description        string
}

// riskyPermissions returns the table, most harmful first. Only the first match of a statement is reported.
func riskyPermissions() []riskyPermission {
	return []riskyPermission{
		{"*", true, "do anything"},
		{"iam:CreatePolicyVersion", false, "change IAM, and thereby grant itself any permission"},
		{"iam:PutRolePolicy", false, "change IAM, and thereby grant itself any permission"},
		{"iam:AttachRolePolicy", false, "change IAM, and thereby grant itself any permission"},
		{"iam:AttachUserPolicy", false, "change IAM, and thereby grant itself any permission"},
		{"iam:UpdateAssumeRolePolicy", false, "change who can assume a role"},
		{"iam:CreateAccessKey", false, "create access keys, which outlive a session"},
		{"iam:PassRole", true, "pass any role to the resources that it starts"},
		{"sts:AssumeRole", true, "assume any role that trusts it"},
		{"sts:AssumeRole", false, "assume other roles, whose sessions a deny of this role does not affect"},
		{"secretsmanager:GetSecretValue", true, "read every secret"},
		{"ssm:GetParameter", true, "read every parameter"},
		{"ssm:SendCommand", false, "run commands on instances"},
		{"kms:Decrypt", true, "decrypt with every key whose policy allows it"},
		{"lambda:UpdateFunctionCode", false, "run code as other roles"},
		{"cloudtrail:StopLogging", false, "turn off CloudTrail"},
		{"s3:GetObject", true, "read every bucket whose policy allows it"},
		{"ec2:RunInstances", true, "start instances"},
	}
}

// describeRiskyPermissions returns the risky permissions of a policy document, a sentence each.
func describeRiskyPermissions(text string) []string {
	v, err := decodeJSON(text)
	doc, ok := v.(map[string]any)
	if err != nil || !ok {
		return []string{"unknown permissions: the policy cannot be parsed"}
	}
	var out []string
	for _, s := range policyStatements(doc) {
		if s["Effect"] != "Allow" {
			continue
		}
		if words := assessStatement(s); words != "" {
			if _, conditional := s["Condition"]; conditional {
				words += ", subject to a condition"
			}
			if !slices.Contains(out, words) {
				out = append(out, words)
			}
		}
	}
	return out
}

func policyStatements(doc map[string]any) []map[string]any {
	var out []map[string]any
	switch s := doc["Statement"].(type) {
	case map[string]any:
		out = append(out, s)
	case []any:
		for _, item := range s {
			if m, ok := item.(map[string]any); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

func assessStatement(s map[string]any) string {
	if not := stringOrList(s["NotAction"]); len(not) > 0 {
		return "do anything except " + plainText(strings.Join(not, ", "), 80)
	}
	broad := slices.Contains(stringOrList(s["Resource"]), "*") || len(stringOrList(s["NotResource"])) > 0
	actions := stringOrList(s["Action"])
	for _, d := range riskyPermissions() {
		if d.onlyOnAllResources && !broad {
			continue
		}
		for _, a := range actions {
			// "*" in the table matches only itself; in a policy it allows everything.
			if d.action == "*" && (a == "*" || a == "*:*") || d.action != "*" && matchesWildcardFold(a, d.action) {
				return fmt.Sprintf("%s (%s)", d.description, plainText(a, 60))
			}
		}
	}
	for _, a := range actions {
		if service, rest, ok := strings.Cut(a, ":"); ok && rest == "*" && broad {
			return "do anything in " + plainText(service, 40)
		}
	}
	return ""
}

// summarize returns sentences about who may assume the role.
func (t trustPolicy) summarize() []string {
	var out []string
	for _, s := range t.statements {
		m, _ := s.(map[string]any)
		effect, _ := m["Effect"].(string)
		line := map[string]string{"Allow": "trusts ", "Deny": "denies "}[effect]
		switch principal := m["Principal"].(type) {
		case string:
			line += plainText(principal, 100)
		case map[string]any:
			var who []string
			for _, kind := range []string{"Federated", "Service", "AWS", "CanonicalUser"} {
				for _, w := range stringOrList(principal[kind]) {
					who = append(who, plainText(w, 120))
				}
			}
			line += strings.Join(who, ", ")
		}
		conditions, _ := m["Condition"].(map[string]any)
		var subjects []string
		for _, keys := range conditions {
			values, _ := keys.(map[string]any)
			for key, want := range values {
				if strings.HasSuffix(key, ":sub") {
					subjects = append(subjects, stringOrList(want)...)
				}
			}
		}
		slices.Sort(subjects)
		if len(subjects) > 0 {
			line += " for " + plainText(strings.Join(subjects, ", "), 200)
		}
		if out = append(out, line); len(out) == 10 {
			break
		}
	}
	return out
}
