package integrations_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

const tetragonPodJSON = `{"namespace":"shop","name":"web-7d9c4-abcde","uid":"11111111-2222-3333-4444-555555555555","workload":"web","workload_kind":"Deployment",
"pod_labels":{"app":"web"},"container":{"id":"containerd://6b742e38ee3a212239e6d48b2954435a407af44b9a354bdf540db22f460ab40e","name":"web","image":{"id":"docker.io/shop/web@sha256:0b3f","name":"docker.io/shop/web:7"},"start_time":"2026-11-23T00:00:00Z","pid":51}}`

const tetragonProcessJSON = `{"exec_id":"bm9kZTox","pid":{"value":52699},"uid":0,"cwd":"/","binary":"/usr/bin/curl","arguments":"-H \"a b\" https://example.com","flags":"execve clone truncArgs","start_time":"2026-11-23T03:00:00.1Z","docker":"6b742e38ee3a212","in_init_tree":false,"pod":` + tetragonPodJSON + `}`

func tetragonHookJSON(kind, fields string) string {
	return fmt.Sprintf(
		`{%q:{"process":%s,"parent":{"pid":52000,"binary":"/bin/bash","arguments":"-c x"},"ancestors":[{"pid":1,"binary":"/sbin/init"}],"policy_name":"egress",%s},"node_name":"node-1","time":"2026-11-23T03:00:00.700326678Z"}`,
		kind,
		tetragonProcessJSON,
		fields,
	)
}

var tetragonLines = []string{
	tetragonHookJSON(
		"process_kprobe",
		`"function_name":"tcp_connect","args":[{"sock_arg":{"family":"AF_INET","type":"SOCK_STREAM","protocol":"IPPROTO_TCP","saddr":"10.0.0.1","daddr":"203.0.113.7","sport":34965,"dport":3333,"cookie":"18446623346735137920"}}],"action":"KPROBE_ACTION_SIGKILL","message":"pool contacted","tags":["T1496","severity.high"]`,
	),
	tetragonHookJSON(
		"process_kprobe",
		`"function_name":"security_file_permission","args":[{"file_arg":{"path":"/etc/shadow","permission":"-rw-r-----"}},{"int_arg":2}],"return":{"int_arg":-1},"action":"KPROBE_ACTION_POST","tags":["observability.filesystem"]`,
	),
	tetragonHookJSON(
		"process_tracepoint",
		`"subsys":"syscalls","event":"sys_enter_setns","args":[{"int_arg":3}],"action":"KPROBE_ACTION_POST"`,
	),
	tetragonHookJSON(
		"process_lsm",
		`"function_name":"bprm_check_security","args":[{"linux_binprm_arg":{"path":"/tmp/x"}}],"tags":["observability.process"]`,
	),
	tetragonHookJSON("process_uprobe", `"path":"/bin/bash","symbol":"readline"`),
	tetragonHookJSON(
		"process_kprobe",
		`"function_name":"security_kernel_module_request","args":[{"module_arg":{"name":"rootkit"}}],"tags":["observability.privilege_escalation"]`,
	),
	`{"process_exec":{"process":` + tetragonProcessJSON +
		`,"parent":{}},"node_name":"node-1","time":"2026-11-23T03:00:00Z"}`,
	`{"process_exit":{"process":` + tetragonProcessJSON + `,"status":1},"time":"2026-11-23T03:00:00Z"}`,
	`{"rate_limit_info":{"number_of_dropped_process_events":"18446744073709551615"},"node_name":"node-1","time":"2026-11-23T03:00:00Z"}`,
	`{"process_throttle":{"type":"THROTTLE_START","cgroup":"kubepods"},"node_name":"node-1","time":"2026-11-23T03:00:00Z"}`,
	`{"test":{"arg0":"1"},"time":"2026-11-23T03:00:00Z"}`,
}

func TestTetragonPolicyBecomesDetection(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeTetragon, tetragonLines[0])
	require.Equal(t, "egress", d.Rule)
	require.Equal(t, "pool contacted", d.Title)
	require.Equal(t, sensors.SeverityHigh, d.Severity, "from its tag")
	require.Equal(t, sensors.ObjectiveCryptoMining, d.Objective)
	require.Contains(t, d.Reasons, "Tetragon killed the process.")
	require.Equal(t, 700326678, d.Time.Nanosecond())
	e := d.Event
	require.Equal(t, sensors.KindConnect, e.Kind)
	require.Equal(t, sensors.Network{Protocol: "tcp", Family: "ipv4", Address: "203.0.113.7", Port: 3333}, e.Network)
	require.Equal(t, uint32(52699), e.Process.PID)
	require.Equal(t, []string{"/usr/bin/curl", "-H", "a b", "https://example.com"}, e.Process.Args)
	require.True(t, e.Process.ArgsTruncated)
	require.True(t, e.Process.ExecedInto, "it is outside the container's process tree")
	require.Equal(t, []sensors.Ancestor{{PID: 52000, Name: "bash", Exe: "/bin/bash", Args: []string{
		"/bin/bash", "-c",
		"x",
	}}, {PID: 1, Name: "init", Exe: "/sbin/init", Args: []string{"/sbin/init"}}}, e.Process.Ancestors)
	c := e.Container
	require.Equal(t, "6b742e38ee3a212239e6d48b2954435a407af44b9a354bdf540db22f460ab40e", c.ID)
	require.Equal(t, "containerd", c.Runtime)
	require.Equal(t, "sha256:0b3f", c.ImageDigest)
	require.Equal(t, sensors.Workload{Kind: "Deployment", Name: "web"}, c.Workload)
	require.Equal(t, "11111111-2222-3333-4444-555555555555", c.Pod.UID)
}

func TestTetragonHooksMapToEventKinds(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeTetragon, tetragonLines[1])
	require.Equal(t, sensors.File{Path: "/etc/shadow", OpenedForWrite: true}, d.Event.File)
	require.Equal(t, sensors.KindFileOpen, d.Event.Kind)
	require.True(t, d.Event.Syscall.Failed)
	d = decodeAlert(t, integrations.DecodeTetragon, tetragonLines[2])
	require.Equal(t, sensors.KindNamespaceChange, d.Event.Kind)
	require.Contains(t, d.Reasons[1], "is a guess")
	d = decodeAlert(t, integrations.DecodeTetragon, tetragonLines[3])
	require.Equal(t, sensors.KindExec, d.Event.Kind)
	require.Equal(t, "/tmp/x", d.Event.Syscall.Detail)
	d = decodeAlert(t, integrations.DecodeTetragon, tetragonLines[4])
	require.Contains(t, d.Reasons[0], "/bin/bash:readline")
	d = decodeAlert(t, integrations.DecodeTetragon, tetragonLines[5])
	require.Equal(t, sensors.KindKernelModule, d.Event.Kind)
	require.Equal(t, "rootkit", d.Event.Syscall.Detail)
	require.Equal(t, sensors.ObjectiveEscape, d.Objective)
}

// Tetragon exports every process start, which is telemetry. Dropped events are health records.
func TestTetragonEventWithoutPolicyIsTelemetry(t *testing.T) {
	for _, i := range []int{6, 7, 10} {
		r, err := integrations.DecodeTetragon([]byte(tetragonLines[i]))
		require.NoError(t, err)
		require.Equal(t, integrations.DecodedRecord{Telemetry: true}, r)
	}
	r, err := integrations.DecodeTetragon([]byte(tetragonLines[8]))
	require.NoError(t, err)
	require.Equal(t, uint64(1<<64-1), r.Health.Dropped, "a 64-bit number keeps its digits")
	require.Equal(t, "node-1", r.Health.Node)
	r, err = integrations.DecodeTetragon([]byte(tetragonLines[9]))
	require.NoError(t, err)
	require.Contains(t, r.Health.Message, "kubepods")

	for text, want := range map[string]string{
		`{"process_kprobe":{"policy_name":"p"},"time":"2026-11-23T03:00:00Z"}`:                           "missing process",
		`{"process_kprobe":{"policy_name":"p","process":{"binary":"/x"}},"time":"2026-11-23T03:00:00Z"}`: "does not identify a container",
		`{"process_kprobe":{"policy_name":"p","process":{"binary":"/x","docker":"abc"}}}`:                "missing or invalid time",
		`{"hello":1}`: "unknown kind of Tetragon event",
		`nonsense`:    "invalid Tetragon JSON",
	} {
		_, err := integrations.DecodeTetragon([]byte(text))
		require.ErrorContains(t, err, want, text)
	}
}
