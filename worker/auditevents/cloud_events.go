package auditevents

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/worker/ingest"
)

// CloudEvents handles calls to AWS: it finds the pod that made them, evaluates the rules, and sends detections to
// their incidents.
type CloudEvents struct {
	RuleEvaluator *RuleEvaluator
	Ingester      *ingest.Ingester
	// EKSCluster is the name of this cluster at EKS; sessions of other clusters are ignored. "" accepts those of any.
	EKSCluster string
	Log        *slog.Logger

	mu sync.Mutex
	// workloadsBySessionKey contains the workloads of session keys: every later call names the key that it uses. It is
	// made at the first use.
	workloadsBySessionKey *lru.LRU[string, sessionWorkload]
	accountsByRole        map[string][]sessionWorkload // by role ARN: the service accounts with its annotation
	rolesReadAt           time.Time
}

// sessionWorkload is the workload of a session, as far as it is known.
type sessionWorkload struct{ namespace, serviceAccount, pod, uid string }

// CloudTrailSource is the source name of CloudTrail.
const CloudTrailSource = "cloudtrail"

const (
	maxSessionKeys = 20_000
	rolesCacheTTL  = time.Minute
	// roleAnnotation is the annotation of a service account that names the role of its pods.
	roleAnnotation = "eks.amazonaws.com/role-arn"
)

// HandleEvents evaluates events, and returns when Temporal has the detections. An error means that the events must be
// delivered again.
func (c *CloudEvents) HandleEvents(ctx context.Context, events []sensors.Event) error {
	var out []sensors.Detection
	for _, e := range events {
		c.rememberSession(e.Cloud)
		pods, err := c.attachWorkload(ctx, &e)
		if err != nil {
			return err
		}
		for _, d := range c.RuleEvaluator.Evaluate(e) {
			d.Source, d.Detected = CloudTrailSource, time.Now().UTC()
			d.Reasons = append([]string{describeCloudCall(e.Cloud)}, d.Reasons...)
			if err := c.attribute(ctx, &d, pods); err != nil {
				return err
			}
			if err := c.Ingester.Check(ctx, &d, ""); err != nil {
				c.Log.Warn("refused a cloud detection", "rule", d.Rule, "error", err)
				continue
			}
			out = append(out, d)
		}
	}
	return c.Ingester.AcceptChunks(ctx, out, nil)
}

// rememberSession records the workload of a new session: EKS Pod Identity names the pod, IRSA the service account.
func (c *CloudEvents) rememberSession(e sensors.Cloud) {
	if !strings.HasPrefix(e.EventName, "AssumeRole") || e.ServiceAccount == "" || e.ErrorCode != "" ||
		c.isOtherCluster(e) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range e.Resources {
		if strings.HasPrefix(key, "ASIA") {
			c.sessionKeys().Add(key, sessionWorkload{e.Namespace, e.ServiceAccount, e.Pod, e.PodUID})
		}
	}
}

// sessionKeys returns workloadsBySessionKey. The caller holds mu.
func (c *CloudEvents) sessionKeys() *lru.LRU[string, sessionWorkload] {
	if c.workloadsBySessionKey == nil {
		cache, err := lru.NewLRU[string, sessionWorkload](maxSessionKeys, nil)
		if err != nil {
			panic(fmt.Sprintf("make the cache of session keys: %v", err)) // only a size below 1 is an error
		}
		c.workloadsBySessionKey = cache
	}
	return c.workloadsBySessionKey
}

// isOtherCluster reports whether a session belongs to a pod of another cluster, which may use the same names.
func (c *CloudEvents) isOtherCluster(e sensors.Cloud) bool {
	return c.EKSCluster != "" && e.Cluster != "" && e.Cluster != c.EKSCluster
}

// attachWorkload finds the workload of a call, and its pods if the session does not name the pod.
func (c *CloudEvents) attachWorkload(ctx context.Context, e *sensors.Event) ([]corev1.Pod, error) {
	a := &e.Cloud
	if c.isOtherCluster(*a) {
		a.Namespace, a.ServiceAccount, a.Pod, a.PodUID = "", "", "", ""
		return nil, nil
	}
	c.mu.Lock()
	w, known := c.sessionKeys().Get(a.AccessKeyID)
	c.mu.Unlock()
	if !known && a.ServiceAccount != "" {
		w, known = sessionWorkload{a.Namespace, a.ServiceAccount, a.Pod, a.PodUID}, true
	}
	kube := c.Ingester.Kube
	if !known && a.Role != "" && kube != nil {
		accounts, err := c.accountsForRole(ctx, a)
		if err != nil {
			return nil, err
		}
		// A role of several service accounts does not identify the caller.
		if len(accounts) == 1 {
			w, known = accounts[0], true
		}
	}
	if !known {
		return nil, nil
	}
	a.Namespace, a.ServiceAccount, a.Pod, a.PodUID = w.namespace, w.serviceAccount, w.pod, w.uid
	if a.Pod != "" || kube == nil {
		return nil, nil
	}
	list, err := kube.CoreV1().Pods(a.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.serviceAccountName=" +
		a.ServiceAccount, ResourceVersion: "0", Limit: 500})
	if err != nil {
		c.Log.Warn("list the pods of a role", "namespace", a.Namespace, "account", a.ServiceAccount, "error", err)
		return nil, nil
	}
	var pods []corev1.Pod
	for _, p := range list.Items {
		if p.Spec.ServiceAccountName == a.ServiceAccount {
			pods = append(pods, p) // the session's name is ignored, because whoever assumes a role chooses it
		}
	}
	return pods, nil
}

// accountsForRole returns the service accounts with a role's annotation.
func (c *CloudEvents) accountsForRole(ctx context.Context, a *sensors.Cloud) ([]sessionWorkload, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accountsByRole == nil || time.Since(c.rolesReadAt) > rolesCacheTTL {
		list, err := c.Ingester.Kube.CoreV1().ServiceAccounts("").List(ctx,
			metav1.ListOptions{ResourceVersion: "0", Limit: 5000})
		if err != nil {
			c.Log.Warn("could not list the service accounts; the role's workload remains unknown", "error", err)
			c.rolesReadAt = time.Now()
			return nil, nil
		}
		c.accountsByRole, c.rolesReadAt = map[string][]sessionWorkload{}, time.Now()
		for _, s := range list.Items {
			if arn := s.Annotations[roleAnnotation]; arn != "" {
				c.accountsByRole[roleKey(arn)] = append(c.accountsByRole[roleKey(arn)], sessionWorkload{
					namespace:      s.Namespace,
					serviceAccount: s.Name,
				})
			}
		}
	}
	return c.accountsByRole[a.Account+"/"+a.Role], nil
}

// roleKey returns a role's key: its account and its name without the path, as in a session's ARN.
func roleKey(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return arn
	}
	return parts[4] + "/" + parts[5][strings.LastIndexByte(parts[5], '/')+1:]
}

// attribute sets the subject of a detection: the pod, if the session or the service account identifies it; otherwise
// the workload of the account's pods, whose incident it joins without a pod to contain; otherwise the role or the user.
func (c *CloudEvents) attribute(ctx context.Context, d *sensors.Detection, pods []corev1.Pod) error {
	a := d.Event.Cloud
	pod := sensors.Pod{Namespace: a.Namespace, Name: a.Pod, UID: a.PodUID}
	if len(pods) == 1 {
		pod = sensors.Pod{Namespace: pods[0].Namespace, Name: pods[0].Name, UID: string(pods[0].UID)}
	}
	d.Event.Container = sensors.Container{}
	if pod.Name != "" {
		one := *d
		one.Event.Container.Pod = pod
		err := c.Ingester.CompletePod(ctx, &one)
		if later := (*ingest.TemporaryError)(nil); errors.As(err, &later) {
			return err
		}
		if err == nil {
			*d = one
			return nil
		}
		d.Reasons = append(d.Reasons, "It was made by the pod "+truncate.Name(
			pod.Namespace+"/"+pod.Name)+", which cannot be contained: "+truncate.Reason(err.Error())+".")
	}
	d.Event.Subject = sensors.Subject{Kind: "User", Name: a.Principal}
	if a.Role != "" {
		d.Event.Subject = sensors.Subject{Kind: "Role", Name: fmt.Sprintf("%s/%s", a.Account, a.Role)}
	}
	// a failed login was not made by that user
	if d.Event.Subject.Name == "" || a.EventName == "ConsoleLogin" && a.ErrorCode != "" {
		d.Event.Subject = sensors.Subject{Kind: "Account", Name: a.Account}
	}
	for i := range pods {
		w := c.Ingester.PodOwner(ctx, &pods[i])
		owner := sensors.Workload{Kind: w.Kind, Name: w.Name}
		if i > 0 && owner != d.Event.Container.Workload {
			// pods of several workloads use this service account
			d.Event.Container, d.TargetConfirmed = sensors.Container{}, false
			break
		}
		d.Event.Container, d.TargetConfirmed = sensors.Container{
			Workload: owner,
			Pod:      sensors.Pod{Namespace: pods[i].Namespace, ServiceAccount: a.ServiceAccount},
		}, true
	}
	if len(pods) > 1 {
		d.Reasons = append(d.Reasons, fmt.Sprintf(
			"%d pods use the service account %s/%s, and the session does not identify the pod.", len(pods),
			truncate.Name(a.Namespace), truncate.Name(a.ServiceAccount)))
	}
	return nil
}

// describeCloudCall returns who made which call, and from where, in one sentence.
func describeCloudCall(a sensors.Cloud) string {
	who := a.Principal
	if who == "" {
		who = "the account " + a.Account
	}
	s := fmt.Sprintf("%s called %s of %s", truncate.Name(who), truncate.Name(a.EventName),
		truncate.Name(strings.TrimSuffix(a.Service, ".amazonaws.com")))
	if len(a.Resources) > 0 {
		s += " on " + truncate.Name(a.Resources[0])
	}
	if a.SourceIP != "" {
		s += " from " + truncate.Name(a.SourceIP)
	}
	if a.ErrorCode != "" {
		return s + "; the response was " + truncate.Name(a.ErrorCode) + "."
	}
	return s + "."
}
