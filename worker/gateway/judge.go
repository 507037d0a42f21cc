package gateway

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"stanch/sensors"
	"stanch/sensors/rules"
	"stanch/sensors/distinctcount"
)

// Judge makes detections of what no node sees: requests to Kubernetes and calls to a cloud. It adds what one event does
// not say, and asks the same rules as the nodes do.
type Judge struct {
	// Rules are those in force.
	Rules func() *rules.Set
	// Inside are the cluster's own addresses; with none, nothing is told to come from outside.
	Inside []netip.Prefix
	// Self is Stanch's own service account, "system:serviceaccount:…". What it does from within the cluster is not judged.
	Self string
	Log  *slog.Logger

	secrets, denied, reads, refusals *distinctcount.Counter

	mu sync.Mutex
	// labelled are the namespaces whose labels enforce something of pods, as far as it was told.
	labelled map[string]bool
}

// maxLabelled bounds the namespaces that are remembered.
const maxLabelled = 50_000

// Enforced tells of namespaces that enforce something of pods: what a judge cannot know that begins later than they do.
func (j *Judge) Enforced(namespaces ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range namespaces {
		if len(j.labelled) < maxLabelled {
			j.labelled[name] = true
		}
	}
}

// NewJudge makes a judge.
func NewJudge(set func() *rules.Set, inside []netip.Prefix, self string, log *slog.Logger) *Judge {
	if !strings.HasPrefix(self, "system:serviceaccount:") {
		self = "" // a person's login is theirs too
	}
	w := func() *distinctcount.Counter { return distinctcount.New(distinctcount.Options{}) }
	return &Judge{Rules: set, Inside: inside, Self: self, Log: log, secrets: w(), denied: w(), reads: w(), refusals: w(), labelled: map[string]bool{}}
}

// Detections are those of one event.
func (j *Judge) Detections(e sensors.Event) []sensors.Detection {
	switch e.Kind {
	case sensors.KindKubernetesAudit:
		j.request(&e)
		if j.Self != "" && e.Audit.User == j.Self && e.Audit.ImpersonatedUser == "" && !e.Audit.FromOutsideCluster {
			return nil
		}
	case sensors.KindCloudAPICall:
		j.call(&e)
	default:
	}
	found, errs := j.Rules().Evaluate(e)
	for _, err := range errs {
		j.Log.Error("a rule cannot be evaluated", "error", err)
	}
	return found
}

// request adds what a request alone does not say.
func (j *Judge) request(e *sensors.Event) {
	a := &e.Audit
	what := a.Namespace + "/" + a.Name
	switch {
	case a.StatusCode == 403:
		a.RecentDeniedRequests = j.denied.Add(a.User, strings.Join([]string{a.Verb, a.APIGroup, a.Resource, a.Subresource, what}, " "), e.Time)
	case a.Resource == "secrets" && a.Verb == "get" && a.StatusCode < 400:
		a.RecentSecretReads = j.secrets.Add(a.User, what, e.Time)
	}
	if a.Resource == "namespaces" && a.Subresource == "" && a.StatusCode < 400 && !a.DryRun {
		j.namespace(a)
	}
	// Only a token that is bound to a pod has a place where it belongs. Who asks may name addresses before their own: so
	// one that is not the cluster's is enough.
	a.FromOutsideCluster = a.FromPod != "" && slices.ContainsFunc(a.SourceIPs, j.outside)
}

// namespace tells whether a namespace that has no label had one before.
func (j *Judge) namespace(a *sensors.Audit) {
	switch {
	case a.Verb == "delete" || a.Admission.PodSecurityLevel == "removed":
	case a.Admission.PodSecurityLevel == "":
		return
	case a.Admission.PodSecurityLevel != "unset":
		j.Enforced(a.Name)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if a.Admission.PodSecurityLevel == "unset" && a.Verb != "create" && j.labelled[a.Name] {
		a.Admission.PodSecurityLevel = "removed"
	}
	delete(j.labelled, a.Name)
}

// call adds what a call alone does not say.
func (j *Judge) call(e *sensors.Event) {
	c := &e.Cloud
	what := strings.Join(c.Resources, " ")
	switch {
	case strings.Contains(c.ErrorCode, "AccessDenied") || strings.Contains(c.ErrorCode, "UnauthorizedOperation"):
		c.RecentDeniedCalls = j.refusals.Add(c.Principal, c.EventName+" "+what, e.Time)
	case c.ErrorCode == "" && (c.EventName == "GetParameters" || c.EventName == "BatchGetSecretValue"):
		for _, one := range c.Resources { // each of them is one that was read
			c.RecentReads = j.reads.Add(c.Principal, one, e.Time)
		}
	case c.ErrorCode == "" && c.ReadOnly && what != "":
		c.RecentReads = j.reads.Add(c.Principal, what, e.Time)
	}
	c.FromOutsideCluster = j.outside(c.SourceIP)
}

// outside tells whether an address is none of the cluster's. What is no address (a service of AWS by its name) is not
// outside, and nothing is where nobody said what is inside.
func (j *Judge) outside(address string) bool {
	addr, err := netip.ParseAddr(address)
	if err != nil || len(j.Inside) == 0 {
		return false
	}
	addr = addr.Unmap()
	return !addr.IsLoopback() && !slices.ContainsFunc(j.Inside, func(p netip.Prefix) bool { return p.Contains(addr) })
}
