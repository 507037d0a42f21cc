package manifests_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// objectRight is a right that a rendered object has or gives.
type objectRight struct {
	object string // KIND/NAME
	right  string
}

// listRights returns every right that an object has or gives. It fails for a kind that it does not know, because it
// would miss what such an object permits.
func listRights(t *testing.T, object runtime.Object) []objectRight {
	t.Helper()
	var name string
	var rights []string
	switch o := object.(type) {
	case *appsv1.DaemonSet:
		name, rights = "DaemonSet/"+o.Name, podRights(&o.Spec.Template.Spec)
	case *appsv1.Deployment:
		name, rights = "Deployment/"+o.Name, podRights(&o.Spec.Template.Spec)
	case *appsv1.StatefulSet:
		name, rights = "StatefulSet/"+o.Name, podRights(&o.Spec.Template.Spec)
		for _, claim := range o.Spec.VolumeClaimTemplates {
			rights = append(rights, mountRights(&o.Spec.Template.Spec, claim.Name, "persistentVolumeClaim "+claim.Name)...)
		}
	case *batchv1.Job:
		name, rights = "Job/"+o.Name, podRights(&o.Spec.Template.Spec)
	case *batchv1.CronJob:
		name, rights = "CronJob/"+o.Name, podRights(&o.Spec.JobTemplate.Spec.Template.Spec)
	case *corev1.Pod:
		name, rights = "Pod/"+o.Name, podRights(&o.Spec)
	case *rbacv1.ClusterRole:
		name, rights = "ClusterRole/"+o.Name, ruleRights(o.Rules)
	case *rbacv1.Role:
		name, rights = "Role/"+o.Name, ruleRights(o.Rules)
	case *rbacv1.ClusterRoleBinding:
		name, rights = "ClusterRoleBinding/"+o.Name, bindingRights(o.RoleRef, o.Subjects)
	case *rbacv1.RoleBinding:
		name, rights = "RoleBinding/"+o.Name, bindingRights(o.RoleRef, o.Subjects)
	case *corev1.Service:
		name, rights = "Service/"+o.Name, serviceRights(o)
	case *networkingv1.NetworkPolicy:
		name, rights = "NetworkPolicy/"+o.Name, policyRights(o)
	case *corev1.ServiceAccount:
		name = "ServiceAccount/" + o.Name
		if o.AutomountServiceAccountToken == nil || *o.AutomountServiceAccountToken {
			rights = append(rights, "API token in every pod of this account")
		}
	case *corev1.Namespace:
		name = "Namespace/" + o.Name
		for _, mode := range []string{"enforce", "audit", "warn"} {
			if level := o.Labels["pod-security.kubernetes.io/"+mode]; level != "" && level != "restricted" {
				rights = append(rights, "pod security standard "+level+" ("+mode+")")
			}
		}
	case *corev1.ConfigMap, *corev1.PersistentVolumeClaim, *policyv1.PodDisruptionBudget,
		*admissionv1.ValidatingAdmissionPolicy, *admissionv1.ValidatingAdmissionPolicyBinding:
		return nil // data and limits
	default:
		t.Fatalf("%T is unknown: say in listRights which rights it gives", object)
	}
	var out []objectRight
	for _, right := range slices.Compact(slices.Sorted(slices.Values(rights))) {
		out = append(out, objectRight{name, right})
	}
	return out
}

// podRights returns the rights of a pod.
func podRights(pod *corev1.PodSpec) []string {
	var out []string
	for right, on := range map[string]bool{
		"hostPID": pod.HostPID, "hostNetwork": pod.HostNetwork, "hostIPC": pod.HostIPC,
		"shared process namespace": pod.ShareProcessNamespace != nil && *pod.ShareProcessNamespace,
		"API token":                pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken,
	} {
		if on {
			out = append(out, right)
		}
	}
	if pod.SecurityContext != nil {
		for _, s := range pod.SecurityContext.Sysctls {
			out = append(out, "sysctl "+s.Name)
		}
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		out = append(out, containerRights(pod, &c)...)
	}
	for _, v := range pod.Volumes {
		out = append(out, mountRights(pod, v.Name, volumeSource(v.VolumeSource))...)
	}
	return out
}

// containerRights returns what a container has beyond the restricted pod security standard, and its ports.
func containerRights(pod *corev1.PodSpec, c *corev1.Container) []string {
	own, all := c.SecurityContext, pod.SecurityContext
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	if all == nil {
		all = &corev1.PodSecurityContext{}
	}
	var out []string
	is := func(right string, on bool) {
		if on {
			out = append(out, right)
		}
	}
	first := func(values ...*bool) bool { // of the values that are set
		for _, v := range values {
			if v != nil {
				return *v
			}
		}
		return false
	}
	user := own.RunAsUser
	if user == nil {
		user = all.RunAsUser
	}
	is("runs as root", user != nil && *user == 0 || user == nil && !first(own.RunAsNonRoot, all.RunAsNonRoot))
	is("privileged", first(own.Privileged))
	is("privilege escalation", own.AllowPrivilegeEscalation == nil || *own.AllowPrivilegeEscalation)
	is("writable root file system", !first(own.ReadOnlyRootFilesystem))
	is("unmasked /proc", own.ProcMount != nil && *own.ProcMount != corev1.DefaultProcMount)
	drops := own.Capabilities != nil && slices.Contains(own.Capabilities.Drop, "ALL")
	is("default capabilities", !drops)
	if own.Capabilities != nil {
		for _, capability := range own.Capabilities.Add {
			out = append(out, "capability "+string(capability))
		}
	}
	out = append(out, profileRights(own, all)...)
	for _, p := range c.Ports {
		out = append(out, fmt.Sprintf("listens on %s %d (%s)", protocol(p.Protocol), p.ContainerPort, p.Name))
		is(fmt.Sprintf("host port %d", p.HostPort), p.HostPort != 0)
	}
	for _, d := range c.VolumeDevices {
		out = append(out, "device "+d.DevicePath)
	}
	for _, e := range c.Env {
		is("environment from secret", e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil)
	}
	is("environment from a configMap or secret", len(c.EnvFrom) > 0)
	return out
}

// profileRights returns where the profiles of a container are wider than the defaults of its runtime.
func profileRights(own *corev1.SecurityContext, all *corev1.PodSecurityContext) []string {
	var out []string
	seccomp := own.SeccompProfile
	if seccomp == nil {
		seccomp = all.SeccompProfile
	}
	if seccomp == nil || seccomp.Type != corev1.SeccompProfileTypeRuntimeDefault {
		out = append(out, "no seccomp profile")
	}
	armor := own.AppArmorProfile
	if armor == nil {
		armor = all.AppArmorProfile
	}
	if armor != nil && armor.Type != corev1.AppArmorProfileTypeRuntimeDefault {
		out = append(out, "AppArmor profile "+string(armor.Type))
	}
	linux := own.SELinuxOptions
	if linux == nil {
		linux = all.SELinuxOptions
	}
	if linux != nil {
		out = append(out, "SELinux type "+linux.Type)
	}
	return out
}

func protocol(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

// volumeSource describes where a volume comes from.
func volumeSource(v corev1.VolumeSource) string {
	switch {
	case v.HostPath != nil:
		return "hostPath " + v.HostPath.Path
	case v.Secret != nil:
		return "secret " + v.Secret.SecretName
	case v.ConfigMap != nil:
		return "configMap " + v.ConfigMap.Name
	case v.PersistentVolumeClaim != nil:
		return "persistentVolumeClaim " + v.PersistentVolumeClaim.ClaimName
	case v.EmptyDir != nil:
		return "emptyDir"
	case v.Projected != nil:
		var parts []string
		for _, s := range v.Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience != "":
				parts = append(parts, "token for "+s.ServiceAccountToken.Audience)
			case s.ConfigMap != nil:
				parts = append(parts, "configMap "+s.ConfigMap.Name)
			case s.Secret != nil:
				parts = append(parts, "secret "+s.Secret.Name)
			default:
				parts = append(parts, fmt.Sprintf("%+v", s))
			}
		}
		return "projected " + strings.Join(parts, ", ")
	}
	return fmt.Sprintf("unknown source %+v", v)
}

// mountRights returns a right for each mount of a volume.
func mountRights(pod *corev1.PodSpec, volume, source string) []string {
	var out []string
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, m := range c.VolumeMounts {
			if m.Name != volume {
				continue
			}
			right := "writes "
			if m.ReadOnly {
				right = "reads "
			}
			right += source + " at " + m.MountPath
			if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
				right += ", with propagation " + string(*m.MountPropagation)
			}
			out = append(out, right)
		}
	}
	return out
}

// ruleRights returns "VERB RESOURCE.GROUP NAMES" for each permission in rules.
func ruleRights(rules []rbacv1.PolicyRule) []string {
	var out []string
	for _, r := range rules {
		for _, verb := range r.Verbs {
			for _, url := range r.NonResourceURLs {
				out = append(out, verb+" "+url)
			}
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					right := strings.TrimSuffix(verb+" "+resource+"."+group, ".")
					out = append(out, strings.TrimSpace(right+" "+strings.Join(r.ResourceNames, " ")))
				}
			}
		}
	}
	return out
}

func bindingRights(role rbacv1.RoleRef, subjects []rbacv1.Subject) []string {
	var out []string
	for _, s := range subjects {
		out = append(out, fmt.Sprintf("gives %s/%s to %s/%s", role.Kind, role.Name, s.Kind, s.Name))
	}
	return out
}

func serviceRights(s *corev1.Service) []string {
	reach := "inside the cluster"
	if s.Spec.Type != "" && s.Spec.Type != corev1.ServiceTypeClusterIP || len(s.Spec.ExternalIPs) > 0 {
		reach = "from outside the cluster (" + string(s.Spec.Type) + ")"
	}
	var out []string
	for _, p := range s.Spec.Ports {
		out = append(out, fmt.Sprintf("port %s %d %s", protocol(p.Protocol), p.Port, reach))
	}
	return out
}

func policyRights(p *networkingv1.NetworkPolicy) []string {
	var out []string
	for _, rule := range p.Spec.Ingress {
		out = append(out, policyPorts("ingress", "from", rule.Ports, rule.From)...)
	}
	for _, rule := range p.Spec.Egress {
		out = append(out, policyPorts("egress", "to", rule.Ports, rule.To)...)
	}
	return out
}

func policyPorts(direction, preposition string, ports []networkingv1.NetworkPolicyPort,
	peers []networkingv1.NetworkPolicyPeer,
) []string {
	peer := "everywhere"
	if len(peers) > 0 {
		var all []string
		for _, p := range peers {
			all = append(all, describePeer(p))
		}
		peer = strings.Join(all, ", ")
	}
	if len(ports) == 0 {
		return []string{fmt.Sprintf("%s all ports %s %s", direction, preposition, peer)}
	}
	var out []string
	for _, p := range ports {
		tcp, port := corev1.ProtocolTCP, "all ports"
		if p.Protocol != nil {
			tcp = *p.Protocol
		}
		if p.Port != nil {
			port = p.Port.String()
		}
		out = append(out, fmt.Sprintf("%s %s %s %s %s", direction, tcp, port, preposition, peer))
	}
	return out
}

func describePeer(p networkingv1.NetworkPolicyPeer) string {
	switch {
	case p.IPBlock != nil:
		return p.IPBlock.CIDR
	case p.NamespaceSelector != nil:
		return fmt.Sprintf("namespaces %v, pods %v", p.NamespaceSelector.MatchLabels, p.PodSelector)
	case p.PodSelector != nil:
		return "pods " + p.PodSelector.MatchLabels["app.kubernetes.io/name"]
	}
	return "nothing"
}
