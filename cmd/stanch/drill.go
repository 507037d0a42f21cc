package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/worker/decisions"
	"stanch/worker/drills"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// drillScenarios maps each attack to the rule that must detect it.
var drillScenarios = map[string]struct{ rule, doc string }{
	"cryptominer":   {"miner-process", "a program with the command line of a miner connects to a pool"},
	"shell":         {"terminal-shell", "a shell with a terminal runs in a container"},
	"reverse-shell": {"reverse-shell", "a shell reads from and writes to a network connection"},
	"credentials":   {"token-read", "a tool reads the service account token"},
}

// drillOptions holds the flags of `stanch drill`.
type drillOptions struct {
	output       string
	kubeconfig   string
	image        string
	lockDuration time.Duration
	timeout      time.Duration
	roles        []string
}

func drillCommand(g *globalFlags) *cobra.Command {
	o := drillOptions{}
	c := &cobra.Command{
		Use: "drill [NAME]", Short: "Run a safe, real attack and check the response end to end",
		Args:      validateArgs(cobra.MaximumNArgs(1)),
		ValidArgs: []string{"cryptominer", "shell", "reverse-shell", "credentials"},
		Long: `Run a safe, real attack in a container made for it, after installing or changing Stanch, and
check every step of the response: the attack is detected and opens one incident, evidence is
captured, the container is contained and its egress blocked, a sibling is unaffected, the
lease is undone, and the connection is restored. Stanch must be running. Exit code 0 means
that every check passed. In a cluster, a drill does what the installation's phase permits: in
phase 1 it checks that the containment is proposed.

NAME is one of (default cryptominer):

  cryptominer     ` + drillScenarios["cryptominer"].doc + `
  shell           ` + drillScenarios["shell"].doc + `
  reverse-shell   ` + drillScenarios["reverse-shell"].doc + `
  credentials     ` + drillScenarios["credentials"].doc,
		Example: `  stanch drill
  stanch drill reverse-shell -o json
  stanch drill cryptominer --kubeconfig ~/.kube/config
  stanch drill --cluster stanch-system
  stanch drill credentials --kubeconfig ~/.kube/config --role stanch-drill-reader`,
		RunE: func(cmd *cobra.Command, names []string) error {
			name := "cryptominer"
			if len(names) == 1 {
				name = names[0]
			}
			if err := o.validate(g, name); err != nil {
				return err
			}
			d := &drillRun{name: name, client: g.newAPIClient(), options: o, result: drillResult{
				Drill:  name,
				Checks: []drillCheck{}, Leases: []drillLease{},
			}}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			if err := d.run(ctx); err != nil {
				return err
			}
			return d.printReport(cmd)
		},
	}
	f := c.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "",
		"the kubeconfig `FILE` of a cluster to drill in, in the namespace stanch-drill (default: this host, or with "+
			"--cluster that of $KUBECONFIG)")
	f.StringVar(&o.image, "image", "busybox:1.36", "the `IMAGE` of the drill's pods")
	f.Var(duration.NewFlag(&o.lockDuration, time.Second), "observe", "how long to observe that egress stays blocked")
	f.Var(duration.NewFlag(&o.timeout, 2*time.Minute), "timeout", "give up after this long")
	f.StringSliceVar(&o.roles, "role", nil,
		"an IAM `ROLE` created for drills; the drill's approver may approve steps that affect it; its name begins with "+
			"stanch-drill-")
	addOutputFlag(c, &o.output)
	return c
}

// validate checks the name of the drill, and that it attacks the cluster whose Stanch it asks.
func (o *drillOptions) validate(g *globalFlags, name string) error {
	if _, ok := drillScenarios[name]; !ok {
		return usageError{fmt.Errorf("unknown drill %q; use cryptominer, shell, reverse-shell or credentials", name)}
	}
	if o.kubeconfig != "" && g.clusterNamespace != "" {
		return usageError{errors.New("--kubeconfig and --cluster exclude each other; --cluster uses $KUBECONFIG for both")}
	}
	return nil
}

// drillRun is one drill in progress.
type drillRun struct {
	name        string
	client      *apiClient
	options     drillOptions
	result      drillResult
	phase       int // in phase 1 a drill contains nothing
	environment drillEnvironment
}

func (d *drillRun) logf(format string, a ...any) {
	if d.options.output == "text" {
		logProgress(format, a...)
	}
}

func (d *drillRun) run(ctx context.Context) error {
	var key drills.Key
	if err := d.client.post(ctx, "/v1/drill", map[string]string{"name": d.name}, &key); err != nil {
		return err
	}
	d.client.drillKey, d.phase = key.Key, key.Phase
	if err := d.waitForSensor(ctx); err != nil {
		return err
	}
	d.logf("drill %s: %s", d.name, drillScenarios[d.name].doc)
	var err error
	if d.options.kubeconfig != "" || d.client.pod != nil {
		d.environment, err = newClusterEnvironment(ctx, d.options, d.name, d.registerDrillTargets)
	} else {
		var s *hostEnvironment
		if s, err = newHostEnvironment(ctx, d.name, d.registerDrillTargets); err == nil {
			d.environment = s
		}
	}
	if err != nil {
		return err
	}
	defer d.environment.Close()
	d.followResponse(ctx)
	d.result.OK = len(d.result.Checks) > 0 && !slices.ContainsFunc(d.result.Checks,
		func(c drillCheck) bool { return !c.OK })
	return nil
}

// registerDrillTargets adds the targets that the drill created to its scope, before the attack starts.
func (d *drillRun) registerDrillTargets(ctx context.Context, targets drills.Targets) error {
	targets.Roles = d.options.roles
	return d.client.post(ctx, "/v1/drill/targets", targets, nil)
}

func (d *drillRun) waitForSensor(ctx context.Context) error {
	for {
		var nodes map[string]any
		if err := d.client.get(ctx, "/v1/nodes", &nodes); err != nil {
			return err
		}
		if len(nodes) > 0 {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return errors.New("wait for a sensor: none is connected; `stanch doctor` shows what is missing")
		}
	}
}

// sleep waits for t, or returns the error of ctx if that ends first.
func sleep(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// waitForIncident polls the drill's incident until ok accepts it, at most for limit. It returns the last state that
// it read.
func (d *drillRun) waitForIncident(ctx context.Context, limit time.Duration,
	ok func(playbooks.Incident) bool,
) (playbooks.Incident, bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var in playbooks.Incident
	for {
		if d.result.Incident == "" {
			d.findIncident(ctx)
		}
		if d.result.Incident != "" {
			var now playbooks.Incident
			if d.client.get(ctx, "/v1/incidents/"+d.result.Incident, &now) == nil {
				if in = now; ok(in) {
					return in, true
				}
			}
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			return in, false
		}
	}
}

// findIncident finds the open incident of the drill's target.
func (d *drillRun) findIncident(ctx context.Context) {
	var list []playbooks.Incident
	if d.client.get(ctx, "/v1/incidents", &list) != nil {
		return
	}
	for _, in := range list {
		for _, t := range in.Targets {
			if in.Status == "open" && (t.UID == d.environment.TargetID() || t.ContainerID == d.environment.TargetID()) {
				d.result.Incident = in.ID
			}
		}
	}
}

func (d *drillRun) followResponse(ctx context.Context) {
	rule := drillScenarios[d.name].rule
	in, ok := d.waitForIncident(ctx, 20*time.Second, func(in playbooks.Incident) bool {
		return slices.ContainsFunc(in.Detections, func(x playbooks.DetectionSummary) bool { return x.Rule == rule })
	})
	if !d.recordCheck("detected", ok, "rule %s, incident %s: %s", rule, in.ID, in.Summary) {
		return
	}
	if d.phase == 1 {
		d.checkProposal(ctx)
		return
	}
	// Approvals for the complete workload come later: scaling it down would also end the sibling and the open
	// connection.
	approved := false
	in, ok = d.waitForIncident(ctx, 40*time.Second, func(in playbooks.Incident) bool {
		if slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool {
			return l.State == string(lease.StateHeld) &&
				l.Verified
		}) {
			return true
		}
		approved = d.approvePending(ctx, targetsOnlyPods) || approved
		return false
	})
	if !d.recordCheck("contained", ok, "%s", formatLeases(in)) {
		d.explainFailure(in)
		return
	}
	d.recordLatency(in)
	d.checkTraffic(ctx)
	in, ok = d.waitForIncident(ctx, 60*time.Second, func(in playbooks.Incident) bool {
		approved = d.approvePending(ctx, anyApprovalRequest) || approved
		return isEnded(in) && !slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool {
			return l.State != string(lease.StateHeld) || !l.Verified && l.Outcome != playbooks.OutcomeUnverified
		})
	})
	if approved {
		d.recordCheck("approved", true, "the approver of the scope approved with the drill's key")
	}
	d.result.Evidence = len(in.Evidence)
	d.recordCheck("evidence-captured", len(in.Evidence) > 0, "%s", formatCount(len(in.Evidence), "artifact", "artifacts"))
	if !d.recordCheck("playbook-completed", ok, "%s", formatLeases(in)) {
		d.explainFailure(in)
	}
	if d.name == "credentials" {
		d.checkCloudSteps(in)
	}
	d.releaseLeases(ctx)
}

// checkProposal checks that the playbook captured evidence and proposed the containment, which phase 1 does not permit.
func (d *drillRun) checkProposal(ctx context.Context) {
	in, ok := d.waitForIncident(ctx, 60*time.Second, isEnded)
	d.recordLatency(in)
	d.result.Evidence = len(in.Evidence)
	d.recordCheck("evidence-captured", len(in.Evidence) > 0, "%s", formatCount(len(in.Evidence), "artifact", "artifacts"))
	var proposed []string
	for _, run := range in.Playbooks {
		for _, s := range run.Steps {
			if s.Outcome == playbooks.OutcomeProposed {
				proposed = append(proposed, s.Action)
			}
		}
	}
	d.recordCheck("containment-proposed", len(proposed) > 0 && len(in.Leases) == 0,
		"proposed in phase 1, and not done: %s", strings.Join(proposed, ", "))
	if !d.recordCheck("playbook-completed", ok, "%s", formatLeases(in)) {
		d.explainFailure(in)
	}
}

// targetsOnlyPods reports whether every plan of a question is for a single pod or container.
func targetsOnlyPods(p playbook.ApprovalRequest) bool {
	return !slices.ContainsFunc(p.Plans, func(r activities.PlanResult) bool {
		kind, _, _ := strings.Cut(r.Plan.TargetID, ":")
		return !playbooks.TargetKind(kind).IsDetectable()
	})
}

func anyApprovalRequest(playbook.ApprovalRequest) bool { return true }

func isEnded(in playbooks.Incident) bool {
	return len(in.Playbooks) > 0 && !slices.ContainsFunc(in.Playbooks,
		func(p playbooks.PlaybookRun) bool { return p.Ended.IsZero() })
}

// approvePending approves the pending requests of the incident that fits accepts, with the drill's key. It reports
// whether it approved any.
func (d *drillRun) approvePending(ctx context.Context, fits func(playbook.ApprovalRequest) bool) bool {
	var pending []playbook.ApprovalRequest
	if d.client.get(ctx, "/v1/pending", &pending) != nil {
		return false
	}
	approved := false
	for _, p := range pending {
		if p.IncidentID == d.result.Incident && len(p.Votes) == 0 && fits(p) {
			approved = d.client.post(ctx, "/v1/vote", decisions.VoteRequest{
				IncidentID: p.IncidentID,
				RequestID:  p.QualifiedID(), Approve: true, Reason: "drill",
			}, nil) == nil || approved
		}
	}
	return approved
}

// checkTraffic checks that the victim sends nothing to the peer while its sibling does.
func (d *drillRun) checkTraffic(ctx context.Context) {
	_ = sleep(ctx, 200*time.Millisecond) // lines in flight arrive first
	observe := d.options.lockDuration
	probed, hasProbes := d.environment.(probedEnvironment)
	if hasProbes {
		observe = max(observe, probed.ObservationTime())
	}
	before, sibling := d.environment.VictimLineCount(), d.environment.SiblingLineCount()
	_ = sleep(ctx, observe)
	d.recordCheck("egress-blocked", d.environment.VictimLineCount() == before,
		"%d lines from the victim reached the peer in %s", d.environment.VictimLineCount()-before, observe)
	d.recordCheck("sibling-unaffected", d.environment.SiblingLineCount() > sibling,
		"the sibling sent %d lines in the same time", d.environment.SiblingLineCount()-sibling)
	if hasProbes {
		detail, err := probed.CheckProbes(ctx)
		d.recordCheck("probes-passing", err == nil, "%s", cmp.Or(detail, fmt.Sprint(err)))
	}
}

// releaseLeases releases the leases as a person would, and checks that they are undone and the connection is restored.
func (d *drillRun) releaseLeases(ctx context.Context) {
	before := d.environment.VictimLineCount()
	in, _ := d.waitForIncident(ctx, 5*time.Second, func(playbooks.Incident) bool { return true })
	for _, l := range in.Leases {
		if l.State == string(lease.StateEnded) {
			continue
		}
		if err := d.client.post(ctx, "/v1/release", decisions.LeaseRequest{LeaseID: l.ID}, nil); err != nil {
			d.recordCheck("leases-released", false, "%s: %v", l.ID, err)
		}
	}
	in, ok := d.waitForIncident(ctx, 30*time.Second, func(in playbooks.Incident) bool {
		return !slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool { return !l.Undone })
	})
	for _, l := range in.Leases {
		d.result.Leases = append(d.result.Leases, drillLease{
			Action: l.Action, Target: l.Target, Facet: l.Facet, Outcome: l.Outcome,
			Verified: l.Outcome == playbooks.OutcomeChanged, Undone: l.Undone,
		})
	}
	d.recordCheck("leases-undone", ok && len(in.Leases) > 0, "%s undone and verified",
		formatCount(len(in.Leases), "lease", "leases"))
	what := "the victim's connection works again"
	if scaled := slices.ContainsFunc(in.Leases,
		func(l playbooks.LeaseReport) bool { return l.Facet == string(playbooks.FacetReplicas) }); scaled {
		what = "the new pods of the workload connect to the peer"
	}
	resumed := retryUntil(ctx, 20*time.Second, func() error {
		if d.environment.VictimLineCount() == before {
			return errors.New("no lines from the victim have arrived yet")
		}
		return nil
	}) == nil
	d.recordCheck("connection-restored", resumed, "%s", what)
	if s, ok := d.environment.(probedEnvironment); ok {
		var detail string
		err := retryUntil(ctx, 30*time.Second, func() (err error) { detail, err = s.CheckRestored(ctx); return err })
		d.recordCheck("workload-restored", err == nil, "%s", cmp.Or(detail, fmt.Sprint(err)))
	}
}
