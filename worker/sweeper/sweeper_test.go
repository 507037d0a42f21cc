package sweeper_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/worker/sweeper"
	"stanch/workflows"
)

// fakeFinder is an action that left orphans.
type fakeFinder struct {
	spec    playbooks.ActionSpec
	orphans []activities.Orphan
	err     error
	before  []time.Time // of each search
}

func (f *fakeFinder) Spec() playbooks.ActionSpec { return f.spec }

func (f *fakeFinder) FindOrphans(_ context.Context, before time.Time) ([]activities.Orphan, error) {
	f.before = append(f.before, before)
	return f.orphans, f.err
}

// noFinder is an action without orphans.
type noFinder struct{}

func (noFinder) Spec() playbooks.ActionSpec { return playbooks.ActionSpec{Name: "pod.logs"} }

// fakeTemporal contains the states of workflows by id. It does not know others.
type fakeTemporal map[string]enumspb.WorkflowExecutionStatus

func (f fakeTemporal) DescribeWorkflowExecution(_ context.Context, id, _ string) (
	*workflowservice.DescribeWorkflowExecutionResponse, error,
) {
	status, ok := f[id]
	if !ok {
		return nil, serviceerror.NewNotFound("no such workflow")
	}
	if status == enumspb.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED {
		return nil, serviceerror.NewUnavailable("no connection")
	}
	return &workflowservice.DescribeWorkflowExecutionResponse{
		WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: status},
	}, nil
}

// fixture sweeps fake actions and records what was undone.
type fixture struct {
	t        *testing.T
	temporal fakeTemporal
	undone   []string
	logged   bytes.Buffer
	now      time.Time
	cloud    bool
}

func newFixture(t *testing.T) *fixture {
	return &fixture{t: t, temporal: fakeTemporal{}, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), cloud: true}
}

// orphan returns an orphan on a node. Undoing it is recorded and returns drift and err.
func (f *fixture) orphan(name string, drift *activities.Drift, err error) activities.Orphan {
	return activities.Orphan{
		ObjectName: name, Target: playbooks.Target{Kind: playbooks.TargetPod, UID: name, Node: "n1"},
		Facet: playbooks.FacetNetwork, Lease: activities.LeaseStamp{ID: "LSE-" + name},
		Undo: func(context.Context) (*activities.Drift, error) {
			f.undone = append(f.undone, name)
			return drift, err
		},
	}
}

func (f *fixture) sweep(round int, actions ...activities.Action) error {
	s := &sweeper.Sweeper{
		Actions: actions, Temporal: f.temporal, Cluster: "c1", SearchCloud: f.cloud,
		Log: slog.New(slog.NewTextHandler(&f.logged, nil)),
	}
	return s.Sweep(f.t.Context(), round, f.now)
}

func clusterAction(orphans ...activities.Orphan) *fakeFinder {
	return &fakeFinder{spec: playbooks.ActionSpec{Name: "pod.isolate"}, orphans: orphans}
}

func TestOrphanIsUndoneUnlessItsLeaseRuns(t *testing.T) {
	const (
		running = enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
		ended   = enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED
	)
	f := newFixture(t)
	left, terminated := f.orphan("left", nil, nil), f.orphan("terminated", nil, nil)
	leased, nodeLeased := f.orphan("leased", nil, nil), f.orphan("node-leased", nil, nil)
	f.temporal[workflows.LeaseWorkflowID("c1", terminated.Target, terminated.Facet)] = ended
	f.temporal[workflows.LeaseWorkflowID("c1", leased.Target, leased.Facet)] = running
	f.temporal[workflows.NodeLeaseWorkflowID("c1", nodeLeased.Target, nodeLeased.Facet)] = running
	finder := clusterAction(leased, left, nodeLeased, terminated)
	require.NoError(t, f.sweep(1, noFinder{}, finder))
	require.Equal(t, []string{"left", "terminated"}, f.undone)
	require.Equal(t, []time.Time{f.now.Add(-30 * time.Second)}, finder.before)
	require.Contains(t, f.logged.String(), "lease=LSE-left")
}

func TestOrphanStaysWhileTemporalDoesNotAnswer(t *testing.T) {
	f := newFixture(t)
	unknown := f.orphan("unknown", nil, nil)
	lost := workflows.LeaseWorkflowID("c1", unknown.Target, unknown.Facet)
	f.temporal[lost] = enumspb.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED
	err := f.sweep(1, clusterAction(unknown, f.orphan("known", nil, nil)))
	require.ErrorContains(t, err, "query the lease of unknown")
	require.Equal(t, []string{"known"}, f.undone)
}

func TestOrphanThatOthersChangedIsReported(t *testing.T) {
	f := newFixture(t)
	changed := f.orphan("changed", &activities.Drift{Detail: "spec is theirs"}, nil)
	require.NoError(t, f.sweep(1, clusterAction(changed)))
	require.Contains(t, f.logged.String(), "level=ERROR")
	require.Contains(t, f.logged.String(), "undo it manually")
	require.Contains(t, f.logged.String(), "spec is theirs")
	require.NotContains(t, f.logged.String(), "was undone")
}

func TestFailureOfOneFinderHidesNoOthers(t *testing.T) {
	f := newFixture(t)
	broken := clusterAction(f.orphan("found-before-the-failure", nil, nil))
	broken.spec.Name, broken.err = "node.cordon", errors.New("no permission")
	unreadable := f.orphan("unreadable", nil, errors.New("its prior state cannot be read; undo it manually"))
	err := f.sweep(1, broken, clusterAction(unreadable, f.orphan("last", nil, nil)))
	require.ErrorContains(t, err, "find what node.cordon left: no permission")
	require.ErrorContains(t, err, "undo unreadable, which lease LSE-unreadable left: its prior state cannot be read")
	require.Equal(t, []string{"found-before-the-failure", "unreadable", "last"}, f.undone)
}

func TestCloudIsSearchedEvery15thRoundAbovePhase1(t *testing.T) {
	f := newFixture(t)
	searchedRounds := func() (cloud, cluster []int) {
		for round := range 31 {
			inCloud := clusterAction()
			inCloud.spec.ApplyIAMPermissions = []playbooks.IAMPermission{{Actions: []string{"iam:GetRole"}}}
			inCluster := clusterAction()
			require.NoError(t, f.sweep(round, inCloud, inCluster))
			if len(inCloud.before) > 0 {
				require.Equal(t, []time.Time{f.now.Add(-time.Minute)}, inCloud.before)
				cloud = append(cloud, round)
			}
			if len(inCluster.before) > 0 {
				cluster = append(cluster, round)
			}
		}
		return cloud, cluster
	}
	cloud, cluster := searchedRounds()
	require.Equal(t, []int{0, 15, 30}, cloud)
	require.Len(t, slices.Compact(cluster), 31)
	f.cloud = false
	cloud, cluster = searchedRounds()
	require.Empty(t, cloud)
	require.Len(t, cluster, 31)
}
