package kube

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// PolicyConflict is a policy of someone else that selects the pod and allows traffic. Stanch's policy cannot deny that
// traffic.
type PolicyConflict struct {
	PolicyName   string `json:"policy_name"`   // its name, in the pod's namespace
	Direction    string `json:"direction"`     // "egress" or "ingress"
	AllowedRules string `json:"allowed_rules"` // its rules, for the responder
	// SelectorKeys are the label keys by which it selects the pod; empty means that it selects every pod of the
	// namespace.
	SelectorKeys []string `json:"selector_keys,omitempty"`
}

// String returns the conflict in one sentence.
func (d PolicyConflict) String() string {
	by := "every pod in the namespace"
	if len(d.SelectorKeys) > 0 {
		by = "by " + strings.Join(d.SelectorKeys, ", ")
	}
	return fmt.Sprintf("NetworkPolicy %s selects %s and allows %s %s", d.PolicyName, by, d.Direction, d.AllowedRules)
}

// findPolicyConflicts returns the other policies that allow traffic of a pod with these labels. It checks
// NetworkPolicies only, not custom resources of network plugins.
func findPolicyConflicts(policies []networkingv1.NetworkPolicy, ours string, pod map[string]string,
	ingress bool,
) ([]PolicyConflict, error) {
	var found []PolicyConflict
	for _, p := range policies {
		if p.Name == ours {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			return nil, fmt.Errorf("read the selector of NetworkPolicy %s: %w", p.Name, err)
		}
		if !selector.Matches(labels.Set(pod)) {
			continue
		}
		if policyCoversDirection(p.Spec, networkingv1.PolicyTypeEgress) && len(p.Spec.Egress) > 0 {
			found = append(found, PolicyConflict{
				p.Name, "egress", compactRules(p.Spec.Egress),
				selectorKeys(p.Spec.PodSelector),
			})
		}
		if ingress && policyCoversDirection(p.Spec, networkingv1.PolicyTypeIngress) && len(p.Spec.Ingress) > 0 {
			found = append(found, PolicyConflict{
				p.Name, "ingress", compactRules(p.Spec.Ingress),
				selectorKeys(p.Spec.PodSelector),
			})
		}
	}
	return found, nil
}

// policyCoversDirection reports whether a policy applies to a direction. Without policy types it applies to ingress,
// and to egress if it has egress rules.
func policyCoversDirection(spec networkingv1.NetworkPolicySpec, direction networkingv1.PolicyType) bool {
	if len(spec.PolicyTypes) == 0 {
		return direction == networkingv1.PolicyTypeIngress || len(spec.Egress) > 0
	}
	return slices.Contains(spec.PolicyTypes, direction)
}

// compactRules returns rules as compact JSON, truncated.
func compactRules(rules any) string {
	text := compactJSON(rules)
	if text == "[{}]" {
		return "everything"
	}
	const most = 300
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

func selectorKeys(s metav1.LabelSelector) []string {
	var keys []string
	for k := range s.MatchLabels {
		keys = append(keys, k)
	}
	for _, e := range s.MatchExpressions {
		keys = append(keys, e.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
