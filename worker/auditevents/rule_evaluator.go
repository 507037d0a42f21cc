package auditevents

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

// RuleEvaluator evaluates events that no node sees: requests to Kubernetes and calls to a cloud. It adds context to the
// event, and uses the same rules as the nodes. It is safe for concurrent use.
type RuleEvaluator struct {
	// Rules returns the rules in force.
	Rules func() *rules.Set
	// ClusterPrefixes are the cluster's own networks. If empty, no address counts as outside.
	ClusterPrefixes []netip.Prefix
	// StanchServiceAccount is Stanch's own service account, "system:serviceaccount:…". Its requests from within the
	// cluster are not evaluated.
	StanchServiceAccount string
	Log                  *slog.Logger

	secretReads, deniedRequests, cloudReads, deniedCloudCalls *distinctcount.Counter

	mu sync.Mutex
	// enforcedNamespaces are the namespaces whose labels enforce a pod security standard, as far as they are known.
	enforcedNamespaces map[string]bool
}

// maxEnforcedNamespaces is the maximum number of stored namespaces.
const maxEnforcedNamespaces = 50_000

// AddEnforcedNamespaces adds namespaces that enforce a pod security standard, because the events before the start are
// unknown.
func (j *RuleEvaluator) AddEnforcedNamespaces(namespaces ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range namespaces {
		if len(j.enforcedNamespaces) < maxEnforcedNamespaces {
			j.enforcedNamespaces[name] = true
		}
	}
}

// NewRuleEvaluator returns a RuleEvaluator. set returns the rules in force, inside are the cluster's networks, and self
// is Stanch's service account.
func NewRuleEvaluator(set func() *rules.Set, inside []netip.Prefix, self string, log *slog.Logger) *RuleEvaluator {
	if !strings.HasPrefix(self, "system:serviceaccount:") {
		self = "" // people use their account interactively too
	}
	w := func() *distinctcount.Counter { return distinctcount.New(distinctcount.Options{}) }
	return &RuleEvaluator{
		Rules: set, ClusterPrefixes: inside, StanchServiceAccount: self, Log: log, secretReads: w(),
		deniedRequests: w(), cloudReads: w(), deniedCloudCalls: w(), enforcedNamespaces: map[string]bool{},
	}
}

// Evaluate returns the detections of one event.
func (j *RuleEvaluator) Evaluate(e sensors.Event) []sensors.Detection {
	switch e.Kind {
	case sensors.KindKubernetesAudit:
		j.enrichAuditEvent(&e)
		if j.StanchServiceAccount != "" && e.Audit.User == j.StanchServiceAccount && e.Audit.ImpersonatedUser == "" &&
			!e.Audit.FromOutsideCluster {
			return nil
		}
	case sensors.KindCloudAPICall:
		j.enrichCloudCall(&e)
	default:
	}
	found, errs := j.Rules().Evaluate(e)
	for _, err := range errs {
		j.Log.Error("evaluate a rule", "error", err)
	}
	return found
}

// enrichAuditEvent adds context to a request.
func (j *RuleEvaluator) enrichAuditEvent(e *sensors.Event) {
	a := &e.Audit
	what := a.Namespace + "/" + a.Name
	switch {
	case a.StatusCode == 403:
		a.RecentDeniedRequests = j.deniedRequests.Add(a.User,
			strings.Join([]string{a.Verb, a.APIGroup, a.Resource, a.Subresource, what}, " "), e.Time)
	case a.Resource == "secrets" && a.Verb == "get" && a.StatusCode < 400:
		a.RecentSecretReads = j.secretReads.Add(a.User, what, e.Time)
	}
	if a.Resource == "namespaces" && a.Subresource == "" && a.StatusCode < 400 && !a.DryRun {
		j.enrichNamespaceEvent(a)
	}
	// Only a token that is bound to a pod has an expected location. A client can prepend addresses to its own, so one
	// outside address is enough.
	a.FromOutsideCluster = a.FromPod != "" && slices.ContainsFunc(a.SourceIPs, j.isOutsideCluster)
}

// enrichNamespaceEvent adds whether a namespace without a label had one before.
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

// enrichCloudCall adds context to a call.
func (j *RuleEvaluator) enrichCloudCall(e *sensors.Event) {
	c := &e.Cloud
	what := strings.Join(c.Resources, " ")
	switch {
	case strings.Contains(c.ErrorCode, "AccessDenied") || strings.Contains(c.ErrorCode, "UnauthorizedOperation"):
		c.RecentDeniedCalls = j.deniedCloudCalls.Add(c.Principal, c.EventName+" "+what, e.Time)
	case c.ErrorCode == "" && (c.EventName == "GetParameters" || c.EventName == "BatchGetSecretValue"):
		for _, one := range c.Resources { // each resource was read
			c.RecentReads = j.cloudReads.Add(c.Principal, one, e.Time)
		}
	case c.ErrorCode == "" && c.ReadOnly && what != "":
		c.RecentReads = j.cloudReads.Add(c.Principal, what, e.Time)
	}
	c.FromOutsideCluster = j.isOutsideCluster(c.SourceIP)
}

// isOutsideCluster reports whether an address is outside the cluster. A name that is no address (such as an AWS
// service) is not outside, and nothing is if no networks are configured.
func (j *RuleEvaluator) isOutsideCluster(address string) bool {
	addr, err := netip.ParseAddr(address)
	if err != nil || len(j.ClusterPrefixes) == 0 {
		return false
	}
	addr = addr.Unmap()
	return !addr.IsLoopback() && !slices.ContainsFunc(j.ClusterPrefixes,
		func(p netip.Prefix) bool { return p.Contains(addr) })
}
