package integrations

import (
	"slices"
	"strings"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// auditedObject is the part of an object in a request that Stanch reads. It has no field for the data of a Secret or
// ConfigMap, for environment variables or for a token, so that none can be copied.
type auditedObject struct {
	Metadata struct {
		Name   string             `json:"name"`
		UID    string             `json:"uid"`
		Labels map[string]*string `json:"labels"` // a nil value means that a patch removes the label
	} `json:"metadata"`
	Spec struct {
		podSpec
		Template struct {
			Spec podSpec `json:"spec"`
		} `json:"template"`
		JobTemplate struct {
			Spec struct {
				Template struct {
					Spec podSpec `json:"spec"`
				} `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
		// The fields of a TokenRequest.
		Audiences         []string `json:"audiences"`
		ExpirationSeconds int64    `json:"expirationSeconds"`
		BoundObjectRef    struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"boundObjectRef"`
	} `json:"spec"`
	RoleRef  roleRef       `json:"roleRef"`
	Subjects []roleSubject `json:"subjects"`
	Rules    []roleRule    `json:"rules"`
	Webhooks []struct {
		FailurePolicy string `json:"failurePolicy"`
		ClientConfig  struct {
			URL string `json:"url"`
		} `json:"clientConfig"`
	} `json:"webhooks"`
}

type roleRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

type roleSubject struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type roleRule struct {
	Verbs     []string `json:"verbs"`
	Groups    []string `json:"apiGroups"`
	Resources []string `json:"resources"`
	URLs      []string `json:"nonResourceURLs"`
}

type podSpec struct {
	Containers          []podContainer `json:"containers"`
	InitContainers      []podContainer `json:"initContainers"`
	EphemeralContainers []podContainer `json:"ephemeralContainers"`
	HostNetwork         bool           `json:"hostNetwork"`
	HostPID             bool           `json:"hostPID"`
	HostIPC             bool           `json:"hostIPC"`
	ServiceAccountName  string         `json:"serviceAccountName"`
	NodeName            string         `json:"nodeName"`
	Volumes             []struct {
		HostPath *struct {
			Path string `json:"path"`
		} `json:"hostPath"`
	} `json:"volumes"`
}

type podContainer struct {
	Image           string `json:"image"`
	SecurityContext struct {
		Privileged               bool `json:"privileged"`
		AllowPrivilegeEscalation bool `json:"allowPrivilegeEscalation"`
		Capabilities             struct {
			Add []string `json:"add"`
		} `json:"capabilities"`
	} `json:"securityContext"`
}

// podTemplateResources are the resources that create pods.
var podTemplateResources = map[string]bool{
	"deployments": true, "daemonsets": true, "statefulsets": true, "replicasets": true, "replicationcontrollers": true,
	"jobs": true, "cronjobs": true,
}

// podFacts returns what the pods of an object request, wherever the object contains the pod specification.
func (o *auditedObject) podFacts() sensors.AuditPod {
	var out sensors.AuditPod
	for _, s := range []*podSpec{&o.Spec.podSpec, &o.Spec.Template.Spec, &o.Spec.JobTemplate.Spec.Template.Spec} {
		out.HostNetwork, out.HostPID, out.HostIPC = out.HostNetwork || s.HostNetwork, out.HostPID || s.HostPID, out.HostIPC ||
			s.HostIPC
		out.ServiceAccount, out.Node = orDefault(out.ServiceAccount, truncate.Bytes(s.ServiceAccountName,
			maxIdentifierBytes)), orDefault(out.Node, truncate.Bytes(s.NodeName, maxIdentifierBytes))
		for _, v := range s.Volumes {
			if v.HostPath != nil {
				out.HostPaths = append(out.HostPaths, v.HostPath.Path)
			}
		}
		for _, c := range s.EphemeralContainers {
			out.EphemeralImages = append(out.EphemeralImages, c.Image)
		}
		for _, c := range slices.Concat(s.InitContainers, s.Containers, s.EphemeralContainers) {
			out.Images = append(out.Images, c.Image)
			out.Privileged = out.Privileged || c.SecurityContext.Privileged
			out.PrivilegeEscalation = out.PrivilegeEscalation || c.SecurityContext.AllowPrivilegeEscalation
			out.Capabilities = append(out.Capabilities, c.SecurityContext.Capabilities.Add...)
		}
	}
	out.HostPaths, out.Images, out.EphemeralImages, out.Capabilities = sortUnique(out.HostPaths), sortUnique(out.Images),
		sortUnique(out.EphemeralImages), sortUnique(out.Capabilities)
	return out
}

// sortUnique sorts names and removes duplicates and empty names.
func sortUnique(names []string) []string {
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" })
	slices.Sort(names)
	names = limitNames(slices.Compact(names))
	if len(names) == 0 {
		return nil
	}
	return names
}

func (o *auditedObject) bindingFacts() sensors.AuditBinding {
	var out sensors.AuditBinding
	if o.RoleRef.Name != "" {
		out.Role = truncate.Bytes(o.RoleRef.Kind+"/"+o.RoleRef.Name, maxMessageBytes)
	}
	for _, s := range o.Subjects {
		name := s.Kind + "/" + s.Name
		if s.Namespace != "" && s.Kind == "ServiceAccount" {
			name = s.Kind + "/" + s.Namespace + "/" + s.Name
		}
		out.Subjects = append(out.Subjects, name)
	}
	out.Subjects = sortUnique(out.Subjects)
	return out
}

// escalatingVerbs and escalatingResources are the permissions that let a subject gain more: verbs for any resource,
// and verbs for a certain resource.
var (
	escalatingVerbs     = []string{"escalate", "bind", "impersonate", "approve", "sign"}
	escalatingResources = map[string][]string{
		"secrets":                         {"get", "list", "watch"},
		"pods":                            {"create", "update", "patch"},
		"pods/exec":                       {"create", "get"},
		"pods/attach":                     {"create", "get"},
		"pods/portforward":                {"create", "get"},
		"pods/ephemeralcontainers":        {"update", "patch"},
		"serviceaccounts/token":           {"create"},
		"nodes/proxy":                     {"create", "get"},
		"roles":                           {"create", "update", "patch"},
		"clusterroles":                    {"create", "update", "patch"},
		"rolebindings":                    {"create", "update", "patch"},
		"clusterrolebindings":             {"create", "update", "patch"},
		"mutatingwebhookconfigurations":   {"create", "update", "patch"},
		"validatingwebhookconfigurations": {"create", "update", "patch", "delete"},
		"deployments":                     {"create", "update", "patch"},
		"daemonsets":                      {"create", "update", "patch"},
		"statefulsets":                    {"create", "update", "patch"},
		"jobs":                            {"create"},
		"cronjobs":                        {"create", "update", "patch"},
		"persistentvolumes":               {"create"},
	}
)

func (o *auditedObject) roleFacts() sensors.AuditRole {
	var out sensors.AuditRole
	for _, rule := range o.Rules[:min(len(o.Rules), 1000)] {
		out.Wildcard = out.Wildcard || slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") ||
			slices.Contains(rule.Groups, "*") || slices.Contains(rule.URLs, "*")
		for _, verb := range escalatingVerbs {
			if slices.Contains(rule.Verbs, verb) {
				out.EscalatingPermissions = append(out.EscalatingPermissions, verb)
			}
		}
		for _, resource := range rule.Resources {
			for _, verb := range escalatingResources[resource] {
				if slices.Contains(rule.Verbs, verb) || slices.Contains(rule.Verbs, "*") {
					out.EscalatingPermissions = append(out.EscalatingPermissions, verb+" "+resource)
				}
			}
		}
	}
	out.EscalatingPermissions = sortUnique(out.EscalatingPermissions)
	return out
}

func (o *auditedObject) tokenFacts() sensors.AuditToken {
	return sensors.AuditToken{
		Audiences: limitNames(o.Spec.Audiences), ExpirationSeconds: o.Spec.ExpirationSeconds,
		BoundTo: truncate.Bytes(strings.Trim(o.Spec.BoundObjectRef.Kind+"/"+o.Spec.BoundObjectRef.Name, "/"),
			maxMessageBytes),
	}
}

func (o *auditedObject) webhookFacts() sensors.AuditWebhook {
	var out sensors.AuditWebhook
	for _, w := range o.Webhooks {
		out.IgnoresFailures = out.IgnoresFailures || w.FailurePolicy == "Ignore"
		out.ExternalURLs = append(out.ExternalURLs, w.ClientConfig.URL)
	}
	out.ExternalURLs = sortUnique(out.ExternalURLs)
	return out
}

// podSecurityLabel is the label that sets the enforced level of the Pod Security Standards in a namespace.
const podSecurityLabel = "pod-security.kubernetes.io/enforce"

// policyExemptionLabels are the labels that exempt a namespace from a policy engine, with their values; "" means any
// value.
var policyExemptionLabels = map[string]string{
	"admission.gatekeeper.sh/ignore":       "",
	"openpolicyagent.org/webhook":          "ignore",
	"cert-manager.io/disable-validation":   "true",
	"config.linkerd.io/admission-webhooks": "disabled",
}

func (o *auditedObject) admissionFacts() sensors.AuditAdmission {
	var out sensors.AuditAdmission
	for key, value := range o.Metadata.Labels {
		switch want, known := policyExemptionLabels[key]; {
		case key == podSecurityLabel && value == nil:
			out.PodSecurityLevel = "removed"
		case key == podSecurityLabel:
			out.PodSecurityLevel = truncate.Bytes(*value, 64)
		case known && value != nil && (want == "" || want == *value):
			out.ExemptionLabels = append(out.ExemptionLabels, key)
		}
	}
	out.ExemptionLabels = sortUnique(out.ExemptionLabels)
	return out
}

// detectLabelRemoval detects requests that remove the label without setting it to null: an update of the complete
// namespace or of all its labels, and a JSON patch, which contains the label in a path. For a request that does not
// change the label, it leaves the level unset.
func (a *auditEvent) detectLabelRemoval(out *sensors.AuditAdmission) {
	after := decodeAuditedObject(a.ResponseObject)
	if after == nil && (a.Verb == "update" || a.Verb == "create") {
		after = decodeAuditedObject(a.RequestObject)
	}
	if after == nil || after.Metadata.Labels[podSecurityLabel] != nil || out.PodSecurityLevel == "removed" {
		return
	}
	out.PodSecurityLevel = "unset"
	var patch []struct {
		Op   string `json:"op"`
		Path string `json:"path"`
		From string `json:"from"`
	}
	if a.Verb != "patch" || unmarshalCaseSensitive(a.RequestObject, &patch) != nil {
		return
	}
	path := "/metadata/labels/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(podSecurityLabel)
	for _, p := range patch {
		if p.Op == "remove" && p.Path == path || p.Op == "move" && p.From == path {
			out.PodSecurityLevel = "removed"
		}
	}
}
