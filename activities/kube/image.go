package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// kyvernoVerifyAnnotation is the annotation in which Kyverno records the verified images of a pod: a JSON object from
// image to "pass" or true.
const kyvernoVerifyAnnotation = "kyverno.io/verify-images"

// Limits of a report.
const (
	maxReports      = 500
	maxReportsBytes = 16 << 20
)

// imageAction is `enrich: image`.
type imageAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*imageAction)(nil)

func (*imageAction) Spec() playbooks.ActionSpec {
	rights := append(workloadPermissions(), // and the reports of the Trivy operator, if it is installed
		permission("aquasecurity.github.io", []string{"vulnerabilityreports"}, "list"))
	return playbooks.ActionSpec{
		Name:             "image",
		Verb:             playbooks.VerbEnrich,
		Class:            playbooks.ClassObserve,
		Targets:          []playbooks.TargetKind{playbooks.TargetPod},
		Doc:              "Look up when the image digest first appeared, who rolled it out, and which vulnerabilities and signature are known in the cluster.",
		Outputs:          activities.ImageFacts{},
		PlanPermissions:  rights,
		ApplyPermissions: rights,
	}
}

// Observe returns the facts about the image of the container with the detection.
func (a *imageAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	ref, err := requirePod(a.client, r)
	if err != nil {
		return activities.Observation{}, err
	}
	// The look-back is practically unlimited, because an old digest is a fact too.
	info, err := GetWorkloadInfo(ctx, a.client, ref, WorkloadOptions{
		MaxListItems: 200,
		RecentWindow: 10 * 365 * 24 * time.Hour,
	})
	if err != nil {
		return activities.Observation{}, err
	}
	pod, err := getPod(ctx, a.client, ref)
	if err != nil {
		return activities.Observation{}, err
	}
	out := newImageFacts(info, r.Target.ContainerID)
	out.Signature = readSignature(pod, out.Image, out.Digest)
	if out.Signature.State == "unknown" {
		out.Missing = append(
			out.Missing,
			"signature: the pod has no record of verification at admission; the image may still be signed",
		)
	}
	if err := a.readVulnerabilities(ctx, pod.Namespace, &out); err != nil {
		return activities.Observation{}, err
	}
	return activities.Observation{Outputs: out}, nil
}

// newImageFacts extracts the facts about an image from the workload's.
func newImageFacts(info *WorkloadInfo, container string) activities.ImageFacts {
	out := activities.ImageFacts{FirstWorkload: fmt.Sprintf("%s/%s/%s", info.Pod.Namespace, info.Owner.Kind,
		info.Owner.Name)}
	for i, c := range info.Pod.Containers {
		if c.ID == container || i == 0 {
			out.Image, out.Digest = c.Image, c.ImageDigest
		}
	}
	out.FirstSeen = info.Pod.CreatedAt
	for _, r := range info.Rollouts.Items {
		if r.IsCurrent {
			out.RolledOutAt, out.RolledOutBy = r.CreatedAt, r.FieldManager
		}
		if slices.Contains(r.ImageDigests, out.Digest) && out.Digest != "" && r.CreatedAt.Before(out.FirstSeen) {
			out.FirstSeen = r.CreatedAt
		}
	}
	if out.RolledOutAt.IsZero() {
		out.Missing = append(out.Missing, "rollout: the pod's owner has no revisions")
	}
	if out.Digest == "" {
		out.Missing = append(out.Missing, "digest: not reported by the runtime")
	}
	for _, m := range info.Missing {
		out.Missing = append(out.Missing, m.Part+": "+m.Reason)
	}
	return out
}

// readSignature reads Kyverno's annotation on the pod. Anybody who may write pods may write it too, so the result names
// its source.
func readSignature(pod *corev1.Pod, image, digest string) activities.Signature {
	unknown := activities.Signature{State: "unknown"}
	var all map[string]any
	if json.Unmarshal([]byte(pod.Annotations[kyvernoVerifyAnnotation]), &all) != nil {
		return unknown
	}
	for name, verdict := range all {
		if name != image && (digest == "" || !strings.HasSuffix(name, "@"+digest)) {
			continue
		}
		switch verdict {
		case true, "pass":
			return activities.Signature{State: "verified", Source: "annotation " + kyvernoVerifyAnnotation}
		case false, "fail":
			return activities.Signature{State: "failed", Source: "annotation " + kyvernoVerifyAnnotation}
		}
	}
	return unknown
}

// vulnerabilityReport contains the used fields of a VulnerabilityReport of the Trivy operator.
type vulnerabilityReport struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Report   struct {
		Artifact struct {
			Digest string `json:"digest"`
		} `json:"artifact"`
		Vulnerabilities []struct {
			Severity     string `json:"severity"`
			FixedVersion string `json:"fixedVersion"`
		} `json:"vulnerabilities"`
	} `json:"report"`
}

// readVulnerabilities reads the report about the digest, if there is one. Without a digest, no report certainly belongs
// to this image, because a tag may have moved.
func (a *imageAction) readVulnerabilities(ctx context.Context, namespace string, out *activities.ImageFacts) error {
	missing := func(why string) { out.Missing = append(out.Missing, "vulnerabilities: "+why) }
	raw, err := a.client.Discovery().RESTClient().Get().AbsPath("/apis/aquasecurity.github.io/v1alpha1/namespaces",
		namespace, "vulnerabilityreports").
		Param("limit", fmt.Sprint(maxReports)).DoRaw(ctx)
	switch {
	case apierrors.IsNotFound(err):
		missing("the cluster has no Trivy operator")
		return nil
	case apierrors.IsForbidden(err):
		missing(deniedDetail(err))
		return nil
	case err != nil:
		return fmt.Errorf("list the vulnerability reports of %s: %w", namespace, err)
	case len(raw) > maxReportsBytes:
		missing("the reports are too large")
		return nil
	}
	var list struct {
		Items []vulnerabilityReport `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		missing("the reports have an unknown format")
		return nil //nolint:nilerr // retrying does not help
	}
	for _, r := range list.Items {
		if out.Digest == "" || r.Report.Artifact.Digest != out.Digest {
			continue
		}
		v := &out.Vulnerabilities
		*v = activities.Vulnerabilities{ReportFound: true, Report: namespace + "/" + r.Metadata.Name}
		for _, one := range r.Report.Vulnerabilities {
			switch one.Severity {
			case "CRITICAL":
				v.Critical++
			case "HIGH":
				v.High++
			default:
				continue
			}
			if one.FixedVersion != "" {
				v.Fixable++
			}
		}
		return nil
	}
	missing("no report for this digest")
	return nil
}
