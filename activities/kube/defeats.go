package kube

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Defeat is a policy of somebody else that selects the pod and allows traffic, which ours cannot take away.
type Defeat struct {
	Policy    string `json:"policy"`    // its name, in the pod's namespace
	Direction string `json:"direction"` // "egress" or "ingress"
	Allows    string `json:"allows"`    // its rules, for a responder
	// Labels are the keys by which it selects the pod; empty means that it selects every pod of the namespace.
	Labels []string `json:"labels,omitempty"`
}

func (d Defeat) String() string {
	by := "every pod of the namespace"
	if len(d.Labels) > 0 {
		by = "by " + strings.Join(d.Labels, ", ")
	}
	return fmt.Sprintf("NetworkPolicy %s selects %s and allows %s %s", d.Policy, by, d.Direction, d.Allows)
}

// defeats finds the policies, other than ours, that allow traffic of a pod with these labels. Kinds of policy that
// are not the cluster's own (a network's custom resources) are not looked at.
func defeats(policies []networkingv1.NetworkPolicy, ours string, pod map[string]string, ingress bool) ([]Defeat, error) {
	var found []Defeat
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
		if covers(p.Spec, networkingv1.PolicyTypeEgress) && len(p.Spec.Egress) > 0 {
			found = append(found, Defeat{p.Name, "egress", describe(p.Spec.Egress), keysOf(p.Spec.PodSelector)})
		}
		if ingress && covers(p.Spec, networkingv1.PolicyTypeIngress) && len(p.Spec.Ingress) > 0 {
			found = append(found, Defeat{p.Name, "ingress", describe(p.Spec.Ingress), keysOf(p.Spec.PodSelector)})
		}
	}
	return found, nil
}

// covers tells whether a policy is about a direction. Without types it is about ingress, and about egress if it has
// egress rules.
func covers(spec networkingv1.NetworkPolicySpec, direction networkingv1.PolicyType) bool {
	if len(spec.PolicyTypes) == 0 {
		return direction == networkingv1.PolicyTypeIngress || len(spec.Egress) > 0
	}
	return slices.Contains(spec.PolicyTypes, direction)
}

// describe shows rules as the compact JSON that their author wrote, bounded.
func describe(rules any) string {
	text := compact(rules)
	if text == "[{}]" {
		return "everything"
	}
	const most = 300
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

func keysOf(s metav1.LabelSelector) []string {
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
