// Package simulate runs recordings through the production workflow code: the same incident, playbook and lease
// workflows and the same guards, with skipped time and actions that return recorded results.
//
// It has no effects: its actions never reach a node, a cluster, a store or a person. Results that are not in the
// recording are assumed from the action's spec, and marked.
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
	"go.temporal.io/sdk/testsuite"
	sdkworker "go.temporal.io/sdk/worker"

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

// MatchFunc returns the playbooks for an incident, as a worker's library does.
type MatchFunc func(ctx context.Context, in playbooks.Incident) ([]incident.SelectedPlaybook, error)

// Options configures a simulation. The zero value of each field means as recorded.
type Options struct {
	// NewMatchFunc returns the library's match function for an authority that signs what it selects.
	NewMatchFunc func(activities.Authority) MatchFunc
	// NewRequestMatcher returns the matcher of manual requests; with nil, none is found.
	NewRequestMatcher func(activities.Authority) ManualRequestMatcher
	Catalog           playbooks.Catalog
	// Config is the guards' configuration; nil derives it from the recording.
	Config *config.Config
	// Phase is the phase of every scope; 0 means as configured or recorded. A drill is then simulated as an attack.
	Phase int
	// ApprovalAnswers are people's answers to approval requests.
	ApprovalAnswers ApprovalAnswers
	// FakeResults returns results in place of the recording's; nil uses the recording only.
	FakeResults FakeFunc
	// Timeout limits one incident in real time; 0 means one minute.
	Timeout time.Duration
}

// Simulator runs recordings and shares what they have in common. It is safe for concurrent use.
type Simulator struct {
	options        Options
	authority      simulatedAuthority
	matchPlaybooks MatchFunc
	requestMatcher ManualRequestMatcher
	programCache   *programCache
	deepCopier     deepCopier
	actionSpecs    []playbooks.ActionSpec
}

// NewSimulator returns a simulator.
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

// simulation is one simulation in progress.
type simulation struct {
	*Simulator
	recording       recording.Recording
	testEnvironment *testsuite.TestWorkflowEnvironment
	started         time.Time

	mu              sync.Mutex
	result          Result
	playbookRunIDs  []string
	seenRequests    map[string]bool // approval requests
	targetNames     map[string]string
	runningPrograms map[string]*playbooks.Program // by name
	lastVerdicts    map[string]activities.Verdict
	// assumedActions are the actions, by target, with results that are not in the recording.
	assumedActions map[string]bool
	recordedInputs *recordedInputs
	sentTriage     []bool // which of the recorded triage decisions were sent
	// leaseWorkflowIDs are the workflows of leases. scheduledLeaseChanges records which of the recorded changes are
	// scheduled.
	leaseWorkflowIDs      []string
	scheduledLeaseChanges map[int]bool
	inMemoryConverter     *inMemoryConverter
	replayer              *replayer
}

// releaseReferences clears what is not needed after the run. Temporal's test environment leaves real timers that keep
// the simulation in memory for as long as the longest timer of a canceled workflow, a quarter of an hour.
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

// Run simulates one recording. Errors are in the result.
func Run(ctx context.Context, file string, rec recording.Recording, o Options) Result {
	m, err := NewSimulator(o)
	if err != nil {
		return UnreadableResult(file, err)
	}
	return m.Run(ctx, file, rec)
}

// UnreadableResult returns the result of a recording that could not be read.
func UnreadableResult(file string, err error) Result {
	r := emptyResult(file)
	r.Error = err.Error()
	return r
}

func emptyResult(file string) Result {
	return Result{
		RecordingFile: file, Playbooks: []string{}, Steps: []StepResult{}, Effects: []ContainmentEffect{},
		Events: []TimelineEvent{}, ApprovalRequests: []ApprovalRequest{}, AssumedResults: []string{},
		Decisions: []GuardDecision{},
	}
}

// Run simulates one recording. Errors are in the result.
func (m *Simulator) Run(ctx context.Context, file string, rec recording.Recording) (result Result) {
	s := &simulation{
		Simulator: m, recording: rec, started: rec.Incident.Opened, seenRequests: map[string]bool{},
		targetNames: map[string]string{}, runningPrograms: map[string]*playbooks.Program{},
		lastVerdicts: map[string]activities.Verdict{}, assumedActions: map[string]bool{},
		recordedInputs: newRecordedInputs(rec), scheduledLeaseChanges: map[int]bool{},
	}
	s.result = emptyResult(file)
	s.result.IncidentID = rec.Incident.ID
	// The test environment panics if it cannot continue; one recording must not end the others.
	defer func() {
		if p := recover(); p != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.result.Error = fmt.Sprintf("the simulation failed: %.300v", p)
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

func (s *simulation) runWorkflows() error {
	cfg, in := s.guardConfigAndInput()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(discardLogger{})
	s.testEnvironment = suite.NewTestWorkflowEnvironment()
	env := s.testEnvironment
	env.SetStartTime(s.started)
	limit := cmp.Or(s.options.Timeout, time.Minute)
	env.SetTestTimeout(limit)
	// a busy machine is not a deadlock
	env.SetWorkerOptions(sdkworker.Options{DeadlockDetectionTimeout: limit, BuildID: "simulation"})
	s.inMemoryConverter = newInMemoryConverter(&s.deepCopier)
	env.SetDataConverter(s.inMemoryConverter)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{
		ID:        workflows.IncidentWorkflowID(in.GroupingKey),
		TaskQueue: workflows.TaskQueue,
	})
	// Reports to a workflow that has ended are not an error in production either.
	env.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything,
		mock.Anything).Return(errors.New("the workflow has ended"))

	set := activities.NewActivities(s.newActions()...)
	chain := &guards.GuardChain{Config: cfg, Keyring: s.authority.keyring}
	set.Guards, set.ScopeApprovers, set.Authority, set.Now, set.Log = &recordingGuards{
		GuardChain:   chain,
		budgetWindow: guards.NewBudgetWindow(nil), simulation: s,
	}, chain, s.authority, env.Now, slog.New(slog.DiscardHandler)
	leases := &lease.Workflows{Catalog: s.options.Catalog}
	plays := &playbook.Workflows{Catalog: s.options.Catalog, Leases: leases, Load: s.programCache.loadCached}
	incidents := &incident.Workflows{Playbooks: plays}
	env.RegisterWorkflow(leases.Lease)
	env.RegisterWorkflow(plays.Playbook)
	env.RegisterWorkflow(incidents.Incident)
	env.RegisterActivityWithOptions(&delayedActivities{Activities: set, simulation: s},
		activity.RegisterOptions{SkipInvalidStructFunctions: true})
	env.RegisterActivityWithOptions((func(context.Context, playbooks.Incident) ([]incident.SelectedPlaybook,
		error))(s.matchPlaybooks), activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	env.RegisterActivityWithOptions(s.requestMatcher.MatchManualRequest,
		activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
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

// sendDetections sends the detections to the incident at their recorded times, with new attestations.
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
				signed, err := s.authority.Sign(attestation.PayloadTypeAttestation, incident.NewAttestation(d,
					incident.Acceptance{
						Scope: scope, Drill: drill, ManualRequest: s.manualRequestOf(d),
						TargetConfirmed: d.Event.Container.Pod.Namespace != "", At: now,
					}))
				if err != nil {
					s.addEvent("error", "%v", err)
					continue
				}
				attested = append(attested, incident.AttestedDetection{Detection: d, Attestation: signed})
				alike.add(fmt.Sprintf("%s on %s: %s (rule %s, confidence %.2f)", d.Title, target, incident.Describe(d), d.Rule,
					d.Confidence), max(d.Count, 1))
			}
			for _, what := range alike.countedTexts() {
				s.addEvent("detection", "%s", what)
			}
			s.testEnvironment.SignalWorkflow(workflows.SignalDetections, attested)
			// at 0 the workflow is not running yet
		}, max(time.Duration(batch[0].OffsetMS)*time.Millisecond, time.Millisecond))
	}
}

// drillRegistration returns the drill registration of the recorded detections.
func (s *simulation) drillRegistration(target string) *attestation.DrillRegistration {
	d := &attestation.DrillRegistration{Targets: []attestation.DrillTarget{{ID: target}}}
	for _, id := range s.recording.Incident.DrillTargets {
		d.Targets = append(d.Targets, attestation.DrillTarget{ID: id})
	}
	return d
}

// discardLogger discards the SDK's log.
type discardLogger struct{}

func (discardLogger) Debug(string, ...any) {}
func (discardLogger) Info(string, ...any)  {}
func (discardLogger) Warn(string, ...any)  {}
func (discardLogger) Error(string, ...any) {}
