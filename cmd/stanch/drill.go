package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/worker/gateway"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// drillCheck is one thing that must hold.
type drillCheck struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

type drillLatency struct {
	EventToDetection float64 `json:"event_to_detection"`
	EventToIncident  float64 `json:"event_to_incident"`
	EventToContained float64 `json:"event_to_contained"`
}

type drillLease struct {
	Action   string            `json:"action"`
	Target   string            `json:"target"`
	Facet    string            `json:"facet"`
	Outcome  playbooks.Outcome `json:"outcome"`
	Verified bool              `json:"verified"`
	Undone   bool              `json:"undone"`
}

// drillResult is what `stanch drill -o json` prints.
type drillResult struct {
	Drill    string       `json:"drill"`
	OK       bool         `json:"ok"`
	Incident string       `json:"incident"`
	Checks   []drillCheck `json:"checks"`
	Latency  drillLatency `json:"latency_ms"`
	Evidence int          `json:"evidence"`
	Leases   []drillLease `json:"leases"`
}

// drills are the attacks, and the rule that must see each.
var drills = map[string]struct{ rule, doc string }{
	"cryptominer":   {"miner-process", "a program with a miner's command line talks to a pool"},
	"shell":         {"terminal-shell", "a shell on a terminal in a container"},
	"reverse-shell": {"reverse-shell", "a shell whose input and output are a connection"},
	"credentials":   {"token-read", "a tool reads the service account token, which is nobody's business but the program's"},
}

type drillOptions struct {
	output     string
	kubeconfig string
	image      string
	hold       time.Duration
	limit      time.Duration
	roles      []string
}

func drillCommand(g *globals) *cobra.Command {
	o := drillOptions{}
	c := &cobra.Command{
		Use: "drill [NAME]", Short: "A harmless real attack, followed to its end", Args: args(cobra.MaximumNArgs(1)),
		ValidArgs: []string{"cryptominer", "shell", "reverse-shell", "credentials"},
		Long: `Make a container, attack in it for real and without harm, and follow what Stanch
does: detected, one incident, evidence, contained, silent on the wire, undone, and
the connection goes on. Exit 0 only if all of it held. Needs a running Stanch.

  cryptominer     ` + drills["cryptominer"].doc + `
  shell           ` + drills["shell"].doc + `
  reverse-shell   ` + drills["reverse-shell"].doc + `
  credentials     ` + drills["credentials"].doc,
		Example: "  stanch drill\n  stanch drill reverse-shell -o json\n  stanch drill cryptominer --kubeconfig ~/.kube/config\n  stanch drill credentials --kubeconfig ~/.kube/config --role stanch-drill-reader",
		RunE: func(cmd *cobra.Command, names []string) error {
			name := "cryptominer"
			if len(names) == 1 {
				name = names[0]
			}
			if _, ok := drills[name]; !ok {
				return usageError{fmt.Errorf("there is no drill %q: cryptominer, shell, reverse-shell, credentials", name)}
			}
			d := &drill{name: name, local: g.local(), o: o, result: drillResult{Drill: name, Checks: []drillCheck{}, Leases: []drillLease{}}}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.limit)
			defer cancel()
			if err := d.run(ctx); err != nil {
				return err
			}
			return d.report(cmd)
		},
	}
	f := c.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "drill in this cluster, in the namespace stanch-drill, instead of on this host")
	f.StringVar(&o.image, "image", "busybox:1.36", "the image of the drill's pods")
	f.Var(duration.NewFlag(&o.hold, time.Second), "hold", "how long to watch that nothing leaves")
	f.Var(duration.NewFlag(&o.limit, 2*time.Minute), "limit", "give up after this long")
	f.StringSliceVar(&o.roles, "role", nil, "IAM roles made for this drill, which its approver may answer for; each name begins with stanch-drill-")
	outputFlag(c, &o.output)
	return c
}

type drill struct {
	name   string
	local  *local
	o      drillOptions
	result drillResult
	stage  stage
}

func (d *drill) say(format string, a ...any) {
	if d.o.output == "text" {
		progress(format, a...)
	}
}

func (d *drill) check(name string, ok bool, format string, a ...any) bool {
	detail := fmt.Sprintf(format, a...)
	d.result.Checks = append(d.result.Checks, drillCheck{Name: name, OK: ok, Detail: detail})
	mark := "ok  "
	if !ok {
		mark = "FAIL"
	}
	d.say("  %s %-12s %s", mark, name, plain(detail))
	return ok
}

func (d *drill) run(ctx context.Context) error {
	var key struct {
		Key string `json:"key"`
	}
	if err := d.local.post(ctx, "/v1/drill", map[string]string{"name": d.name}, &key); err != nil {
		return err
	}
	d.local.drill = key.Key
	if err := d.waitForSensor(ctx); err != nil {
		return err
	}
	d.say("drill %s: %s", d.name, drills[d.name].doc)
	var err error
	if d.o.kubeconfig != "" {
		d.stage, err = newClusterStage(ctx, d.o, d.name, d.register)
	} else {
		var s *hostStage
		if s, err = newHostStage(ctx, d.name, d.register); err == nil {
			d.stage = s
		}
	}
	if err != nil {
		return err
	}
	defer d.stage.Close()
	d.follow(ctx)
	d.result.OK = len(d.result.Checks) > 0 && !slices.ContainsFunc(d.result.Checks, func(c drillCheck) bool { return !c.OK })
	return nil
}

// register puts what the drill created into its scope, before the attack starts.
func (d *drill) register(ctx context.Context, targets gateway.DrillTargets) error {
	targets.Roles = d.o.roles
	return d.local.post(ctx, "/v1/drill/targets", targets, nil)
}

func (d *drill) waitForSensor(ctx context.Context) error {
	for {
		var nodes map[string]any
		if err := d.local.get(ctx, "/v1/nodes", &nodes); err != nil {
			return err
		}
		if len(nodes) > 0 {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return errors.New("no node's sensor is connected; `stanch doctor` says what it lacks")
		}
	}
}

func pause(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// until polls the drill's incident until it is as it should be.
func (d *drill) until(ctx context.Context, limit time.Duration, ok func(playbooks.Incident) bool) (playbooks.Incident, bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var in playbooks.Incident
	for {
		if d.result.Incident == "" {
			d.find(ctx)
		}
		if d.result.Incident != "" {
			var now playbooks.Incident
			if d.local.get(ctx, "/v1/incidents/"+d.result.Incident, &now) == nil {
				if in = now; ok(in) {
					return in, true
				}
			}
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return in, false
		}
	}
}

// find looks for the incident about the drill's target.
func (d *drill) find(ctx context.Context) {
	var list []playbooks.Incident
	if d.local.get(ctx, "/v1/incidents", &list) != nil {
		return
	}
	for _, in := range list {
		for _, t := range in.Targets {
			if in.Status == "open" && (t.UID == d.stage.Target() || t.ContainerID == d.stage.Target()) {
				d.result.Incident = in.ID
			}
		}
	}
}

func (d *drill) follow(ctx context.Context) {
	rule := drills[d.name].rule
	in, ok := d.until(ctx, 20*time.Second, func(in playbooks.Incident) bool {
		return slices.ContainsFunc(in.Detections, func(x playbooks.DetectionSummary) bool { return x.Rule == rule })
	})
	if !d.check("detected", ok, "rule %s, incident %s: %s", rule, in.ID, in.Summary) {
		return
	}
	// Questions about the whole workload wait: to scale it away would take the sibling and the open connection along.
	approved := false
	in, ok = d.until(ctx, 40*time.Second, func(in playbooks.Incident) bool {
		if slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool { return l.State == string(lease.StateHeld) && l.Verified }) {
			return true
		}
		approved = d.approve(ctx, aboutPods) || approved
		return false
	})
	if !d.check("contained", ok, "%s", leaseLine(in)) {
		d.explain(in)
		return
	}
	d.latency(in)
	d.onTheWire(ctx)
	in, ok = d.until(ctx, 60*time.Second, func(in playbooks.Incident) bool {
		approved = d.approve(ctx, everything) || approved
		return ended(in) && !slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool {
			return l.State != string(lease.StateHeld) || !l.Verified && l.Outcome != playbooks.OutcomeUnverified
		})
	})
	if approved {
		d.check("approved", true, "the scope's approver was asked and said yes with the drill's key")
	}
	d.result.Evidence = len(in.Evidence)
	d.check("evidence", len(in.Evidence) > 0, "%d pieces", len(in.Evidence))
	if !d.check("playbook", ok, "%s", leaseLine(in)) {
		d.explain(in)
	}
	if d.name == "credentials" {
		d.cloud(in)
	}
	d.release(ctx)
}

// aboutPods tells whether a question touches single pods or containers only.
func aboutPods(p playbook.ApprovalRequest) bool {
	return !slices.ContainsFunc(p.Plans, func(r activities.PlanResult) bool {
		kind, _, _ := strings.Cut(r.Plan.TargetID, ":")
		return !playbooks.TargetKind(kind).IsDetectable()
	})
}

func everything(playbook.ApprovalRequest) bool { return true }

func ended(in playbooks.Incident) bool {
	return len(in.Playbooks) > 0 && !slices.ContainsFunc(in.Playbooks, func(p playbooks.PlaybookRun) bool { return p.Ended.IsZero() })
}

func leaseLine(in playbooks.Incident) string {
	var out []string
	for _, l := range in.Leases {
		out = append(out, fmt.Sprintf("%s %s %s", l.Action, l.Outcome, l.Reason))
	}
	if len(out) == 0 {
		return "no lease"
	}
	return strings.Join(out, "; ")
}

func (d *drill) explain(in playbooks.Incident) {
	for _, e := range in.Timeline {
		d.say("       %s", plain(e.Text))
	}
}

// approve says yes to the incident's questions that fit, with the drill's own key.
func (d *drill) approve(ctx context.Context, fits func(playbook.ApprovalRequest) bool) bool {
	var pending []playbook.ApprovalRequest
	if d.local.get(ctx, "/v1/pending", &pending) != nil {
		return false
	}
	answered := false
	for _, p := range pending {
		if p.IncidentID == d.result.Incident && len(p.Votes) == 0 && fits(p) {
			answered = d.local.post(ctx, "/v1/vote", gateway.VoteRequest{IncidentID: p.IncidentID, RequestID: p.QualifiedID(), Approve: true, Reason: "drill"}, nil) == nil || answered
		}
	}
	return answered
}

func (d *drill) latency(in playbooks.Incident) {
	ms := func(a, b time.Time) float64 { return float64(b.Sub(a).Microseconds()) / 1000 }
	first := in.Trigger
	d.result.Latency = drillLatency{EventToDetection: ms(first.Time, first.Detected), EventToIncident: ms(first.Time, in.Opened)}
	for _, l := range in.Leases {
		if l.Facet == string(playbooks.FacetNetwork) && !l.AppliedAt.IsZero() {
			d.result.Latency.EventToContained = ms(first.Time, l.AppliedAt)
		}
	}
	d.say("       event to detection %.1f ms, to incident %.1f ms, to contained %.1f ms", d.result.Latency.EventToDetection, d.result.Latency.EventToIncident, d.result.Latency.EventToContained)
}

// onTheWire watches that nothing of the attacked arrives at the peer while its sibling's goes on.
func (d *drill) onTheWire(ctx context.Context) {
	_ = pause(ctx, 200*time.Millisecond) // what was on its way arrives
	hold := d.o.hold
	probed, hasProbes := d.stage.(probedStage)
	if hasProbes {
		hold = max(hold, probed.Hold())
	}
	before, sibling := d.stage.Heard(), d.stage.SiblingHeard()
	_ = pause(ctx, hold)
	d.check("silent", d.stage.Heard() == before, "%d lines arrived at the peer in %s", d.stage.Heard()-before, hold)
	d.check("sibling", d.stage.SiblingHeard() > sibling, "the untouched sibling sent %d lines meanwhile", d.stage.SiblingHeard()-sibling)
	if hasProbes {
		detail, err := probed.Probes(ctx)
		d.check("probes", err == nil, "%s", cmp.Or(detail, fmt.Sprint(err)))
	}
}

// release ends the leases as a person would, and follows them to their undoing.
func (d *drill) release(ctx context.Context) {
	before := d.stage.Heard()
	in, _ := d.until(ctx, 5*time.Second, func(playbooks.Incident) bool { return true })
	for _, l := range in.Leases {
		if l.State == string(lease.StateEnded) {
			continue
		}
		if err := d.local.post(ctx, "/v1/release", gateway.LeaseRequest{LeaseID: l.ID}, nil); err != nil {
			d.check("released", false, "%s: %v", l.ID, err)
		}
	}
	in, ok := d.until(ctx, 30*time.Second, func(in playbooks.Incident) bool {
		return !slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool { return !l.Undone })
	})
	for _, l := range in.Leases {
		d.result.Leases = append(d.result.Leases, drillLease{
			Action: l.Action, Target: l.Target, Facet: l.Facet, Outcome: l.Outcome,
			Verified: l.Outcome == playbooks.OutcomeChanged, Undone: l.Undone,
		})
	}
	d.check("undone", ok && len(in.Leases) > 0, "%d leases undone and verified", len(in.Leases))
	what := "the attacker's connection goes on"
	if scaled := slices.ContainsFunc(in.Leases, func(l playbooks.LeaseReport) bool { return l.Facet == string(playbooks.FacetReplicas) }); scaled {
		what = "the workload's new pods talk to the peer"
	}
	resumed := poll(ctx, 20*time.Second, func() error {
		if d.stage.Heard() == before {
			return errors.New("nothing is heard yet")
		}
		return nil
	}) == nil
	d.check("resumed", resumed, "%s", what)
	if s, ok := d.stage.(probedStage); ok {
		var detail string
		err := poll(ctx, 30*time.Second, func() (err error) { detail, err = s.Restored(ctx); return err })
		d.check("restored", err == nil, "%s", cmp.Or(detail, fmt.Sprint(err)))
	}
}

func (d *drill) report(cmd *cobra.Command) error {
	if d.o.output == "json" {
		if err := printJSON(cmd.OutOrStdout(), d.result); err != nil {
			return err
		}
	} else if d.result.OK {
		fmt.Fprintf(cmd.OutOrStdout(), "drill %s held: %s\n", d.name, d.result.Incident)
	} else {
		fmt.Fprintf(os.Stderr, "drill %s did NOT hold; `stanch incidents %s` shows what happened\n", d.name, d.result.Incident)
	}
	if !d.result.OK {
		return errAnswered
	}
	return nil
}
