package gateway

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"stanch/sensors"
	"stanch/sensors/distinctcount"
	"stanch/sensors/rules"
)

// RuleEvaluator makes detections of what no node sees: requests to Kubernetes and calls to a cloud. It adds what one event does
// not say, and asks the same rules as the nodes do.
type RuleEvaluator struct {
	// Rules are those in force.
	Rules func() *rules.Set
	// ClusterPrefixes are the cluster's own addresses; with none, nothing is told to come from outside.
	ClusterPrefixes []netip.Prefix
	// StanchServiceAccount is Stanch's own service account, "system:serviceaccount:…". What it does from within the cluster is not judged.
	StanchServiceAccount string
	Log                  *slog.Logger

	secretReads, deniedRequests, cloudReads, deniedCloudCalls *distinctcount.Counter

	mu sync.Mutex
	// enforcedNamespaces are the namespaces whose labels enforce something of pods, as far as it was told.
	enforcedNamespaces map[string]bool
}

// maxEnforcedNamespaces bounds the namespaces that are remembered.
const maxEnforcedNamespaces = 50_000

// AddEnforcedNamespaces tells of namespaces that enforce something of pods: what a judge cannot know that begins later than they do.
func (j *RuleEvaluator) AddEnforcedNamespaces(namespaces ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range namespaces {
		if len(j.enforcedNamespaces) < maxEnforcedNamespaces {
			j.enforcedNamespaces[name] = true
		}
	}
}

// NewRuleEvaluator makes a judge.
func NewRuleEvaluator(set func() *rules.Set, inside []netip.Prefix, self string, log *slog.Logger) *RuleEvaluator {
	if !strings.HasPrefix(self, "system:serviceaccount:") {
		self = "" // a person's login is theirs too
	}
	w := func() *distinctcount.Counter { return distinctcount.New(distinctcount.Options{}) }
	return &RuleEvaluator{Rules: set, ClusterPrefixes: inside, StanchServiceAccount: self, Log: log, secretReads: w(), deniedRequests: w(), cloudReads: w(), deniedCloudCalls: w(), enforcedNamespaces: map[string]bool{}}
}

// Evaluate are those of one event.
func (j *RuleEvaluator) Evaluate(e sensors.Event) []sensors.Detection {
	switch e.Kind {
	case sensors.KindKubernetesAudit:
		j.enrichAuditEvent(&e)
		if j.StanchServiceAccount != "" && e.Audit.User == j.StanchServiceAccount && e.Audit.ImpersonatedUser == "" && !e.Audit.FromOutsideCluster {
			return nil
		}
	case sensors.KindCloudAPICall:
		j.enrichCloudCall(&e)
	default:
	}
	found, errs := j.Rules().Evaluate(e)
	for _, err := range errs {
		j.Log.Error("a rule cannot be evaluated", "error", err)
	}
	return found
}

// enrichAuditEvent adds what a request alone does not say.
func (j *RuleEvaluator) enrichAuditEvent(e *sensors.Event) {
	a := &e.Audit
	what := a.Namespace + "/" + a.Name
	switch {
	case a.StatusCode == 403:
		a.RecentDeniedRequests = j.deniedRequests.Add(a.User, strings.Join([]string{a.Verb, a.APIGroup, a.Resource, a.Subresource, what}, " "), e.Time)
	case a.Resource == "secrets" && a.Verb == "get" && a.StatusCode < 400:
		a.RecentSecretReads = j.secretReads.Add(a.User, what, e.Time)
	}
	if a.Resource == "namespaces" && a.Subresource == "" && a.StatusCode < 400 && !a.DryRun {
		j.enrichNamespaceEvent(a)
	}
	// Only a token that is bound to a pod has a place where it belongs. Who asks may name addresses before their own: so
	// one that is not the cluster's is enough.
	a.FromOutsideCluster = a.FromPod != "" && slices.ContainsFunc(a.SourceIPs, j.isOutsideCluster)
}

// enrichNamespaceEvent tells whether a namespace that has no label had one before.
func (j *RuleEvaluator) enrichNamespaceEvent(a *sensors.Audit) {
	switch {
	case a.Verb == "delete" || a.Admission.PodSecurityLevel == "removed":
	case a.Admission.PodSecurityLevel == "":
		return
	case a.Admission.PodSecurityLevel != "unset":
		j.AddEnforcedNamespaces(a.Name)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if a.Admission.PodSecurityLevel == "unset" && a.Verb != "create" && j.enforcedNamespaces[a.Name] {
		a.Admission.PodSecurityLevel = "removed"
	}
	delete(j.enforcedNamespaces, a.Name)
}

// enrichCloudCall adds what a call alone does not say.
func (j *RuleEvaluator) enrichCloudCall(e *sensors.Event) {
	c := &e.Cloud
	what := strings.Join(c.Resources, " ")
	switch {
	case strings.Contains(c.ErrorCode, "AccessDenied") || strings.Contains(c.ErrorCode, "UnauthorizedOperation"):
		c.RecentDeniedCalls = j.deniedCloudCalls.Add(c.Principal, c.EventName+" "+what, e.Time)
	case c.ErrorCode == "" && (c.EventName == "GetParameters" || c.EventName == "BatchGetSecretValue"):
		for _, one := range c.Resources { // each of them is one that was read
			c.RecentReads = j.cloudReads.Add(c.Principal, one, e.Time)
		}
	case c.ErrorCode == "" && c.ReadOnly && what != "":
		c.RecentReads = j.cloudReads.Add(c.Principal, what, e.Time)
	}
	c.FromOutsideCluster = j.isOutsideCluster(c.SourceIP)
}

// isOutsideCluster tells whether an address is none of the cluster's. What is no address (a service of AWS by its name) is not
// outside, and nothing is where nobody said what is inside.
func (j *RuleEvaluator) isOutsideCluster(address string) bool {
	addr, err := netip.ParseAddr(address)
	if err != nil || len(j.ClusterPrefixes) == 0 {
		return false
	}
	addr = addr.Unmap()
	return !addr.IsLoopback() && !slices.ContainsFunc(j.ClusterPrefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}
