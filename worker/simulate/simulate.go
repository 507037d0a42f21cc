// Package simulate runs recordings through the production workflow code: the same incident, playbook and lease
// workflows, the same guards, with time skipped and actions that answer from the recording.
//
// It refuses to touch anything: no action of it reaches a node, a cluster, a store or a person. What the recording has
// no answer for is assumed from the action's spec, and said to be.
package simulate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/worker/guards"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// Match picks the playbooks for an incident, as a worker's library does.
type Match func(ctx context.Context, in playbooks.Incident) ([]incident.SelectedPlaybook, error)

// Options say how recordings are simulated. The zero value of each is as it was when they were made.
type Options struct {
	// Playbooks makes the library's Match for an authority that signs what it selects.
	Playbooks func(activities.Authority) Match
	// Requests finds the playbooks of what people asked for; nil finds none.
	Requests  func(activities.Authority) Requests
	Catalogue playbooks.Catalog
	// Config is what the guards read; nil is made from the recording.
	Config *config.Config
	// Phase is the phase everywhere; 0 is as configured, or as it was. A drill is then simulated as an attack.
	Phase int
	// Answers say what people answer.
	Answers Answers
	// Fakes answer before the recording does; nil leaves every answer to it.
	Fakes Fakes
	// Limit bounds one incident in real time; 0 is a minute.
	Limit time.Duration
}

// Simulator runs recordings one by one, or several at once: what is the same for all of them is made once.
type Simulator struct {
	o        Options
	keys     authority
	match    Match
	requests Requests
	programs *programs
	copiers  copiers
	specs    []playbooks.ActionSpec
}

// New makes a simulator.
func New(o Options) (*Simulator, error) {
	keys, err := newAuthority()
	if err != nil {
		return nil, err
	}
	m := &Simulator{o: o, keys: keys, match: o.Playbooks(keys), programs: &programs{}}
	if m.requests = (noRequests{}); o.Requests != nil {
		m.requests = o.Requests(keys)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Catalogue)) {
		m.specs = append(m.specs, o.Catalogue[name])
	}
	return m, nil
}

// sim is one simulation under way.
type sim struct {
	*Simulator
	rec     recording.Recording
	env     *testsuite.TestWorkflowEnvironment
	started time.Time

	mu      sync.Mutex
	result  Result
	runs    []string
	known   map[string]bool // questions
	names   map[string]string
	running map[string]*playbooks.Program // by name
	last    map[string]activities.Verdict
	// assumed are the actions, by target, that answered what the recording does not hold.
	assumed map[string]bool
	inputs  *inputs
	marked  []bool // which of the recording's marks were given
	// leases are the workflows of leases; released says which of the recording's releases are scheduled.
	leases   []string
	released map[int]bool
	kept     *keeper
	tape     *tape
}

// forget lets go of what was needed on the way. Temporal's test environment leaves real timers behind that hold it for
// as long as the longest timer of a workflow that was cancelled, a quarter of an hour; so much of it must not be kept.
func (s *sim) forget() {
	s.mu.Lock()
	s.rec, s.result, s.inputs = recording.Recording{}, Result{}, nil
	s.mu.Unlock()
	if s.kept != nil {
		s.kept.mu.Lock()
		s.kept.values = nil
		s.kept.mu.Unlock()
	}
	if s.tape != nil {
		s.tape.mu.Lock()
		s.tape.answers = nil
		s.tape.mu.Unlock()
	}
	if s.env != nil {
		s.env.SetOnChildWorkflowStartedListener(nil)
		s.env.SetOnTimerScheduledListener(nil)
		s.env.SetOnActivityStartedListener(nil)
		s.env.SetOnLocalActivityStartedListener(nil)
	}
}

// Run simulates one recording. What goes wrong is in the result.
func Run(ctx context.Context, file string, rec recording.Recording, o Options) Result {
	m, err := New(o)
	if err != nil {
		return Broken(file, err)
	}
	return m.Run(ctx, file, rec)
}

// Broken is the result of a recording that could not be read.
func Broken(file string, err error) Result {
	r := empty(file)
	r.Error = err.Error()
	return r
}

func empty(file string) Result {
	return Result{
		Recording: file, Playbooks: []string{}, Steps: []Step{}, Effects: []Effect{}, Events: []Event{}, Questions: []Asked{}, Missing: []string{}, Decisions: []Decision{},
	}
}

// Run simulates one recording. What goes wrong is in the result.
func (m *Simulator) Run(ctx context.Context, file string, rec recording.Recording) (result Result) {
	s := &sim{
		Simulator: m, rec: rec, started: rec.Incident.Opened, known: map[string]bool{}, names: map[string]string{}, running: map[string]*playbooks.Program{}, last: map[string]activities.Verdict{}, assumed: map[string]bool{}, inputs: newInputs(rec), released: map[int]bool{},
	}
	s.result = empty(file)
	s.result.Incident = rec.Incident.ID
	// The test environment panics where it cannot go on; one recording must not end the others.
	defer func() {
		if p := recover(); p != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.result.Error = fmt.Sprintf("the simulation could not go on: %.300v", p)
			result = s.result
		}
	}()
	if err := ctx.Err(); err != nil {
		s.result.Error = err.Error()
		return s.result
	}
	if err := s.run(); err != nil {
		s.result.Error = err.Error()
	}
	slices.Sort(s.result.Missing)
	s.result.Missing = slices.Compact(s.result.Missing)
	s.order()
	result = s.result
	s.forget()
	return result
}

// newAuthority makes an authority that lives as long as the simulation. What it signs is worth nothing elsewhere.
func newAuthority() (authority, error) {
	key, err := attestation.NewSigningKey([]byte("a simulation's key: proves nothing"[:32]))
	if err != nil {
		return authority{}, err //nolint:wrapcheck // a mistake of the program
	}
	return authority{key: key, ring: attestation.NewKeyring(key.PublicKey())}, nil
}

type authority struct {
	key  attestation.SigningKey
	ring attestation.Keyring
}

func (a authority) Keys() attestation.Keyring { return a.ring }
func (a authority) Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error) {
	return a.key.Sign(purpose, body) //nolint:wrapcheck // it names the purpose
}

func (s *sim) run() error {
	cfg, in := s.settings()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet{})
	s.env = suite.NewTestWorkflowEnvironment()
	env := s.env
	env.SetStartTime(s.started)
	limit := cmp.Or(s.o.Limit, time.Minute)
	env.SetTestTimeout(limit)
	env.SetWorkerOptions(sdkworker.Options{DeadlockDetectionTimeout: limit, BuildID: "simulation"}) // a busy machine is no deadlock
	s.kept = newKeeper(&s.copiers)
	env.SetDataConverter(s.kept)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: workflows.IncidentWorkflowID(in.GroupingKey), TaskQueue: workflows.TaskQueue})
	// A report to a workflow that has ended: the production code takes that for no error either.
	env.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(errors.New("it has ended"))

	set := activities.NewActivities(s.actions()...)
	chain := &guards.Chain{Config: cfg, Keys: s.keys.ring}
	set.Guards, set.ScopeApprovers, set.Authority, set.Now, set.Log = &heard{Chain: chain, window: guards.NewWindow(nil), sim: s}, chain, s.keys, env.Now, slog.New(slog.DiscardHandler)
	leases := &lease.Workflows{Catalog: s.o.Catalogue}
	plays := &playbook.Workflows{Catalog: s.o.Catalogue, Leases: leases, Load: s.programs.load}
	incidents := &incident.Workflows{Playbooks: plays}
	env.RegisterWorkflow(leases.Lease)
	env.RegisterWorkflow(plays.Playbook)
	env.RegisterWorkflow(incidents.Incident)
	env.RegisterActivityWithOptions(&timed{Activities: set, sim: s}, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	env.RegisterActivityWithOptions((func(context.Context, playbooks.Incident) ([]incident.SelectedPlaybook, error))(s.match), activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	env.RegisterActivityWithOptions(s.requests.Requested, activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
	s.listen(cfg)
	s.feed(in)
	s.marks()

	env.ExecuteWorkflow(incidents.Incident, in)
	var out playbooks.Incident
	if err := env.GetWorkflowError(); err != nil {
		return fmt.Errorf("simulate %s: %w", in.ID, err)
	}
	if err := env.GetWorkflowResult(&out); err != nil {
		return fmt.Errorf("simulate %s: %w", in.ID, err)
	}
	s.conclude(out, in)
	return nil
}

// feed gives the detections to the incident when they came, attested then.
func (s *sim) feed(in incident.Input) {
	batches := map[int][]recording.Detection{}
	var order []int
	for _, d := range s.rec.Detections {
		if _, ok := batches[d.BatchNumber]; !ok {
			order = append(order, d.BatchNumber)
		}
		batches[d.BatchNumber] = append(batches[d.BatchNumber], d)
	}
	for _, n := range order {
		batch := batches[n]
		s.env.RegisterDelayedCallback(func() {
			now := s.env.Now()
			var attested []incident.AttestedDetection
			var alike lines
			for _, one := range batch {
				d := one.Detection
				scope := in.Scope
				if in.Drill {
					scope = config.DrillScope
				}
				target := incident.TargetOfDetection(d)
				s.learn(target)
				var drill *attestation.DrillRegistration
				if in.Drill {
					drill = s.drill(target.ID())
				}
				signed, err := s.keys.Sign(attestation.PayloadTypeAttestation, attestation.Attestation{
					DetectionID: d.ID, DetectionHash: attestation.HashJSON(d), TargetID: target.ID(), Rule: d.Rule, Objective: string(d.Objective), Severity: string(d.Severity), Confidence: d.Confidence,
					Node: d.Node, Namespace: d.Event.Container.Pod.Namespace, Workload: incident.WorkloadOfDetection(d).String(), Scope: scope, Drill: drill, AcceptedAt: now, TargetConfirmed: d.Event.Container.Pod.Namespace != "",
					ManualRequest: s.requested(d),
				})
				if err != nil {
					s.event("error", "%v", err)
					continue
				}
				attested = append(attested, incident.AttestedDetection{Detection: d, Attestation: signed})
				alike.add(fmt.Sprintf("%s on %s: %s (rule %s, confidence %.2f)", d.Title, target, incident.Describe(d), d.Rule, d.Confidence), max(d.Count, 1))
			}
			for _, what := range alike.all() {
				s.event("detection", "%s", what)
			}
			s.env.SignalWorkflow(workflows.SignalDetections, attested)
		}, max(time.Duration(batch[0].OffsetMS)*time.Millisecond, time.Millisecond)) // at 0 the workflow does not run yet
	}
}

// drill is the registration that the recorded detections rested on.
func (s *sim) drill(target string) *attestation.DrillRegistration {
	d := &attestation.DrillRegistration{Targets: []attestation.DrillTarget{{ID: target}}}
	for _, id := range s.rec.Incident.DrillTargets {
		d.Targets = append(d.Targets, attestation.DrillTarget{ID: id})
	}
	return d
}

// listen notices playbooks that start and questions that are asked.
func (s *sim) listen(cfg *config.Config) {
	s.env.SetOnChildWorkflowStartedListener(func(info *workflow.Info, _ workflow.Context, args converter.EncodedValues) {
		if info.WorkflowType.Name == "Lease" {
			s.mu.Lock()
			s.leases = append(s.leases, info.WorkflowExecution.ID)
			s.mu.Unlock()
		}
		if info.WorkflowType.Name != "Playbook" {
			return
		}
		var in playbook.Input
		name := info.WorkflowExecution.ID
		if args.Get(&in) == nil {
			if program, _ := s.programs.load(in, s.o.Catalogue); program != nil {
				name = program.Name
				s.running[name] = program
			}
		}
		s.mu.Lock()
		s.runs = append(s.runs, info.WorkflowExecution.ID)
		s.result.Playbooks = append(s.result.Playbooks, name)
		s.mu.Unlock()
		s.event("playbook", "playbook %s started", name)
	})
	s.env.SetOnActivityStartedListener(func(*activity.Info, context.Context, converter.EncodedValues) {
		s.mu.Lock()
		s.result.Activities++
		s.mu.Unlock()
	})
	s.env.SetOnLocalActivityStartedListener(func(*activity.Info, context.Context, []any) {
		s.mu.Lock()
		s.result.Activities++
		s.mu.Unlock()
	})
	// A question begins with the timer of its deadline.
	s.env.SetOnTimerScheduledListener(func(string, time.Duration) {
		s.env.RegisterDelayedCallback(func() { s.questions(cfg) }, 0)
	})
}

func (s *sim) after() int64 { return s.env.Now().Sub(s.started).Milliseconds() }

func (s *sim) event(kind, format string, args ...any) {
	at := s.after()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Events = append(s.result.Events, Event{AtMS: at, Kind: kind, What: fmt.Sprintf(format, args...)})
}

func (s *sim) learn(t playbooks.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[t.ID()] = t.String()
}

func (s *sim) name(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.names[id], id)
}

// conclude takes over what the incident says became of it.
func (s *sim) conclude(out playbooks.Incident, in incident.Input) {
	s.result.Final = out
	for _, e := range s.result.Effects {
		if first := s.result.FirstContainmentMS; first == nil || e.FromMS < *first {
			s.result.FirstContainmentMS = &e.FromMS
		}
	}
	for _, p := range out.Playbooks {
		for _, step := range p.Steps {
			s.result.Steps = append(s.result.Steps, Step{
				Playbook: p.Playbook, Run: runOf(p.WorkflowID), Step: step.Step, Action: step.Action, Target: step.Target, Outcome: step.Outcome, Reason: step.Reason, AtMS: step.At.Sub(s.started).Milliseconds(), Assumed: s.assumed[step.Action+"\x00"+step.Target],
			})
		}
		if p.Error != "" {
			s.result.Error = fmt.Sprintf("playbook %s: %s", p.Playbook, p.Error)
		}
	}
	if len(out.Playbooks) == 0 {
		s.result.Events = append(s.result.Events, Event{AtMS: 0, Kind: "playbook", What: "no playbook matches"})
	}
	s.waits()
	s.result.EndsMS = out.Closed.Sub(s.started).Milliseconds()
	s.result.Events = append(s.result.Events, Event{AtMS: s.result.EndsMS, Kind: "closed", What: fmt.Sprintf("the incident closes: quiet for %s, nothing is held", in.IdleTimeout)})
}

// quiet is the SDK's log, which nobody reads.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
