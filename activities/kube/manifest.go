package kube

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"stanch/activities"
	"stanch/playbooks"
)

// manifestAction is `evidence: pod.manifest`.
type manifestAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*manifestAction)(nil)

func (*manifestAction) Spec() playbooks.ActionSpec {
	rights := []playbooks.KubernetesPermission{permission("", []string{"pods"}, "get")}
	return playbooks.ActionSpec{
		Name: "pod.manifest", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets:         []playbooks.TargetKind{playbooks.TargetPod},
		Doc:             "Capture the pod's manifest from the API server, without secret values.",
		PlanPermissions: rights, ApplyPermissions: rights,
	}
}

func (a *manifestAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return activities.Observation{}, err
	}
	manifest, err := PodManifest(ctx, a.client, pod)
	if err != nil {
		return activities.Observation{}, err
	}
	out := activities.Observation{Artifacts: []activities.Artifact{{
		Name: "manifest.yaml", Data: manifest.YAML,
		CapturedFrom: "API server",
	}}}
	if n := len(manifest.RedactedFields); n > 0 {
		out.MissingNote = fmt.Sprintf("%d values that look like secrets were redacted", n)
	}
	return out, nil
}

// Manifest is a pod's manifest as read from the API server.
type Manifest struct {
	YAML []byte
	// RedactedFields names the removed values: "main: DB_PASSWORD".
	RedactedFields []string
}

// RedactedPlaceholder replaces a removed value.
const RedactedPlaceholder = "(redacted)"

// PodManifest reads the pod as YAML, without managed fields and without values that look secret: environment variables,
// arguments, and annotations that contain an earlier copy of the manifest. The names stay.
func PodManifest(ctx context.Context, client kubernetes.Interface, ref PodRef) (*Manifest, error) {
	pod, err := getPod(ctx, client, ref)
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	pod.ManagedFields = nil
	for key := range pod.Annotations {
		if key == corev1.LastAppliedConfigAnnotation || isSecretName(key) {
			pod.Annotations[key] = RedactedPlaceholder
			m.RedactedFields = append(m.RedactedFields, "annotation: "+key)
		}
	}
	for i := range pod.Spec.InitContainers {
		m.redactContainer(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		m.redactContainer(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		m.redactContainer(&c)
		pod.Spec.EphemeralContainers[i].EphemeralContainerCommon = corev1.EphemeralContainerCommon(c)
	}
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	if m.YAML, err = yaml.Marshal(pod); err != nil {
		return nil, fmt.Errorf("encode pod %s: %w", ref, err)
	}
	return m, nil
}

func (m *Manifest) redactContainer(c *corev1.Container) {
	for i := range c.Env {
		e := &c.Env[i]
		if e.Value != "" && (isSecretName(e.Name) || isSecretValue(e.Value)) {
			e.Value = RedactedPlaceholder
			m.RedactedFields = append(m.RedactedFields, c.Name+": "+e.Name)
		}
	}
	c.Command = m.redactArgs(c.Name, c.Command)
	c.Args = m.redactArgs(c.Name, c.Args)
}

// redactArgs removes the value of "--password=x", the argument after "--password", and values that look secret
// themselves.
func (m *Manifest) redactArgs(container string, args []string) []string {
	next := ""
	for i, arg := range args {
		name, value, assigned := strings.Cut(arg, "=")
		switch {
		case next != "" && !strings.HasPrefix(arg, "-"):
			args[i] = RedactedPlaceholder
			m.RedactedFields = append(m.RedactedFields, container+": "+next)
		case assigned && value != "" && (isSecretName(name) || isSecretValue(value)):
			args[i] = name + "=" + RedactedPlaceholder
			m.RedactedFields = append(m.RedactedFields, container+": "+name)
		case isSecretValue(arg):
			args[i] = RedactedPlaceholder
			m.RedactedFields = append(m.RedactedFields, fmt.Sprintf("%s: argument %d", container, i+1))
		}
		next = ""
		if strings.HasPrefix(arg, "-") && !assigned && isSecretName(arg) {
			next = arg
		}
	}
	return args
}

// secretNamePattern matches names of secrets.
var secretNamePattern = regexp.MustCompile(`(?i)pass(word|wd|phrase)?([^a-z]|$)|secret|token|credential|api[_-]?key|` +
	`access[_-]?key|private[_-]?key|auth([^a-z]|$)|connection[_-]?string|dsn$`)

// secretValuePattern matches secrets whatever their name: keys, tokens, a URL with a password.
var secretValuePattern = regexp.MustCompile(
	`-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]+|` +
		`\bgh[pousr]_\w{20,}|\bxox[abprs]-[\w-]{10,}|://[^/\s:@]*:[^/\s@]+@`,
)

func isSecretName(name string) bool   { return secretNamePattern.MatchString(name) }
func isSecretValue(value string) bool { return secretValuePattern.MatchString(value) }
