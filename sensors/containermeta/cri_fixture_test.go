package containermeta

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"stanch/testenv/prereq"
)

// fakeRuntime is a CRI server on a real socket, for cases that the machine's own runtime does not provide.
type fakeRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	requests atomic.Int32
	failing  atomic.Bool
}

func (r *fakeRuntime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "1.6.20"}, nil
}

func (r *fakeRuntime) ContainerStatus(_ context.Context, q *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse,
	error,
) {
	r.requests.Add(1)
	if r.failing.Load() {
		return nil, status.Error(codes.Unavailable, "busy")
	}
	if q.GetContainerId() != testContainerID {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{
		Id: testContainerID, Metadata: &cri.ContainerMetadata{Name: "app"}, StartedAt: 1,
		Image:    &cri.ImageSpec{Image: "shop:1"},
		ImageRef: "example.org/shop@sha256:" + testContainerID,
		Labels:   map[string]string{labelPodName: "shop-5d8f9c7b6d-x7k2p", labelPodNamespace: "web", labelPodUID: testPodUID},
	}}, nil
}

func (r *fakeRuntime) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: []*cri.Container{{Id: testContainerID, PodSandboxId: "sandbox"}}}, nil
}

func (r *fakeRuntime) PodSandboxStatus(_ context.Context,
	q *cri.PodSandboxStatusRequest,
) (*cri.PodSandboxStatusResponse, error) {
	if q.GetPodSandboxId() != "sandbox" {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Metadata: &cri.PodSandboxMetadata{Name: "shop-5d8f9c7b6d-x7k2p", Namespace: "web", Uid: testPodUID},
		Network:  &cri.PodSandboxNetworkStatus{Ip: "10.0.0.7"},
		Linux: &cri.LinuxPodSandboxStatus{
			Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_POD}},
		},
		Labels: map[string]string{"app": "shop", "pod-template-hash": "5d8f9c7b6d", labelPodUID: testPodUID},
		Annotations: map[string]string{
			"stanch.dev/egress": "10.0.0.0/8", "a-pod-may-have-this-much": strings.Repeat("<", 250<<10),
		},
	}}, nil
}

func startFakeRuntime(t *testing.T) (*fakeRuntime, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r, s := &fakeRuntime{}, grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, r)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return r, socket
}

// makeCgroupTree creates real cgroups like those of a kubelet.
func makeCgroupTree(t *testing.T, below ...string) string {
	t.Helper()
	prereq.RequireRoot(t)
	root, err := FindCgroupRoot()
	if err != nil {
		prereq.SkipOrFail(t, "%v", err)
	}
	top, err := os.MkdirTemp(root, "stanch-test-")
	if err != nil {
		t.Fatal(err)
	}
	made := []string{top}
	for _, b := range below {
		at := top
		for part := range strings.SplitSeq(b, "/") {
			at = filepath.Join(at, part)
			if err := os.Mkdir(at, 0o755); err == nil {
				made = append(made, at)
			}
		}
	}
	t.Cleanup(func() {
		for i := len(made) - 1; i >= 0; i-- {
			_ = os.Remove(made[i])
		}
	})
	return top
}
