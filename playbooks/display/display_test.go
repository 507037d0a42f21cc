package display_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
)

func newIncident() playbooks.Incident {
	return playbooks.Incident{
		ID: "INC-1", Status: "open", Objective: "execution",
		Targets:  []playbooks.Target{{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "u-1"}},
		Workload: playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Deployment", Name: "web"},
	}
}

// Equal detections keep their order.
func TestHeadlineIsTheMostSevereDetection(t *testing.T) {
	d := func(title string, severity sensors.Severity, confidence float64, objective sensors.Objective,
		technique string,
	) playbooks.DetectionSummary {
		return playbooks.DetectionSummary{
			Title: title, Severity: severity, Confidence: confidence, Objective: objective,
			Technique: technique,
		}
	}
	for want, list := range map[string][]playbooks.DetectionSummary{
		"Reverse shell": {
			d("Connection to a mining pool's port", "medium", 0.6, "crypto-mining", "T1496"),
			d("Reverse shell", "critical", 0.9, "execution", "T1059"), d("Shell", "high", 0.95, "execution", "T1059"),
		},
		"Token read": {
			d("File system mounted", "high", 0.5, "escape", "T1611"),
			d("Token read", "high", 0.8, "credential-access", "T1552"),
		},
		"Own objective": {d("Another", "high", 0.8, "escape", "T1611"), d("Own objective", "high", 0.8, "execution", "")},
		"Technique":     {d("None", "high", 0.8, "execution", ""), d("Technique", "high", 0.8, "execution", "T1059")},
		"First":         {d("First", "high", 0.8, "execution", "T1059"), d("Second", "high", 0.8, "execution", "T1059")},
		"":              nil,
	} {
		in := newIncident()
		in.Detections = list
		for range 3 {
			worst, _ := display.HeadlineDetection(in)
			assert.Equal(t, want, worst.Title)
		}
	}
}

// A step that is not configured is a note.
func TestRunSummaryStartsWithContainments(t *testing.T) {
	in := newIncident()
	contained := playbooks.StepReport{
		Action: "pod.isolate", Verb: playbooks.VerbContain, Target: "pod:u-1",
		LeaseID: "LSE-1", Outcome: playbooks.OutcomeChanged,
	}
	ticket := playbooks.StepReport{
		Action: "create", Verb: playbooks.VerbTicket, Target: "incident:INC-1",
		Outcome: playbooks.OutcomeRefused, Reason: "tickets are not configured; add `ticket:` to stanch.yaml",
	}
	mail := playbooks.StepReport{
		Action: "email", Verb: playbooks.VerbNotify, Outcome: playbooks.OutcomeFailed,
		Reason: "the server is away",
	}
	refused := playbooks.StepReport{
		Action: "pod.isolate", Verb: playbooks.VerbContain, Target: "pod:u-1",
		Outcome: playbooks.OutcomeRefused, Reason: "no budget is configured for it",
	}
	at := time.Now()
	for _, c := range []struct {
		steps []playbooks.StepReport
		ended time.Time
		want  string
	}{
		{
			[]playbooks.StepReport{ticket, contained},
			at,
			"contained: pod.isolate on pod shop/web-1 applied and verified; note: ticket skipped: tickets are not " +
				"configured; add `ticket:` to stanch.yaml",
		},
		{
			[]playbooks.StepReport{mail, contained},
			at,
			"contained: pod.isolate on pod shop/web-1 applied and verified; email failed: the server is away",
		},
		{[]playbooks.StepReport{refused}, at, "pod.isolate on pod shop/web-1 refused: no budget is configured for it"},
		{
			[]playbooks.StepReport{{Action: "stop", Outcome: playbooks.OutcomeDenied, Reason: "known build job"}},
			at,
			"stopped, denied: known build job",
		},
		{
			[]playbooks.StepReport{{Action: "pod.processes", Verb: playbooks.VerbEvidence, Outcome: playbooks.OutcomeSucceeded}},
			time.Time{},
			"running, after pod.processes",
		},
		{
			[]playbooks.StepReport{{
				Action: "pod.manifest", Verb: playbooks.VerbEvidence, Outcome: playbooks.OutcomeRefused,
				Reason: "no cluster is connected",
			}, refused},
			at,
			"pod.isolate on pod shop/web-1 refused: no budget is configured for it; note: pod.manifest skipped: no " +
				"cluster is connected",
		},
		{nil, at, "done, nothing contained"},
	} {
		assert.Equal(t, c.want, display.SummarizeRun(in, playbooks.PlaybookRun{
			Playbook: "p", Steps: c.steps,
			Ended: c.ended,
		}))
	}
	in.Playbooks = []playbooks.PlaybookRun{
		{Playbook: "tell", Ended: at, Steps: []playbooks.StepReport{mail}},
		{Playbook: "hold", Ended: at, Steps: []playbooks.StepReport{contained}},
	}
	assert.Equal(
		t,
		"hold: contained: pod.isolate on pod shop/web-1 applied and verified; tell: email failed: the server is away",
		display.SummarizeOutcomes(in),
	)
}

func TestStatusNamesWhoResolvedTheIncident(t *testing.T) {
	in := newIncident()
	assert.Equal(t, "open", display.DescribeStatus(in))
	in.Assignee = "bob"
	assert.Equal(t, "open, assigned to bob", display.DescribeStatus(in))
	in.Disposition, in.DispositionBy = "false-positive", "alice"
	assert.Equal(t, "resolved: false-positive by alice", display.DescribeStatus(in))
	in.Status = "closed"
	assert.Equal(t, "closed, resolved: false-positive by alice", display.DescribeStatus(in))
}

func TestApprovalProgressNamesMissingApprovers(t *testing.T) {
	assert.Equal(t, "0 of 1 approved; waiting for 1 from responders",
		display.DescribeApprovalProgress(nil, 0, "responders"))
	assert.Equal(t, "1 of 2 approved (alice); waiting for 1 more from responders",
		display.DescribeApprovalProgress([]string{"alice"}, 2, "responders"))
	assert.Equal(t, "1 of 3 approved (alice); waiting for 2 more from responders",
		display.DescribeApprovalProgress([]string{"alice"}, 3, "responders"))
	assert.Equal(t, "2 of 2 approved (alice, bob)", display.DescribeApprovalProgress([]string{"alice", "bob"}, 2,
		"responders"))
}

func TestTimelineIsSortedByTime(t *testing.T) {
	at := time.Now()
	in := newIncident()
	in.Timeline = []playbooks.TimelineEntry{
		{At: at.Add(2), Text: "c"},
		{At: at, Text: "a"},
		{At: at.Add(1), Text: "b1"},
		{At: at.Add(1), Text: "b2"},
	}
	var got string
	for _, e := range display.SortedTimeline(in) {
		got += e.Text
	}
	assert.Equal(t, "ab1b2c", got)
	assert.Equal(t, "c", in.Timeline[0].Text, "the incident is not changed")
}

func TestRefusedContainmentHasARetryCommandForEveryTargetKind(t *testing.T) {
	in := newIncident()
	in.Targets = append(in.Targets, playbooks.Target{
		Kind: playbooks.TargetContainer, Name: "box",
		UID: "0123456789abcdef",
	})
	for target, want := range map[string]string{
		"pod:u-1":                    "pod/shop/web-1",
		"container:0123456789abcdef": "container/0123456789abcdef", "role:AROA1": "INC-1",
	} {
		assert.Equal(t, want, display.TargetArgument(in, target))
	}
	in.Playbooks = []playbooks.PlaybookRun{{Playbook: "hold", Steps: []playbooks.StepReport{
		{
			Action: "pod.isolate", Target: "pod:u-1", Outcome: playbooks.OutcomeRefused, Guard: playbooks.GuardKillSwitch,
			Reason: "paused",
		},
		{
			Action: "pod.isolate", Target: "container:0123456789abcdef", Outcome: playbooks.OutcomeRefused, Guard: "budget",
			Reason: "the budget is spent",
		},
	}}}
	refused := display.FindRefusedWhilePaused(in)
	require.Len(t, refused, 1)
	assert.Equal(t, "stanch run hold --on pod/shop/web-1 --reason 'refused while paused'", refused[0].RetryCommand)

	// The playbook of a manual containment cannot be run by its name.
	step := playbooks.StepReport{
		Action: "pod.isolate", Target: "container:0123456789abcdef",
		Outcome: playbooks.OutcomeRefused, Guard: playbooks.GuardKillSwitch, Reason: "paused",
	}
	for holds, text := range map[time.Duration]string{
		5 * time.Minute: "5m", 90 * time.Minute: "1h30m",
		60 * time.Hour: "2d12h",
	} {
		run := playbooks.PlaybookRun{
			Playbook: "contain-pod-isolate-" + text, RequestID: "request/1",
			Steps: []playbooks.StepReport{step},
		}
		in.Playbooks = []playbooks.PlaybookRun{run}
		assert.Contains(t, playbooks.ManualContainmentPlaybook("pod.isolate", holds).File, run.Playbook)
		assert.Equal(t, "stanch contain container/0123456789abcdef --action pod.isolate --for "+text+
			" --reason 'refused while paused'", display.FindRefusedWhilePaused(in)[0].RetryCommand)
	}
	in.Playbooks[0].RequestID = "" // a playbook that has such a name
	assert.Contains(t, display.FindRefusedWhilePaused(in)[0].RetryCommand, "stanch run contain-pod-isolate-")
}

// Code outside this package that formats people or target ids would diverge from it.
func TestNoOtherPackageFormatsPeopleOrTargetIDs(t *testing.T) {
	own := regexp.MustCompile(`Sprintf\("%s \(%s\)", [^)]*[pP]roved|uid\[:min\(`)
	read := 0
	for _, dir := range []string{"../../activities", "../../workflows", "../../worker", "../../cmd"} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			read++
			raw, err := os.ReadFile(path)
			assert.Empty(t, own.FindString(string(raw)), "%s: use package display", path)
			return err
		}))
	}
	assert.Greater(t, read, 100, "the sources are elsewhere")
	source, err := os.ReadFile("display.go")
	require.NoError(t, err)
	assert.Len(t, own.FindAllString(string(source), -1), 2, "this package is found by the same expression")
}

func TestTargetNameIsReadable(t *testing.T) {
	in := newIncident()
	assert.Equal(t, "pod shop/web-1", display.TargetName(in, "pod:u-1"))
	assert.Equal(t, "the incident", display.TargetName(in, "incident:INC-1"))
	assert.Equal(t, "workload shop/Deployment/web", display.TargetName(in, "workload:"))
	assert.Equal(t, "pod 01234567-89a", display.TargetName(in, "pod:01234567-89ab-cdef-0123-456789abcdef"))
}

func TestManualRequestIsTheHeadlineOnlyWithoutDetections(t *testing.T) {
	request := playbooks.DetectionSummary{
		Rule: sensors.RuleManualRequest, Title: "Requested by alice",
		Severity: sensors.SeverityHigh, Confidence: 1,
	}
	miner := playbooks.DetectionSummary{Rule: "miner", Title: "A miner", Severity: sensors.SeverityLow, Confidence: 0.4}
	worst, _ := display.HeadlineDetection(playbooks.Incident{Detections: []playbooks.DetectionSummary{request, miner}})
	require.Equal(t, "A miner", worst.Title)
	worst, _ = display.HeadlineDetection(playbooks.Incident{Detections: []playbooks.DetectionSummary{request}})
	require.Equal(t, "Requested by alice", worst.Title)

	in := playbooks.Incident{ID: "INC-1", Targets: []playbooks.Target{{
		Kind: playbooks.TargetPod, Namespace: "shop",
		Name: "web", UID: "u",
	}, {Kind: playbooks.TargetContainer, Name: "box", UID: "c0ffee"}}}
	require.Equal(t, "pod/shop/web", display.TargetArgument(in, "pod:u"))
	require.Equal(t, "container/c0ffee", display.TargetArgument(in, "container:c0ffee"))
	require.Equal(t, "INC-1", display.TargetArgument(in, "role:AROA"))
}
