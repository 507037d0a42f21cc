package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"stanch/playbooks"
)

// maxOwners is the maximum length of an owner chain. The longest known has a pod, a ReplicaSet, a Deployment and three
// custom owners.
const maxOwners = 8

// OwnerChain is the chain of owners of an object, nearest first, as read from the API server.
type OwnerChain struct {
	Workloads []playbooks.WorkloadIdentity
	// Replicas is the desired number of replicas of the topmost owner that declares one; 0 if none does.
	Replicas int
	// IncompleteReason says why the owner of the last of Chain is unknown; "" means that it has none.
	IncompleteReason string
}

// ResolveOwners follows the controllers of an object to the root. If no owner is marked as controller, a single owner
// counts, because some operators do not mark theirs. Every owner is read from the API server and compared by UID.
func ResolveOwners(ctx context.Context, client kubernetes.Interface, namespace string, o metav1.Object) OwnerChain {
	var out OwnerChain
	seen := map[string]bool{string(o.GetUID()): true}
	for {
		next, why := controllerOwner(o)
		if next == nil {
			out.IncompleteReason = why
			return out
		}
		switch {
		case seen[string(next.UID)]:
			out.IncompleteReason = fmt.Sprintf("the owners of %s %s form a cycle", next.Kind, next.Name)
		case len(out.Workloads) == maxOwners:
			out.IncompleteReason = fmt.Sprintf("its chain of owners is longer than %d", maxOwners)
		}
		if out.IncompleteReason != "" {
			return out
		}
		seen[string(next.UID)] = true
		out.Workloads = append(out.Workloads, playbooks.WorkloadIdentity{
			Namespace: namespace, Kind: next.Kind,
			Name: next.Name, UID: string(next.UID),
		})
		object, replicas, err := readOwner(ctx, client, namespace, *next)
		if err == nil && object.GetUID() != next.UID {
			err = fmt.Errorf("a different object with the same name has another UID")
		}
		if err != nil {
			out.IncompleteReason = fmt.Sprintf("the owner of %s %s/%s is unknown: %v", next.Kind, namespace, next.Name, err)
			return out
		}
		if replicas != nil {
			out.Replicas = int(*replicas)
		}
		o = object
	}
}

// controllerOwner returns the owner to follow; nil with a reason if it is ambiguous, nil and "" if there is none. A
// static pod's owner is its node, which is no workload.
func controllerOwner(o metav1.Object) (owner *metav1.OwnerReference, why string) {
	owner = metav1.GetControllerOf(o)
	if refs := o.GetOwnerReferences(); owner == nil && len(refs) == 1 {
		owner = &refs[0]
	} else if owner == nil && len(refs) > 1 {
		return nil, fmt.Sprintf("%s/%s has %d owners, none of which is its controller", o.GetNamespace(), o.GetName(),
			len(refs))
	}
	if owner != nil && owner.Kind == "Node" && owner.APIVersion == "v1" {
		return nil, ""
	}
	return owner, ""
}

// readOwner reads the metadata of an owner, and its replicas if its kind has any.
func readOwner(ctx context.Context, client kubernetes.Interface, namespace string,
	ref metav1.OwnerReference,
) (metav1.Object, *int32, error) {
	group, version, found := strings.Cut(ref.APIVersion, "/")
	if !found {
		group, version = "", ref.APIVersion
	}
	switch group + "/" + ref.Kind {
	case "apps/Deployment", "apps/StatefulSet", "apps/ReplicaSet":
		w, err := WorkloadRef{Kind: ref.Kind, Namespace: namespace, Name: ref.Name}.getWorkload(ctx, client)
		if err != nil {
			return nil, nil, err
		}
		return w.meta, &w.replicas, nil
	case "apps/DaemonSet":
		d, err := client.AppsV1().DaemonSets(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return nil, nil, err
		}
		return d, &d.Status.DesiredNumberScheduled, nil
	case "batch/Job":
		j, err := client.BatchV1().Jobs(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return nil, nil, err
		}
		return j, j.Spec.Parallelism, nil
	case "batch/CronJob":
		c, err := client.BatchV1().CronJobs(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		return c, nil, err
	case "/ReplicationController":
		c, err := client.CoreV1().ReplicationControllers(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return nil, nil, err
		}
		return c, c.Spec.Replicas, nil
	}
	o, err := readCustomResource(ctx, client, namespace, schema.GroupVersionKind{
		Group: group, Version: version,
		Kind: ref.Kind,
	}, ref.Name)
	return o, nil, err
}

// readCustomResource reads the metadata of an object of any kind that the API server serves.
func readCustomResource(ctx context.Context, client kubernetes.Interface, namespace string,
	kind schema.GroupVersionKind, name string,
) (metav1.Object, error) {
	api := client.Discovery().RESTClient()
	if api == nil {
		return nil, fmt.Errorf("this client cannot read objects of kind %s", kind)
	}
	root := []string{"apis", kind.Group, kind.Version}
	if kind.Group == "" {
		root = []string{"api", kind.Version}
	}
	var resources metav1.APIResourceList
	raw, err := api.Get().AbsPath(root...).Do(ctx).Raw()
	if err == nil {
		err = json.Unmarshal(raw, &resources)
	}
	if err != nil {
		return nil, fmt.Errorf("list the kinds of %s: %w", kind.GroupVersion(), err)
	}
	for _, r := range resources.APIResources {
		if r.Kind != kind.Kind || strings.Contains(r.Name, "/") {
			continue
		}
		path := root
		if r.Namespaced {
			path = append(path, "namespaces", namespace)
		}
		raw, err := api.Get().AbsPath(append(path, r.Name, name)...).SetHeader("Accept",
			"application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json").Do(ctx).Raw()
		if err != nil {
			return nil, err
		}
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(raw, &o); err != nil {
			return nil, fmt.Errorf("read %s %s: %w", kind.Kind, name, err)
		}
		return &o, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, name)
}
