package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"

	"stanch/testenv/kube"
)

// inventory lists what is in the cluster and on the node: objects, pins, kernel programs, cgroups and files.
func inventory(t *testing.T, lab *kube.Cluster) []string {
	t.Helper()
	all := slices.Concat(listObjects(t, lab), listPrograms(t), listFiles(t, lab))
	slices.Sort(all)
	return all
}

// volatileKinds come and go by themselves.
var volatileKinds = []string{"Event", "Lease", "EndpointSlice", "Endpoints", "ComponentStatus", "Node"}

// listObjects lists every object of the cluster.
func listObjects(t *testing.T, lab *kube.Cluster) []string {
	t.Helper()
	client, err := dynamic.NewForConfig(lab.Config())
	if err != nil {
		t.Fatal(err)
	}
	lists, err := discovery.ServerPreferredResources(lab.Client().Discovery())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, list := range lists {
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || slices.Contains(volatileKinds, r.Kind) {
				continue
			}
			group, version, ok := strings.Cut(list.GroupVersion, "/")
			if !ok {
				group, version = "", group
			}
			kind := schema.GroupVersionResource{Group: group, Version: version, Resource: r.Name}
			objects, err := client.Resource(kind).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatalf("list %s: %v", r.Name, err)
			}
			for _, o := range objects.Items {
				out = append(out, "object "+r.Kind+" "+o.GetNamespace()+"/"+o.GetName())
			}
		}
	}
	return out
}

// listPrograms lists the names of the kernel programs; those of container runtimes have none.
func listPrograms(t *testing.T) []string {
	t.Helper()
	var out []string
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if info, err := p.Info(); err == nil && info.Name != "" {
			out = append(out, "kernel program "+info.Name)
		}
		_ = p.Close()
	}
}

// listFiles lists pins, cgroups that are not of the lab, and the files at the places of programs.
func listFiles(t *testing.T, lab *kube.Cluster) []string {
	t.Helper()
	var out []string
	for _, root := range []struct {
		path, kind string
		depth      int
	}{
		{"/sys/fs/bpf", "pin", 9},
		{"/sys/fs/cgroup", "cgroup", 9},
		{"/var/lib", "file", 1},
		{"/etc", "file", 1},
		{"/run", "file", 1},
		{"/opt", "file", 1},
		{"/var/log", "file", 1},
	} {
		err := filepath.WalkDir(root.path, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if e.IsDir() && strings.Contains(path, lab.CgroupRoot) {
				return fs.SkipDir
			}
			if root.kind != "cgroup" || e.IsDir() {
				out = append(out, root.kind+" "+path)
			}
			if relative, _ := filepath.Rel(root.path, path); e.IsDir() && strings.Count(relative, "/") >= root.depth-1 &&
				path != root.path {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// without returns the entries of a that b does not have, or not as often.
func without(a, b []string) []string {
	count := map[string]int{}
	for _, entry := range b {
		count[entry]++
	}
	var out []string
	for _, entry := range a {
		if count[entry]--; count[entry] < 0 {
			out = append(out, entry)
		}
	}
	return out
}
