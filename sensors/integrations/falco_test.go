package integrations_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

const falcoAlertSample = `{"uuid":"0f7a","output":"10:00 Critical crypto miner","priority":"Critical","rule":"Detect crypto miners using the Stratum protocol","source":"syscall",
"tags":["maturity_sandbox","mitre_impact","T1496"],"time":"2026-11-23T03:00:00.123456789Z","hostname":"node-1",
"output_fields":{"container.id":"abc123","container.image.repository":"shop/web","container.image.tag":"7","evt.time":1795402800123456789,"k8s.ns.name":"shop","k8s.pod.name":"web-1",
"proc.cmdline":"xmrig -o stratum+tcp://pool:3333","proc.name":"xmrig","proc.pid":4242,"proc.pname":"sh","user.uid":null,"proc.exepath":"<NA>"}}`

// decodeAlert decodes text and requires an alert.
func decodeAlert(t *testing.T, decode integrations.Decoder, text string) sensors.Detection {
	t.Helper()
	r, err := decode([]byte(text))
	require.NoError(t, err)
	require.NotNil(t, r.Alert, "%+v", r)
	require.NotEmpty(t, r.Alert.Reasons)
	return *r.Alert
}

func falcoAlert(rule, source, fields string) string {
	return `{"priority":"Warning","rule":"` + rule + `","source":"` + source + `","time":"2026-11-23T03:00:00Z","tags":[],"hostname":"node-1",
"output_fields":{"container.id":"abc123","k8s.ns.name":"shop","k8s.pod.name":"web-1",` + fields + `}}`
}

func TestFalcoAlertBecomesDetection(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeFalco, falcoAlertSample)
	require.Equal(t, sensors.ObjectiveCryptoMining, d.Objective)
	require.Equal(t, sensors.SeverityCritical, d.Severity)
	require.Equal(t, "T1496", d.Technique)
	require.Equal(t, "0f7a", d.ID)
	require.Equal(t, uint32(4242), d.Event.Process.PID)
	require.Equal(t, "shop/web:7", d.Event.Container.Image)
	require.Equal(t, "web-1", d.Event.Container.Pod.Name)
	require.Empty(t, d.Event.Process.Exe, "<NA> is empty")
	require.Equal(t, 123456789, d.Time.Nanosecond(), "the time keeps its precision")
	require.Equal(t, sensors.KindExec, d.Event.Kind)
	require.Equal(t, "sh", d.Event.Process.Ancestors[0].Name)
}

// The output fields of the shipped rules, for each event kind.
func TestFalcoFieldsBecomeEventOfItsKind(t *testing.T) {
	for name, c := range map[string]struct {
		fields string
		check  func(*testing.T, sensors.Event)
	}{
		"an exec with its ancestors": {
			`"evt.type":"execve","proc.name":"bash","proc.exepath":"/usr/bin/bash","proc.cmdline":"bash -i","proc.pid":18446744073,"proc.ppid":7,"proc.pname":"nginx","proc.pexepath":"/usr/sbin/nginx","proc.pcmdline":"nginx -g x",
"proc.aname[2]":"containerd-shim","proc.apid[2]":3,"proc.tty":34816,"user.uid":"0","proc.is_exe_upper_layer":true`,
			func(t *testing.T, e sensors.Event) {
				require.Equal(t, sensors.KindExec, e.Kind)
				require.Zero(t, e.Process.PID, "an out-of-range number is zero")
				require.Equal(t, "pts0", e.Process.TTY)
				require.True(t, e.Process.ExeInUpperLayer)
				require.Equal(t, []sensors.Ancestor{{
					PID: 7, Name: "nginx", Exe: "/usr/sbin/nginx",
					Args: []string{"nginx", "-g", "x"},
				}, {PID: 3, Name: "containerd-shim", Args: []string{}}}, e.Process.Ancestors)
			},
		},
		"a connection": {
			`"evt.type":"connect","fd.name":"10.1.0.4:40112->203.0.113.7:3333","fd.l4proto":"tcp","proc.args":"-o pool","proc.exe":"./m"`,
			func(t *testing.T, e sensors.Event) {
				require.Equal(t, sensors.KindConnect, e.Kind)
				require.Equal(t, sensors.Network{Protocol: "tcp", Family: "ipv4", Address: "203.0.113.7", Port: 3333}, e.Network)
				require.Equal(t, []string{"./m", "-o", "pool"}, e.Process.Args)
			},
		},
		"connection by its remote end": {
			`"evt.type":"connect","fd.rip":"::ffff:203.0.113.7","fd.rport":443`,
			func(t *testing.T, e sensors.Event) {
				require.Equal(t, sensors.Network{Family: "ipv4", Address: "203.0.113.7", Port: 443}, e.Network)
			},
		},
		"a connection to a socket file": {
			`"evt.type":"connect","fd.name":"/run/containerd/containerd.sock"`,
			func(t *testing.T, e sensors.Event) {
				require.Equal(t, sensors.KindUnixConnect, e.Kind)
				require.Equal(t, "/run/containerd/containerd.sock", e.File.Path)
			},
		},
		"shell redirected to a socket": {
			`"evt.type":"dup3","fd.sip":"203.0.113.7","fd.sport":4444`,
			func(t *testing.T, e sensors.Event) { require.Equal(t, sensors.KindConnect, e.Kind) },
		},
		"file read": {
			`"evt.type":"openat","fd.name":"/etc/shadow"`,
			func(t *testing.T, e sensors.Event) {
				require.Equal(t, sensors.KindFileOpen, e.Kind)
				require.Equal(t, sensors.File{Path: "/etc/shadow"}, e.File)
			},
		},
		"file that could not be opened": {
			`"evt.type":"open","evt.arg.name":"../../etc/shadow","evt.res":"ENOENT"`,
			func(t *testing.T, e sensors.Event) {
				require.True(t, e.File.PathUnresolved)
				require.True(t, e.Syscall.Failed)
			},
		},
		"a trace": {
			`"evt.type":"ptrace"`,
			func(t *testing.T, e sensors.Event) { require.Equal(t, sensors.KindProcessTrace, e.Kind) },
		},
		"a raw socket": {`"evt.type":"socket"`, func(t *testing.T, e sensors.Event) {
			require.Equal(t, sensors.KindRawSocket,
				e.Kind)
		}},
		"a module": {
			`"evt.type":"finit_module"`,
			func(t *testing.T, e sensors.Event) { require.Equal(t, sensors.KindKernelModule, e.Kind) },
		},
		"cleared log": {
			`"evt.type":"truncate","fs.path.name":"/var/log/auth.log"`,
			func(t *testing.T, e sensors.Event) { require.Equal(t, sensors.KindFileDelete, e.Kind) },
		},
		"bracket names": {
			`"evt.type":"execve","proc.pname":"a","proc.aname_2":"b"`,
			func(t *testing.T, e sensors.Event) { require.Len(t, e.Process.Ancestors, 2) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.check(t, decodeAlert(t, integrations.DecodeFalco, falcoAlert("Run shell untrusted", "syscall", c.fields)).Event)
		})
	}
}

// Every stable Falco rule is recognized by its name, whatever its tags are.
func TestEveryStableFalcoRuleIsMapped(t *testing.T) {
	stable := []string{
		"Directory traversal monitored file read", "Read sensitive file trusted after startup",
		"Read sensitive file untrusted", "Run shell untrusted", "System user interactive",
		"Terminal shell in container", "Contact K8S API Server From Container", "Netcat Remote Code Execution in Container",
		"Search Private Keys or Passwords", "Clear Log Activities",
		"Remove Bulk Data from Disk", "Create Symlink Over Sensitive Files", "Create Hardlink Over Sensitive Files",
		"Packet socket created in container",
		"Redirect STDOUT/STDIN to Network Connection in Container", "Linux Kernel Module Injection Detected",
		"Debugfs Launched in Privileged Container",
		"Detect release_agent File Container Escapes", "PTRACE attached to process", "PTRACE anti-debug attempt",
		"Find AWS Credentials", "Execution from /dev/shm",
		"Drop and execute new binary in container", "Disallowed SSH Connection Non Standard Port",
		"Fileless execution via memfd_create",
	}
	require.Len(t, stable, 25)
	for _, rule := range stable {
		d := decodeAlert(t, integrations.DecodeFalco, falcoAlert(rule, "syscall", `"evt.type":"execve"`))
		require.Contains(t, d.Reasons[1], "Falco's own rules", rule)
		require.NotEmpty(t, d.Technique, rule)
	}
}

func TestGuessedObjectiveIsStatedInTheReasons(t *testing.T) {
	for tags, want := range map[string]struct {
		objective sensors.Objective
		reason    string
	}{
		`"T1611"`:                     {sensors.ObjectiveEscape, "ATT&CK technique T1611"},
		`"mitre_lateral_movement"`:    {sensors.ObjectiveLateralMovement, `the words "lateral movement"`},
		`"mitre_impact"`:              {sensors.ObjectiveExecution, "is a guess"},
		`"network","maturity_stable"`: {sensors.ObjectiveExecution, "is a guess"},
	} {
		d := decodeAlert(t, integrations.DecodeFalco, strings.Replace(falcoAlert("Ours", "syscall", `"evt.type":"execve"`),
			`"tags":[]`, `"tags":[`+tags+`]`, 1))
		require.Equal(t, want.objective, d.Objective, tags)
		require.Contains(t, d.Reasons[1], want.reason, tags)
	}
}

// The actor must not be truncated: otherwise the person could approve an incident that they triggered.
func TestActorIsNotTruncated(t *testing.T) {
	arn := "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_AdministratorAccess_0123456789abcdef/alice@example.com"
	for field, want := range map[string]string{"ka.user.name": "kubernetes:" + arn, "ct.user.arn": "aws:" + arn} {
		d := decodeAlert(t, integrations.DecodeFalco, strings.Replace(falcoAlertSample, `"output_fields":{`,
			`"output_fields":{"`+field+`":"`+arn+`",`, 1))
		require.Equal(t, want, d.Event.Actor)
	}
}

func TestFalcoPluginAlertsBecomeAuditAndCloudEvents(t *testing.T) {
	d := decodeAlert(
		t,
		integrations.DecodeFalco,
		`{"priority":"Notice","rule":"Attach/Exec Pod","source":"k8s_audit","time":"2026-11-23T03:00:00Z","output_fields":{
"ka.user.name":"alice","ka.verb":"create","ka.target.resource":"pods","ka.target.subresource":"exec","ka.target.namespace":"shop","ka.target.name":"web-1","ka.response.code":"101","ka.uri.param[command]":"sh"}}`,
	)
	require.Equal(t, sensors.KindKubernetesAudit, d.Event.Kind)
	require.Equal(t, "kubernetes:alice", d.Event.Actor)
	require.Equal(t, sensors.Pod{Namespace: "shop", Name: "web-1"}, d.Event.Container.Pod)
	require.Equal(t, 101, d.Event.Audit.StatusCode)
	require.Equal(t, []string{"sh"}, d.Event.Audit.Exec.Command)

	d = decodeAlert(
		t,
		integrations.DecodeFalco,
		`{"priority":"Warning","rule":"ClusterRole With Wildcard Created","source":"k8s_audit","time":"2026-11-23T03:00:00Z","output_fields":{
"ka.user.name":"system:serviceaccount:ci:deployer","ka.verb":"create","ka.target.resource":"clusterroles","ka.target.name":"all"}}`,
	)
	require.Equal(t, sensors.AuditServiceAccount{Namespace: "ci", Name: "deployer"}, d.Event.Audit.ServiceAccount)
	require.Empty(t, d.Event.Container.Pod.Name, "it has no pod")

	d = decodeAlert(
		t,
		integrations.DecodeFalco,
		`{"priority":"Warning","rule":"CloudTrail Logging Disabled","source":"aws_cloudtrail","time":"2026-11-23T03:00:00Z","output_fields":{
"ct.name":"StopLogging","ct.src":"cloudtrail.amazonaws.com","ct.user.arn":"arn:aws:sts::123456789012:assumed-role/web/i-1","ct.srcip":"203.0.113.7","ct.region":"eu-central-1"}}`,
	)
	require.Equal(t, sensors.KindCloudAPICall, d.Event.Kind)
	require.Equal(t, "web", d.Event.Cloud.Role)
	require.Equal(t, "i-1", d.Event.Cloud.SessionName)
	require.Equal(t, sensors.ObjectiveDefenseEvasion, d.Objective)
}

// Falco reports lost events as an alert, which is not an attack.
func TestInternalFalcoAlertIsHealthRecord(t *testing.T) {
	for text, want := range map[string]integrations.SensorHealth{
		`{"output":"Falco internal: syscall event drop. 2 system calls dropped in last second.","output_fields":{"ebpf_enabled":"1","n_drops":"18446744073709551615","n_drops_buffer":"2","n_evts":"29454"},"priority":"Critical","rule":"Falco internal: syscall event drop","time":"2026-11-23T07:48:46.992595181Z","hostname":"node-1"}`: {
			Source: "falco", Node: "node-1", Dropped: 1<<64 - 1,
			Message: "Falco internal: syscall event drop. 2 system calls dropped in last second.",
			Time:    time.Date(2026, 11, 23, 7, 48, 46, 992595181, time.UTC),
		},
		`{"hostname":"node-1","output":"Falco metrics snapshot","output_fields":{"evt.time":1795402800123456789,"falco.outputs_queue_num_drops":3,"scap.n_drops":40,"scap.n_drops_perc":0.0},"priority":"Informational","rule":"Falco internal: metrics snapshot","source":"internal"}`: {
			Source: "falco", Node: "node-1", Dropped: 43, DroppedIsCumulative: true, Message: "Falco metrics snapshot",
			Time: time.Unix(0, 1795402800123456789).UTC(),
		},
		`{"output":"This is a test from falcosidekick","priority":"Debug","hostname":"falcosidekick","rule":"Test rule","time":"2026-11-23T07:48:46Z","output_fields":{"proc.name":"falcosidekick","user.name":"falcosidekick"},"tags":["test","example"]}`: {
			Source: "falco", Message: "Falcosidekick sent its test event.", Time: time.Date(2026, 11, 23, 7, 48, 46, 0,
				time.UTC),
		},
	} {
		r, err := integrations.DecodeFalco([]byte(text))
		require.NoError(t, err)
		require.NotNil(t, r.Health)
		require.Nil(t, r.Alert)
		require.Equal(t, want, *r.Health)
	}
}

func TestDecodeFalcoRejectsInvalidAlerts(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                                  "invalid Falco JSON",
		`[]`:                                 "not a JSON object",
		`{"hello":"world"}`:                  "invalid Falco alert: missing rule or priority",
		`{"rule":"r","priority":"Horrible"}`: `unknown Falco priority "Horrible"`,
		`{"rule":"r","priority":"Critical"}`: "does not identify a container",
		`{"rule":"r","priority":"Critical","output_fields":{"container.id":"host"}}`:                                 "does not identify a container",
		`{"rule":"r","priority":"Critical","output_fields":{"container.id":"a"}}`:                                    "missing or invalid time",
		`{"rule":"r","priority":"Critical","time":"9999-12-31T23:59:59-23:59","output_fields":{"container.id":"a"}}`: "missing or invalid time",
		`{"rule":"r","priority":"Critical","output_fields":{"container.id":"` + strings.Repeat("a", 300) +
			`"}}`: "container ID is 300 bytes long",
		`{"a":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) +
			`}`: "nested deeper than 64",
		`{"a":[` + strings.Repeat("0,", 10_001) +
			`0]}`: "more than 10000 fields",
		`{"a":"` + strings.Repeat("a", integrations.MaxRecordBytes) +
			`"}`: "the maximum is 262144",
		`{"rule":"r","priority":"Critical","time":"2026-11-23T00:00:00Z","output_fields":{"container.id":"a"},"tags":"a"}`: "invalid Falco JSON",
		`{"rule":"` + strings.Repeat("r", 300) +
			`","priority":"Critical","time":"2026-11-23T00:00:00Z","output_fields":{}}`: "the rule is 300 bytes long",
	} {
		_, err := integrations.DecodeFalco([]byte(text))
		require.ErrorContains(t, err, want, text[:min(len(text), 200)])
	}
}
