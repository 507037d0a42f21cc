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

// MatchFunc picks the playbooks for an incident, as a worker's library does.
type MatchFunc func(ctx context.Context, in playbooks.Incident) ([]incident.SelectedPlaybook, error)

// Options say how recordings are simulated. The zero value of each is as it was when they were made.
type Options struct {
	// NewMatchFunc makes the library's Match for an authority that signs what it selects.
	NewMatchFunc func(activities.Authority) MatchFunc
	// NewRequestMatcher finds the playbooks of what people asked for; nil finds none.
	NewRequestMatcher func(activities.Authority) ManualRequestMatcher
	Catalog           playbooks.Catalog
	// Config is what the guards read; nil is made from the recording.
	Config *config.Config
	// Phase is the phase everywhere; 0 is as configured, or as it was. A drill is then simulated as an attack.
	Phase int
	// ApprovalAnswers say what people answer.
	ApprovalAnswers ApprovalAnswers
	// FakeResults answer before the recording does; nil leaves every answer to it.
	FakeResults FakeFunc
	// Timeout bounds one incident in real time; 0 is a minute.
	Timeout time.Duration
}

// Simulator runs recordings one by one, or several at once: what is the same for all of them is made once.
type Simulator struct {
	options        Options
	authority      simulatedAuthority
	matchPlaybooks MatchFunc
	requestMatcher ManualRequestMatcher
	programCache   *programCache
	deepCopier     deepCopier
	actionSpecs    []playbooks.ActionSpec
}

// NewSimulator makes a simulator.
func NewSimulator(o Options) (*Simulator, error) {
	keys, err := newSimulatedAuthority()
	if err != nil {
		return nil, err
	}
	m := &Simulator{options: o, authority: keys, matchPlaybooks: o.NewMatchFunc(keys), programCache: &programCache{}}
	if m.requestMatcher = (noManualRequests{}); o.NewRequestMatcher != nil {
		m.requestMatcher = o.NewRequestMatcher(keys)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Catalog)) {
		m.actionSpecs = append(m.actionSpecs, o.Catalog[name])
	}
	return m, nil
}

// simulation is one simulation under way.
type simulation struct {
	*Simulator
	recording       recording.Recording
	testEnvironment *testsuite.TestWorkflowEnvironment
	started         time.Time

	mu              sync.Mutex
	result          Result
	playbookRunIDs  []string
	seenRequests    map[string]bool // questions
	targetNames     map[string]string
	runningPrograms map[string]*playbooks.Program // by name
	lastVerdicts    map[string]activities.Verdict
	// assumedActions are the actions, by target, that answered what the recording does not hold.
	assumedActions map[string]bool
	recordedInputs *recordedInputs
	sentTriage     []bool // which of the recording's marks were given
	// leaseWorkflowIDs are the workflows of leases; released says which of the recording's releases are scheduled.
	leaseWorkflowIDs      []string
	scheduledLeaseChanges map[int]bool
	inMemoryConverter     *inMemoryConverter
	replayer              *replayer
}

// releaseReferences lets go of what was needed on the way. Temporal's test environment leaves real timers behind that hold it for
// as long as the longest timer of a workflow that was cancelled, a quarter of an hour; so much of it must not be kept.
func (s *simulation) releaseReferences() {
	s.mu.Lock()
	s.recording, s.result, s.recordedInputs = recording.Recording{}, Result{}, nil
	s.mu.Unlock()
	if s.inMemoryConverter != nil {
		s.inMemoryConverter.mu.Lock()
		s.inMemoryConverter.storedValues = nil
		s.inMemoryConverter.mu.Unlock()
	}
	if s.replayer != nil {
		s.replayer.mu.Lock()
		s.replayer.resultsByKey = nil
		s.replayer.mu.Unlock()
	}
	if s.testEnvironment != nil {
		s.testEnvironment.SetOnChildWorkflowStartedListener(nil)
		s.testEnvironment.SetOnTimerScheduledListener(nil)
		s.testEnvironment.SetOnActivityStartedListener(nil)
		s.testEnvironment.SetOnLocalActivityStartedListener(nil)
	}
}

// Run simulates one recording. What goes wrong is in the result.
func Run(ctx context.Context, file string, rec recording.Recording, o Options) Result {
	m, err := NewSimulator(o)
	if err != nil {
		return UnreadableResult(file, err)
	}
	return m.Run(ctx, file, rec)
}

// UnreadableResult is the result of a recording that could not be read.
func UnreadableResult(file string, err error) Result {
	r := emptyResult(file)
	r.Error = err.Error()
	return r
}

func emptyResult(file string) Result {
	return Result{
		RecordingFile: file, Playbooks: []string{}, Steps: []StepResult{}, Effects: []ContainmentEffect{}, Events: []TimelineEvent{}, ApprovalRequests: []ApprovalRequest{}, AssumedResults: []string{}, Decisions: []GuardDecision{},
	}
}

// Run simulates one recording. What goes wrong is in the result.
func (m *Simulator) Run(ctx context.Context, file string, rec recording.Recording) (result Result) {
	s := &simulation{
		Simulator: m, recording: rec, started: rec.Incident.Opened, seenRequests: map[string]bool{}, targetNames: map[string]string{}, runningPrograms: map[string]*playbooks.Program{}, lastVerdicts: map[string]activities.Verdict{}, assumedActions: map[string]bool{}, recordedInputs: newRecordedInputs(rec), scheduledLeaseChanges: map[int]bool{},
	}
	s.result = emptyResult(file)
	s.result.IncidentID = rec.Incident.ID
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
	if err := s.runWorkflows(); err != nil {
		s.result.Error = err.Error()
	}
	slices.Sort(s.result.AssumedResults)
	s.result.AssumedResults = slices.Compact(s.result.AssumedResults)
	s.sortEvents()
	result = s.result
	s.releaseReferences()
	return result
}

// newSimulatedAuthority makes an authority that lives as long as the simulation. What it signs is worth nothing elsewhere.
func newSimulatedAuthority() (simulatedAuthority, error) {
	key, err := attestation.NewSigningKey([]byte("a simulation's key: proves nothing"[:32]))
	if err != nil {
		return simulatedAuthority{}, err //nolint:wrapcheck // a mistake of the program
	}
	return simulatedAuthority{signingKey: key, keyring: attestation.NewKeyring(key.PublicKey())}, nil
}

type simulatedAuthority struct {
	signingKey attestation.SigningKey
	keyring    attestation.Keyring
}

func (a simulatedAuthority) Keyring() attestation.Keyring { return a.keyring }
func (a simulatedAuthority) Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error) {
	return a.signingKey.Sign(purpose, body) //nolint:wrapcheck // it names the purpose
}

func (s *simulation) runWorkflows() error {
	cfg, in := s.guardConfigAndInput()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(discardLogger{})
	s.testEnvironment = suite.NewTestWorkflowEnvironment()
	env := s.testEnvironment
	env.SetStartTime(s.started)
	limit := cmp.Or(s.options.Timeout, time.Minute)
	env.SetTestTimeout(limit)
	env.SetWorkerOptions(sdkworker.Options{DeadlockDetectionTimeout: limit, BuildID: "simulation"}) // a busy machine is no deadlock
	s.inMemoryConverter = newInMemoryConverter(&s.deepCopier)
	env.SetDataConverter(s.inMemoryConverter)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: workflows.IncidentWorkflowID(in.GroupingKey), TaskQueue: workflows.TaskQueue})
	// A report to a workflow that has ended: the production code takes that for no error either.
	env.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(errors.New("it has ended"))

	set := activities.NewActivities(s.newActions()...)
	chain := &guards.GuardChain{Config: cfg, Keyring: s.authority.keyring}
	set.Guards, set.ScopeApprovers, set.Authority, set.Now, set.Log = &recordingGuards{GuardChain: chain, budgetWindow: guards.NewBudgetWindow(nil), simulation: s}, chain, s.authority, env.Now, slog.New(slog.DiscardHandler)
	leases := &lease.Workflows{Catalog: s.options.Catalog}
	plays := &playbook.Workflows{Catalog: s.options.Catalog, Leases: leases, Load: s.programCache.loadCached}
	incidents := &incident.Workflows{Playbooks: plays}
	env.RegisterWorkflow(leases.Lease)
	env.RegisterWorkflow(plays.Playbook)
	env.RegisterWorkflow(incidents.Incident)
	env.RegisterActivityWithOptions(&delayedActivities{Activities: set, simulation: s}, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	env.RegisterActivityWithOptions((func(context.Context, playbooks.Incident) ([]incident.SelectedPlaybook, error))(s.matchPlaybooks), activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	env.RegisterActivityWithOptions(s.requestMatcher.MatchManualRequest, activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
	s.watchWorkflows(cfg)
	s.sendDetections(in)
	s.scheduleTriage()

	env.ExecuteWorkflow(incidents.Incident, in)
	var out playbooks.Incident
	if err := env.GetWorkflowError(); err != nil {
		return fmt.Errorf("simulate %s: %w", in.ID, err)
	}
	if err := env.GetWorkflowResult(&out); err != nil {
		return fmt.Errorf("simulate %s: %w", in.ID, err)
	}
	s.finishResult(out, in)
	return nil
}

// sendDetections gives the detections to the incident when they came, attested then.
func (s *simulation) sendDetections(in incident.Input) {
	batches := map[int][]recording.Detection{}
	var order []int
	for _, d := range s.recording.Detections {
		if _, ok := batches[d.BatchNumber]; !ok {
			order = append(order, d.BatchNumber)
		}
		batches[d.BatchNumber] = append(batches[d.BatchNumber], d)
	}
	for _, n := range order {
		batch := batches[n]
		s.testEnvironment.RegisterDelayedCallback(func() {
			now := s.testEnvironment.Now()
			var attested []incident.AttestedDetection
			var alike textCounter
			for _, one := range batch {
				d := one.Detection
				scope := in.Scope
				if in.Drill {
					scope = config.DrillScope
				}
				target := incident.TargetOfDetection(d)
				s.rememberTarget(target)
				var drill *attestation.DrillRegistration
				if in.Drill {
					drill = s.drillRegistration(target.ID())
				}
				signed, err := s.authority.Sign(attestation.PayloadTypeAttestation, attestation.Attestation{
					DetectionID: d.ID, DetectionHash: attestation.HashJSON(d), TargetID: target.ID(), Rule: d.Rule, Objective: string(d.Objective), Severity: string(d.Severity), Confidence: d.Confidence,
					Node: d.Node, Namespace: d.Event.Container.Pod.Namespace, Workload: incident.WorkloadOfDetection(d).String(), Scope: scope, Drill: drill, AcceptedAt: now, TargetConfirmed: d.Event.Container.Pod.Namespace != "",
					ManualRequest: s.manualRequestOf(d),
				})
				if err != nil {
					s.addEvent("error", "%v", err)
					continue
				}
				attested = append(attested, incident.AttestedDetection{Detection: d, Attestation: signed})
				alike.add(fmt.Sprintf("%s on %s: %s (rule %s, confidence %.2f)", d.Title, target, incident.Describe(d), d.Rule, d.Confidence), max(d.Count, 1))
			}
			for _, what := range alike.countedTexts() {
				s.addEvent("detection", "%s", what)
			}
			s.testEnvironment.SignalWorkflow(workflows.SignalDetections, attested)
		}, max(time.Duration(batch[0].OffsetMS)*time.Millisecond, time.Millisecond)) // at 0 the workflow does not run yet
	}
}

// drillRegistration is the registration that the recorded detections rested on.
func (s *simulation) drillRegistration(target string) *attestation.DrillRegistration {
	d := &attestation.DrillRegistration{Targets: []attestation.DrillTarget{{ID: target}}}
	for _, id := range s.recording.Incident.DrillTargets {
		d.Targets = append(d.Targets, attestation.DrillTarget{ID: id})
	}
	return d
}

// watchWorkflows notices playbooks that start and questions that are asked.
func (s *simulation) watchWorkflows(cfg *config.Config) {
	s.testEnvironment.SetOnChildWorkflowStartedListener(func(info *workflow.Info, _ workflow.Context, args converter.EncodedValues) {
		if info.WorkflowType.Name == "Lease" {
			s.mu.Lock()
			s.leaseWorkflowIDs = append(s.leaseWorkflowIDs, info.WorkflowExecution.ID)
			s.mu.Unlock()
		}
		if info.WorkflowType.Name != "Playbook" {
			return
		}
		var in playbook.Input
		name := info.WorkflowExecution.ID
		if args.Get(&in) == nil {
			if program, _ := s.programCache.loadCached(in, s.options.Catalog); program != nil {
				name = program.Name
				s.runningPrograms[name] = program
			}
		}
		s.mu.Lock()
		s.playbookRunIDs = append(s.playbookRunIDs, info.WorkflowExecution.ID)
		s.result.Playbooks = append(s.result.Playbooks, name)
		s.mu.Unlock()
		s.addEvent("playbook", "playbook %s started", name)
	})
	s.testEnvironment.SetOnActivityStartedListener(func(*activity.Info, context.Context, converter.EncodedValues) {
		s.mu.Lock()
		s.result.ActivityCount++
		s.mu.Unlock()
	})
	s.testEnvironment.SetOnLocalActivityStartedListener(func(*activity.Info, context.Context, []any) {
		s.mu.Lock()
		s.result.ActivityCount++
		s.mu.Unlock()
	})
	// A question begins with the timer of its deadline.
	s.testEnvironment.SetOnTimerScheduledListener(func(string, time.Duration) {
		s.testEnvironment.RegisterDelayedCallback(func() { s.answerNewRequests(cfg) }, 0)
	})
}

func (s *simulation) elapsedMS() int64 { return s.testEnvironment.Now().Sub(s.started).Milliseconds() }

func (s *simulation) addEvent(kind, format string, args ...any) {
	at := s.elapsedMS()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Events = append(s.result.Events, TimelineEvent{AtMS: at, Kind: kind, Text: fmt.Sprintf(format, args...)})
}

func (s *simulation) rememberTarget(t playbooks.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targetNames[t.ID()] = t.String()
}

func (s *simulation) targetName(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.targetNames[id], id)
}

// finishResult takes over what the incident says became of it.
func (s *simulation) finishResult(out playbooks.Incident, in incident.Input) {
	s.result.FinalIncident = out
	for _, e := range s.result.Effects {
		if first := s.result.FirstContainmentMS; first == nil || e.AppliedAtMS < *first {
			s.result.FirstContainmentMS = &e.AppliedAtMS
		}
	}
	for _, p := range out.Playbooks {
		for _, step := range p.Steps {
			s.result.Steps = append(s.result.Steps, StepResult{
				Playbook: p.Playbook, RunNumber: playbookRunNumber(p.WorkflowID), Step: step.Step, Action: step.Action, Target: step.Target, Outcome: step.Outcome, Reason: step.Reason, AtMS: step.At.Sub(s.started).Milliseconds(), Assumed: s.assumedActions[step.Action+"\x00"+step.Target],
			})
		}
		if p.Error != "" {
			s.result.Error = fmt.Sprintf("playbook %s: %s", p.Playbook, p.Error)
		}
	}
	if len(out.Playbooks) == 0 {
		s.result.Events = append(s.result.Events, TimelineEvent{AtMS: 0, Kind: "playbook", Text: "no playbook matches"})
	}
	s.recordRequestWaits()
	s.result.ClosesAtMS = out.Closed.Sub(s.started).Milliseconds()
	s.result.Events = append(s.result.Events, TimelineEvent{AtMS: s.result.ClosesAtMS, Kind: "closed", Text: fmt.Sprintf("the incident closes: quiet for %s, nothing is held", in.IdleTimeout)})
}

// discardLogger is the SDK's log, which nobody reads.
type discardLogger struct{}

func (discardLogger) Debug(string, ...any) {}
func (discardLogger) Info(string, ...any)  {}
func (discardLogger) Warn(string, ...any)  {}
func (discardLogger) Error(string, ...any) {}
