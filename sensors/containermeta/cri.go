package containermeta

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"stanch/sensors"
)

// defaultCRISockets are the default sockets of the container runtimes.
var defaultCRISockets = []string{
	"/run/containerd/containerd.sock",
	"/run/crio/crio.sock",
	"/var/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
	"/run/cri-dockerd.sock",
}

// pauseContainerName is the name of the pause container. In CRI it is the sandbox and has no name.
const pauseContainerName = "pause"

// The labels that the kubelet sets on containers and sandboxes.
const (
	labelContainerName = "io.kubernetes.container.name"
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
)

// criClient queries a CRI runtime. It connects at the first query, and again after the runtime was unavailable.
type criClient struct {
	socket  string
	timeout time.Duration

	mu             sync.Mutex
	conn           *grpc.ClientConn
	runtimeService cri.RuntimeServiceClient
	runtimeName    string // "containerd 1.6.20 at /run/…"
	// lastError is the latest failure. It is returned until retryAt, so that a runtime that hangs costs its timeout at
	// most once a second.
	lastError error
	retryAt   time.Time
	// podsBySandbox caches the pod of a sandbox, which its containers share. It is cleared when it is full.
	podsBySandbox map[string]sensors.Pod
}

func newCRIClient(socket string, timeout time.Duration) *criClient {
	return &criClient{socket: socket, timeout: timeout, podsBySandbox: map[string]sensors.Pod{}}
}

var errNoRuntimeSocket = errors.New("no CRI runtime socket on this machine")

func (r *criClient) connect(ctx context.Context) (cri.RuntimeServiceClient, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runtimeService != nil {
		return r.runtimeService, nil
	}
	socket := r.socket
	if socket == "none" {
		return nil, errNoRuntimeSocket
	}
	if r.lastError != nil && time.Now().Before(r.retryAt) {
		return nil, r.lastError
	}
	r.retryAt = time.Now().Add(time.Second)
	if socket == "" {
		for _, s := range defaultCRISockets {
			if _, err := os.Stat(s); err == nil {
				socket = s
				break
			}
		}
	}
	if socket == "" {
		r.lastError = errNoRuntimeSocket
		return nil, r.lastError
	}
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(socket, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.lastError = fmt.Errorf("connect to the runtime at %s: %w", socket, err)
		return nil, r.lastError
	}
	rt := cri.NewRuntimeServiceClient(conn)
	v, err := rt.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		_ = conn.Close()
		r.lastError = fmt.Errorf("query the runtime at %s: %w; check that its CRI plugin is enabled", socket, err)
		return nil, r.lastError
	}
	r.conn, r.runtimeService, r.lastError = conn, rt, nil
	r.runtimeName = fmt.Sprintf("%s %s at %s", v.GetRuntimeName(), v.GetRuntimeVersion(), socket)
	return rt, nil
}

// fillContainer queries the container with the ID in c and fills in what the runtime knows. A sandbox is the pause
// container.
func (r *criClient) fillContainer(ctx context.Context, c *sensors.Container) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	rt, err := r.connect(ctx)
	if errors.Is(err, errNoRuntimeSocket) {
		return nil // without a runtime, only the cgroup is known
	}
	if err != nil {
		return err
	}
	if c.Runtime == "" {
		r.mu.Lock()
		c.Runtime, _, _ = strings.Cut(r.runtimeName, " ")
		r.mu.Unlock()
	}
	st, err := rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
	if status.Code(err) == codes.NotFound {
		pod, err := r.loadPod(ctx, rt, c.ID)
		if err != nil {
			return fmt.Errorf("query the runtime about container %s: %w", c.ID, err)
		}
		c.Name, c.Pod = pauseContainerName, pod
		return nil
	}
	if err != nil {
		return fmt.Errorf("query the runtime about container %s: %w", c.ID, err)
	}
	s := st.GetStatus()
	c.Name = s.GetMetadata().GetName()
	c.Image = s.GetImage().GetImage()
	c.ImageDigest = extractDigest(s.GetImageRef())
	if strings.HasPrefix(c.Image, "sha256:") && s.GetImage().GetUserSpecifiedImage() != "" {
		c.Image = s.GetImage().GetUserSpecifiedImage()
	}
	if at := s.GetStartedAt(); at > 0 {
		c.StartedAt = time.Unix(0, at).UTC()
	}
	labels := s.GetLabels()
	c.Pod.Namespace, c.Pod.Name = labels[labelPodNamespace], labels[labelPodName]
	if uid := labels[labelPodUID]; uid != "" {
		c.Pod.UID = uid
	}
	// The sandbox has the pod's labels, address and namespaces. Only the list contains the sandbox of a container.
	list, err := rt.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: c.ID}})
	if err != nil || len(list.GetContainers()) != 1 {
		return err
	}
	pod, err := r.loadPod(ctx, rt, list.GetContainers()[0].GetPodSandboxId())
	if err != nil {
		return fmt.Errorf("query the runtime about the sandbox of container %s: %w", c.ID, err)
	}
	c.Pod = pod
	return nil
}

func (r *criClient) loadPod(ctx context.Context, rt cri.RuntimeServiceClient, id string) (sensors.Pod, error) {
	r.mu.Lock()
	pod, ok := r.podsBySandbox[id]
	r.mu.Unlock()
	if ok {
		return pod, nil
	}
	res, err := rt.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return pod, ErrNotFound
	}
	if err != nil {
		return pod, err
	}
	s := res.GetStatus()
	pod = sensors.Pod{
		Namespace: s.GetMetadata().GetNamespace(),
		Name:      s.GetMetadata().GetName(),
		UID:       s.GetMetadata().GetUid(),
		IP: s.GetNetwork().
			GetIp(),
		HostNetwork: s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE,
		Labels:      sensors.LimitLabels(withoutKubeletKeys(s.GetLabels())),
		Annotations: sensors.LimitAnnotations(withoutKubeletKeys(s.GetAnnotations())),
	}
	if s.GetState() == cri.PodSandboxState_SANDBOX_READY && (pod.IP != "" || pod.HostNetwork) {
		r.mu.Lock()
		if len(r.podsBySandbox) >= 4096 {
			clear(r.podsBySandbox)
		}
		r.podsBySandbox[id] = pod
		r.mu.Unlock()
	}
	return pod, nil
}

// withoutKubeletKeys removes the keys that the kubelet added, because they have their own fields.
func withoutKubeletKeys(m map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		switch {
		case k == labelPodName, k == labelPodNamespace, k == labelPodUID, k == labelContainerName:
		case strings.HasPrefix(k, "kubernetes.io/config."), k == "kubectl.kubernetes.io/last-applied-configuration":
		default:
			out[k] = v
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// extractDigest returns "sha256:…" from an image reference, which is a name with a digest or a bare ID. It returns ""
// for another form.
func extractDigest(ref string) string {
	if _, d, ok := strings.Cut(ref, "@"); ok {
		ref = d
	}
	if hex, ok := strings.CutPrefix(ref, "sha256:"); ok && len(hex) == 64 {
		return ref
	}
	return ""
}

func (r *criClient) describe() string {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	if _, err := r.connect(ctx); err != nil {
		return err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runtimeName
}

func (r *criClient) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	err := r.conn.Close()
	r.conn, r.runtimeService = nil, nil
	return err
}

// workloadOf returns the owner of a container, from the labels that controllers set on their pods.
func workloadOf(c *sensors.Container) sensors.Workload {
	p := &c.Pod
	if p.Name == "" {
		if p.UID != "" {
			return sensors.Workload{Kind: "Pod"}
		}
		return sensors.Workload{Kind: "Container", Name: c.ID[:min(12, len(c.ID))]}
	}
	return sensors.InferWorkload(p.Name, p.Labels)
}
