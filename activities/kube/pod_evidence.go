package kube

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// LogsRequest is a request for a container's log.
type LogsRequest struct {
	Pod              PodRef `json:"pod"`
	Container        string `json:"container,omitempty"` // "" is the first container
	TailLines        int64  `json:"tail,omitempty"`      // lines from the end; 0 is all lines
	PreviousInstance bool   `json:"previous,omitempty"`  // of the instance before the last restart
	// LimitBytes limits the size; 0 means 10 MiB. With TailLines, it counts from the first of these lines.
	LimitBytes int64 `json:"limit_bytes,omitempty"`
}

// LogsPermissions returns the permissions of PodLogs.
func LogsPermissions() Permissions {
	rules := []rbacv1.PolicyRule{newPolicyRule("", "pods", "get"), newPolicyRule("", "pods/log", "get")}
	return Permissions{PlanRules: rules, ApplyRules: rules}
}

// Logs is a container's log.
type Logs struct {
	Container string `json:"container"`
	Content   []byte `json:"-"`
	// Truncated means that the log is longer than the limit.
	Truncated bool `json:"truncated,omitempty"`
	// AbsentReason says why there is no log: no previous instance, or a container that has not started. This is not a
	// failure.
	AbsentReason string `json:"absent_reason,omitempty"`
}

// PodLogs reads a container's log, each line with its time. The content is attacker-controlled.
func PodLogs(ctx context.Context, client kubernetes.Interface, r LogsRequest) (*Logs, *Refusal, error) {
	pod, refusal, err := getPod(ctx, client, r.Pod)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	limit := r.LimitBytes
	if limit <= 0 {
		limit = 10 << 20
	}
	logs := &Logs{Container: r.Container}
	if logs.Container == "" {
		logs.Container = pod.Spec.Containers[0].Name
	}
	options := &corev1.PodLogOptions{Container: logs.Container, Previous: r.PreviousInstance, Timestamps: true}
	if r.TailLines > 0 {
		options.TailLines = &r.TailLines
	}
	stream, err := client.CoreV1().Pods(r.Pod.Namespace).GetLogs(r.Pod.Name, options).Stream(ctx)
	if apierrors.IsBadRequest(err) { // the kubelet's response if there is none
		logs.AbsentReason = deniedDetail(err)
		return logs, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the logs of container %s of pod %s: %w", logs.Container, r.Pod, err)
	}
	defer stream.Close()
	content, err := io.ReadAll(io.LimitReader(stream, limit+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the logs of container %s of pod %s: %w", logs.Container, r.Pod, err)
	}
	logs.Truncated = int64(len(content)) > limit
	logs.Content = content[:min(int64(len(content)), limit)]
	return logs, nil, nil
}

// ManifestPermissions returns the permissions of PodManifest.
func ManifestPermissions() Permissions {
	rules := []rbacv1.PolicyRule{newPolicyRule("", "pods", "get")}
	return Permissions{PlanRules: rules, ApplyRules: rules}
}

// Manifest is a pod's manifest as read from the API server.
type Manifest struct {
	YAML []byte `json:"-"`
	// RedactedFields names the removed values: "main: DB_PASSWORD".
	RedactedFields []string `json:"redacted_fields,omitempty"`
}

// RedactedPlaceholder replaces a removed value.
const RedactedPlaceholder = "(redacted)"

// PodManifest reads the pod as YAML, without managed fields and without values that look secret: environment variables,
// arguments, and annotations that contain an earlier copy of the manifest. The names stay.
func PodManifest(ctx context.Context, client kubernetes.Interface, ref PodRef) (*Manifest, *Refusal, error) {
	pod, refusal, err := getPod(ctx, client, ref)
	if err != nil || refusal != nil {
		return nil, refusal, err
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
		return nil, nil, fmt.Errorf("encode pod %s: %w", ref, err)
	}
	return m, nil, nil
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
