package kube

import (
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// logsParams are the parameters of pod.logs.
type logsParams struct {
	TailLines        int64  `json:"tail,omitempty" jsonschema:"minimum=1,maximum=100000" doc:"lines from the end; default all"`
	PreviousInstance bool   `json:"previous,omitempty" doc:"also capture the logs from before the container's last restart"`
	Container        string `json:"container,omitempty" doc:"one container; default the detection's container"`
}

// logsAction is `evidence: pod.logs`.
type logsAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*logsAction)(nil)

func (*logsAction) Spec() playbooks.ActionSpec {
	rights := []playbooks.KubernetesPermission{
		permission("", []string{"pods"}, "get"), permission("", []string{"pods/log"}, "get"),
	}
	return playbooks.ActionSpec{
		Name: "pod.logs", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetPod},
		Doc:     "Capture the container's logs.", Params: logsParams{},
		PlanPermissions: rights, ApplyPermissions: rights,
	}
}

func (a *logsAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return activities.Observation{}, err
	}
	params, err := activities.DecodeParams[logsParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if params.Container == "" {
		params.Container = r.Target.ContainerName
	}
	var out activities.Observation
	for _, previous := range []bool{false, true} {
		if previous && !params.PreviousInstance {
			break
		}
		logs, err := PodLogs(ctx, a.client, LogsRequest{
			Pod: pod, Container: params.Container,
			TailLines: params.TailLines, PreviousInstance: previous,
		})
		if err != nil {
			return out, err
		}
		name := "logs-" + logs.Container
		if previous {
			name += "-previous"
		}
		if logs.AbsentReason != "" {
			out.MissingNote = logs.AbsentReason
			continue
		}
		out.Artifacts = append(out.Artifacts, activities.Artifact{
			Name: name + ".txt", Data: logs.Content,
			CapturedFrom: "API server",
		})
	}
	return out, nil
}

// LogsRequest is a request for a container's log.
type LogsRequest struct {
	Pod              PodRef
	Container        string // "" is the first container
	TailLines        int64  // lines from the end; 0 is all lines
	PreviousInstance bool   // of the instance before the last restart
	// LimitBytes limits the size; 0 means 10 MiB. With TailLines, it counts from the first of these lines.
	LimitBytes int64
}

// Logs is a container's log.
type Logs struct {
	Container string
	Content   []byte
	// Truncated means that the log is longer than the limit.
	Truncated bool
	// AbsentReason says why there is no log: no previous instance, or a container that has not started. This is not a
	// failure.
	AbsentReason string
}

// PodLogs reads a container's log, each line with its time. The content is attacker-controlled.
func PodLogs(ctx context.Context, client kubernetes.Interface, r LogsRequest) (*Logs, error) {
	pod, err := getPod(ctx, client, r.Pod)
	if err != nil {
		return nil, err
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
		return logs, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the logs of container %s of pod %s: %w", logs.Container, r.Pod, err)
	}
	defer stream.Close()
	content, err := io.ReadAll(io.LimitReader(stream, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the logs of container %s of pod %s: %w", logs.Container, r.Pod, err)
	}
	logs.Truncated = int64(len(content)) > limit
	logs.Content = content[:min(int64(len(content)), limit)]
	return logs, nil
}
