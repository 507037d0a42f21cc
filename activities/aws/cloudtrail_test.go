package aws_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	testaws "stanch/testenv/aws"
)

func (w *fixture) observeCloudTrail(target playbooks.Target) (activities.Observation, []map[string]any) {
	w.t.Helper()
	seen, err := w.actions["aws.cloudtrail"].(activities.Observer).Observe(w.t.Context(), newLeaseRequest("aws.cloudtrail",
		target, 0, `{"hours":3}`))
	require.NoError(w.t, err)
	require.Len(w.t, seen.Artifacts, 1)
	var lines []map[string]any
	for line := range bytes.Lines(seen.Artifacts[0].Data) {
		var one map[string]any
		require.NoError(w.t, json.Unmarshal(line, &one))
		lines = append(lines, one)
	}
	return seen, lines
}

func TestCloudTrailIncludesEventsOfRoleSessions(t *testing.T) {
	w := newFixture(t, nil)
	role := playbooks.Target{
		Kind: playbooks.TargetRole, Name: "web", UID: "AROA1",
		ARN: "arn:aws:iam::123456789012:role/web",
	}
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	const assumed = `{"eventName":"AssumeRoleForPodIdentity","responseElements":{"credentials":{"accessKeyId":"ASIA1","sessionToken":"IQoJb3Jp","expiration":"later"}}}`
	w.AddEvents(2,
		testaws.CloudTrailEvent{Name: "TooOld", Key: "ASIA1", Time: ago(4 * time.Hour)},
		testaws.CloudTrailEvent{
			Name: "AssumeRoleForPodIdentity", Resource: role.ARN, Time: ago(50 * time.Minute),
			RawJSON: assumed,
		},
		testaws.CloudTrailEvent{Name: "ListBuckets", Key: "ASIA1", Time: ago(40 * time.Minute)},
		testaws.CloudTrailEvent{Name: "GetCallerIdentity", Key: "ASIA1", Time: ago(30 * time.Minute)},
		testaws.CloudTrailEvent{Name: "CreateUser", Key: "ASIA1", Time: ago(20 * time.Minute)},
		testaws.CloudTrailEvent{Name: "SomebodyElse", Key: "ASIA2", Time: ago(10 * time.Minute)},
	)
	w.ThrottleNext("LookupEvents", 2)
	seen, lines := w.observeCloudTrail(role)
	var names []string
	for _, line := range lines[1:] {
		names = append(names, line["eventName"].(string))
	}
	require.Equal(t, []string{"AssumeRoleForPodIdentity", "CreateUser", "GetCallerIdentity", "ListBuckets"}, names)
	require.Equal(t, "role:AROA1", lines[0]["target"])
	require.Equal(t, true, lines[0]["complete"])
	require.Contains(t, seen.MissingNote, "4 events")
	require.Contains(t, seen.MissingNote, "may still have happened")
	require.NotContains(t, string(seen.Artifacts[0].Data), "IQoJb3Jp", "a session token is a secret")
	calls := w.CallTimes("LookupEvents")[2:] // the first two were the SDK's own retries
	for i := 1; i < len(calls); i++ {
		require.GreaterOrEqual(t, calls[i].Sub(calls[i-1]), 400*time.Millisecond, "CloudTrail allows two a second")
	}
}

func TestEmptyCloudTrailResultIsEvidence(t *testing.T) {
	w := newFixture(t, nil)
	seen, lines := w.observeCloudTrail(playbooks.Target{Kind: playbooks.TargetKey, Name: "bob", UID: "AKIA1"})
	require.Len(t, lines, 1)
	require.Contains(t, seen.MissingNote, "0 events")
	require.Contains(t, seen.MissingNote, "events that are not listed here may still have happened")
}

func TestCloudTrailLookupIsBounded(t *testing.T) {
	w := newFixture(t, nil)
	var events []testaws.CloudTrailEvent
	for i := range 40 {
		events = append(events, testaws.CloudTrailEvent{
			Name: fmt.Sprintf("E%d", i), User: "bob",
			Time: time.Now().Add(-time.Hour + time.Duration(i)*time.Second),
		})
	}
	w.AddEvents(1, events...)
	seen, lines := w.observeCloudTrail(playbooks.Target{Kind: playbooks.TargetUser, Name: "bob", UID: "AIDA1"})
	require.Len(t, lines, 17)
	require.Equal(t, false, lines[0]["complete"])
	require.Contains(t, seen.MissingNote, "more events exist")
}

func TestCloudTrailRefusesInvalidTargets(t *testing.T) {
	w := newFixture(t, nil)
	observe := w.actions["aws.cloudtrail"].(activities.Observer)
	_, err := observe.Observe(t.Context(), newLeaseRequest("aws.cloudtrail", playbooks.Target{
		Kind: playbooks.TargetPod,
		Name: "p", UID: "u",
	}, 0, ""))
	wantRefusal(t, err, "is not a role, user or access key")
	w.DenyAction("LookupEvents")
	_, err = observe.Observe(t.Context(), newLeaseRequest("aws.cloudtrail", playbooks.Target{
		Kind: playbooks.TargetUser,
		Name: "bob", UID: "AIDA1",
	}, 0, ""))
	wantRefusal(t, err, "cloudtrail:LookupEvents")
}
