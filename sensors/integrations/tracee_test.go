package integrations_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

const traceeV1 = `{"timestamp":1795402800123456789,"processId":280,"cgroupId":15368,"hostProcessId":44322,"hostParentProcessId":44320,"userId":0,"processName":"sh","executable":{"path":"/bin/sh"},"hostName":"web-7d9c4-abcde",
"containerId":"8498b675","container":{"id":"8498b67529680758","name":"app","image":"docker.io/library/debian:12","imageDigest":"sha256:b121"},"kubernetes":{"podName":"web-1","podNamespace":"shop","podUID":"7618a938"},
"eventId":"6000","eventName":"stdio_over_socket","matchedPolicies":["default"],"returnValue":0,"syscall":"connect","args":[{"name":"File descriptor","type":"int","value":0},
{"name":"triggeredBy","type":"unknown","value":{"name":"security_socket_connect","args":[{"name":"remote_addr","type":"struct sockaddr*","value":{"sa_family":"AF_INET","sin_addr":"203.0.113.7","sin_port":"4444"}}]}}],
"metadata":{"Version":"1","Description":"A process has its standard input/output redirected to a socket.","Tags":null,"Properties":{"Category":"execution","Severity":3,"Technique":"Unix Shell","external_id":"T1059.004","signatureID":"TRC-101","signatureName":"Process standard input/output over socket detected"}}}`

const traceeV2 = `{"timestamp":{"seconds":"1795402800","nanos":123456789},"id":6018,"name":"anti_debugging","policies":{"matched":["default"]},
"workload":{"process":{"thread":{"name":"strace","syscall":"ptrace"},"host_pid":{"value":44322},"pid":280,"real_user":{"id":{"value":1000}},"executable":{"path":"/usr/bin/strace"},"ancestors":[{"host_pid":44320}]},
"container":{"id":"8498b67529680758","name":"app","image":{"name":"debian:12","repo_digests":["debian@sha256:b121"]}},"k8s":{"pod":{"name":"web-1","uid":"7618a938","labels":{"app":"web"}},"namespace":{"name":"shop"}}},
"threat":{"name":"Anti-Debugging detected","description":"d","severity":"LOW","mitre":{"tactic":{"name":"Defense Evasion"},"technique":{"id":"T1622","name":"Debugger Evasion"}},"properties":{"signatureID":"TRC-102"}},
"detected_from":{"id":101,"name":"ptrace","data":[{"name":"request","int64":"0"}]}}`

var traceeLines = []string{
	traceeV1,
	traceeV2,
	strings.NewReplacer("host_pid", "hostPid", "real_user", "realUser", "detected_from", "detectedFrom", "repo_digests",
		"repoDigests", `{"seconds":"1795402800","nanos":123456789}`, `"2026-11-23T03:00:00.123456789Z"`).Replace(traceeV2),
	`{"timestamp":1795402800123456789,"eventName":"execve","processName":"sh","containerId":"8498","args":[]}`,
	`{"timestamp":"2026-11-23T03:00:00Z","name":"sched_process_exec","workload":{"process":{"pid":1}},"data":[]}`,
	`{"level":"warn","ts":1677676197.8,"msg":"Lost 12 events"}`,
	`{"level":"info","ts":1677676197.8,"msg":"Tracee is ready"}`,
	`{"Data":null,"Context":{"timestamp":1795402800123456789,"processName":"ls","hostProcessId":7,"containerId":"8498","podName":"web-1","podNamespace":"shop","eventName":"ptrace","args":[]},"SigMetadata":{"ID":"TRC-2","Version":"1","Name":"Anti-Debugging","Description":"d","Properties":{"Severity":1,"MITRE ATT&CK":"Defense Evasion: Execution Guardrails"}}}`,
}

func TestTraceeSignatureBecomesDetection(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeTracee, traceeV1)
	require.Equal(t, "stdio_over_socket", d.Rule)
	require.Equal(t, "Process standard input/output over socket detected", d.Title)
	require.Equal(t, sensors.SeverityHigh, d.Severity)
	require.Equal(t, sensors.ObjectiveCommandControl, d.Objective)
	require.Equal(t, "T1059.004", d.Technique)
	require.Equal(t, 123456789, d.Time.Nanosecond(), "the time keeps its precision")
	require.Empty(t, d.Node, "the name in the container differs from the node's")
	e := d.Event
	require.Equal(t, sensors.KindConnect, e.Kind)
	require.Equal(t, sensors.Network{Family: "ipv4", Address: "203.0.113.7", Port: 4444}, e.Network)
	require.Equal(t, uint32(44322), e.Process.PID)
	require.Equal(t, uint32(280), e.Process.NSPID)
	require.Equal(t, "8498b67529680758", e.Container.ID)
	require.Equal(t, "sha256:b121", e.Container.ImageDigest)
	require.Equal(t, sensors.Pod{Namespace: "shop", Name: "web-1", UID: "7618a938"}, e.Container.Pod)
}

func TestNewerTraceeFormatIsEquivalent(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeTracee, traceeV2)
	require.Equal(t, "anti_debugging", d.Rule)
	require.Equal(t, sensors.SeverityLow, d.Severity)
	require.Equal(t, "T1622", d.Technique)
	require.Equal(t, sensors.KindProcessTrace, d.Event.Kind)
	require.Equal(t, uint32(44322), d.Event.Process.PID)
	require.Equal(t, uint32(1000), d.Event.Process.UID)
	require.Equal(t, uint32(44320), d.Event.Process.PPID)
	require.Equal(t, "sha256:b121", d.Event.Container.ImageDigest)
	require.Equal(t, sensors.Pod{
		Namespace: "shop", Name: "web-1", UID: "7618a938",
		Labels: map[string]string{"app": "web"},
	}, d.Event.Container.Pod)
	camel := decodeAlert(t, integrations.DecodeTracee, traceeLines[2])
	camel.ID, camel.Event.ID = d.ID, d.Event.ID
	require.Equal(t, d, camel, "camel case of protobuf is equivalent")
	old := decodeAlert(t, integrations.DecodeTracee, traceeLines[7])
	require.Equal(t, "Anti-Debugging", old.Title)
	require.Equal(t, "Anti-Debugging", old.Rule, "the event's name is that of the traced event")
	require.Equal(t, sensors.ObjectiveDefenseEvasion, old.Objective)
	require.Equal(t, sensors.KindProcessTrace, old.Event.Kind)
}

func TestTraceeEventsAreTelemetryAndDropsAreHealth(t *testing.T) {
	for _, i := range []int{3, 4, 6} {
		r, err := integrations.DecodeTracee([]byte(traceeLines[i]))
		require.NoError(t, err)
		require.Equal(t, integrations.DecodedRecord{Telemetry: true}, r)
	}
	r, err := integrations.DecodeTracee([]byte(traceeLines[5]))
	require.NoError(t, err)
	require.Equal(t, uint64(12), r.Health.Dropped)
	for text, want := range map[string]string{
		`{"hello":1}`: "invalid Tracee event: missing name",
		`{"a":1}{}`:   "unexpected data after the first object",
		strings.NewReplacer(`"id":"8498b67529680758",`, "", `"containerId":"8498b675",`, "", `"podName":"web-1",`,
			"").Replace(traceeV1): "does not identify a container",
	} {
		_, err := integrations.DecodeTracee([]byte(text))
		require.ErrorContains(t, err, want, text)
	}
}
