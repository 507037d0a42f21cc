package testspec_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/playbooks/testspec"
)

const rewriteInput = `# Kept.
tests:
  - name: one # kept
    detections: [{ objective: escape }]
    expect: # kept too
      # the logs
      - { step: "steps[0]", outcome: changed, with: { tail: 500 } } # as written
      # the pod

      - { step: isolate, outcome: changed } # why
      - action: approval
        outcome: denied
    # after it
    matched: true
  - name: two
    detections: [{ objective: escape }]
    expect:
  - name: three
    detections: [{ objective: escape }]
    expect: [{ action: "workload.scale" },
      { action: pod.logs }] # flow
    matched: true
`

const rewriteOutput = `# Kept.
tests:
  - name: one # kept
    detections: [{ objective: escape }]
    expect: # kept too
      # the logs
      - { step: "steps[0]", outcome: changed, with: { tail: 500 } } # as written
      # the pod

      - { step: isolate, outcome: refused, reason: "host network" } # why
      - action: approval
        outcome: denied
    # after it
    matched: true
  - name: two
    detections: [{ objective: escape }]
    expect:
      - { step: "steps[0]", outcome: changed }
      - { step: isolate, outcome: refused, reason: "host network" }
      - { step: "steps[1].on_failure[0]", outcome: changed }
      - { step: "steps[2]", outcome: denied, reason: "alice said no" }
  - name: three
    detections: [{ objective: escape }]
    expect: # flow
      - { action: pod.logs }
    matched: true
`

func TestRewriteChangesOnlyExpect(t *testing.T) {
	f := mustParseTests(t, rewriteInput)
	rewrites := map[*testspec.TestCase]testspec.Result{}
	for _, one := range f.Tests {
		rewrites[one] = newTestResult()
	}
	got, err := testspec.RewriteExpectations(f, rewrites)
	require.NoError(t, err)
	require.Equal(t, rewriteOutput, string(got))
	again := mustParseTests(t, string(got))
	for _, one := range again.Tests {
		require.Empty(t, testspec.CompareWithResult(one, newTestResult()), "the rewritten test passes")
	}
	got, err = testspec.RewriteExpectations(f, nil)
	require.NoError(t, err)
	require.Equal(t, rewriteInput, string(got))

	flow := mustParseTests(t, "tests: [{ name: one, detections: [{ objective: escape }], expect: [{ step: x }] }]\n")
	_, err = testspec.RewriteExpectations(flow, map[*testspec.TestCase]testspec.Result{flow.Tests[0]: newTestResult()})
	require.EqualError(t, err, "book_test.yaml:1:59: `expect` can be rewritten only if it starts its own line")
}

// Quotes and brackets in words and comments do not start or end anything.
func TestRewriteStopsAtTheEndOfTheList(t *testing.T) {
	const head, tail = "tests:\n  - name: one\n    detections: [{ objective: escape }]\n",
		"    never: [pod.isolate]\n    matched: true # kept\n"
	made := `      - { step: "steps[0]", outcome: changed }
      - { step: isolate, outcome: refused, reason: "host network" }
      - { step: "steps[1].on_failure[0]", outcome: changed }
      - { step: "steps[2]", outcome: denied, reason: "alice said no" }
`
	for list, key := range map[string]string{
		"expect: [{ step: x, reason: it's away }]":                        "expect:\n",
		"expect: [{ step: x, reason: it's a \"thing }] # isn't it ]":      "expect: # isn't it ]\n",
		"expect: [ # it's [ mine\n      { step: x } # don't\n    ] # '":   "expect: # '\n",
		"expect: [{ step: x, reason: 'it''s ]' }]":                        "expect:\n",
		"expect: [{ step: x, reason: 'it''s\n      two ]' }]":             "expect:\n",
		`expect: [{ step: x, reason: "a \"quote\" ] \\" }]`:               "expect:\n",
		"expect: [{ step: x, reason: \"a\n\n      ] 'b\" }]":              "expect:\n",
		"expect: [{ step: x, reason: a#b# }, ]":                           "expect:\n",
		"expect: [ step: x ]":                                             "expect:\n",
		"expect: [{ action: workload.scale, with: {} }]":                  "expect:\n",
		"expect: [{ action: workload.scale, with: { tail: 1 } }]":         "expect:\n",
		"expect: [{ action: workload.scale, with: { [a: b]: c } }]":       "expect:\n",
		"expect: [{ action: workload.scale, reason: ü… ' }, { step: ü }]": "expect:\n",
		"expect: []": "expect:\n",
		"expect: # don't\n      # [ nor this\n      [{ step: x }] # '": "expect: # don't\n      # [ nor this\n      # '\n",
		"expect: # don't": "expect: # don't\n",
		"expect: null":    "expect:\n",
	} {
		f, problems := testspec.ParseTestFile("book_test.yaml", []byte(head+"    "+list+"\n"+tail))
		require.NoError(t, problems.Err(), list)
		got, err := testspec.RewriteExpectations(f, map[*testspec.TestCase]testspec.Result{f.Tests[0]: newTestResult()})
		require.NoError(t, err, list)
		require.Equal(t, head+"    "+key+made+tail, string(got), list)
	}
}

// A list whose end cannot be found is not rewritten, and nothing after it is lost.
func TestRewriteIsRefusedIfItWouldChangeMore(t *testing.T) {
	for list, where := range map[string]string{
		"expect: [{ step: x, reason: !!str 'it ]' }]":                 "4:5",
		"expect:\n      - { step: x, reason: \"a\n    phase: 2 #\" }": "2:5", // the rest of it is a key
		"expect:\n      - { step: x,\n     reason: a }":               "4:5",
	} {
		text := "tests:\n  - name: one\n    detections: [{ objective: escape }]\n    " + list + "\n    matched: true\n"
		f, problems := testspec.ParseTestFile("book_test.yaml", []byte(text))
		require.NoError(t, problems.Err(), list)
		got, err := testspec.RewriteExpectations(f, map[*testspec.TestCase]testspec.Result{f.Tests[0]: newTestResult()})
		require.ErrorContains(t, err, "book_test.yaml:"+where+": ", "%s", got)
	}
}

// Each key that the author chose stays, with the actual value: an update never weakens a test.
func TestRewriteKeepsTheChosenKeys(t *testing.T) {
	f := mustParseTests(
		t,
		"tests:\n  - name: one\n    detections: [{ objective: escape }]\n    expect:\n      - { action: pod.isolate, target: web-1, within: 1s, outcome: changed, with: { tail: 1 } }\n",
	)
	h := testspec.Result{
		Playbooks: []string{"book"}, TargetsByID: map[string]playbooks.Target{"pod:u": {
			Kind:      playbooks.TargetPod,
			Namespace: "shop", Name: "web-1", UID: "u",
		}},
		Steps: []testspec.StepRun{
			{Step: "steps[0]", Action: "pod.logs", Outcome: playbooks.OutcomeChanged},
			{
				Step: "steps[1]", Action: "pod.isolate", Target: "pod:u", Outcome: playbooks.OutcomeChanged,
				EndedAt: 2500 * time.Millisecond, Params: json.RawMessage(`{"tail":5,"more":true}`),
			},
		},
	}
	got, err := testspec.RewriteExpectations(f, map[*testspec.TestCase]testspec.Result{f.Tests[0]: h})
	require.NoError(t, err)
	require.Contains(
		t,
		string(got),
		"    expect:\n      - { action: pod.isolate, target: web-1, within: 3s, outcome: changed, with: {\"tail\":5} }\n",
	)
	require.Empty(t, testspec.CompareWithResult(mustParseTests(t, string(got)).Tests[0], h))
}

// Steps that did not occur, and expectations outside `expect`, are the author's to change.
func TestRewriteIsOfferedOnlyIfTheTestWouldPass(t *testing.T) {
	for text, want := range map[string]bool{
		"expect: [{ step: isolate, outcome: changed }]":                        true,
		"expect: [{ action: workload.scale }]":                                 false,
		"expect: [{ step: isolate }, { step: \"steps[0]\" }]":                  false,
		"expect: [{ step: isolate, outcome: changed }]\n    never: [pod.logs]": false,
	} {
		f := mustParseTests(t, "tests:\n  - name: one\n    detections: [{ objective: escape }]\n    "+text+"\n")
		failures := testspec.CompareWithResult(f.Tests[0], newTestResult())
		require.NotEmpty(t, failures, text)
		ok, why := testspec.CanFixByRewriting(failures)
		require.Equal(t, want, ok, "%s: %s", text, why)
		require.Equal(t, ok, why == "")
	}
}
