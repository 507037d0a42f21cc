package integrations_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

func kubeArmorAlert(fields string) string {
	return `{"Timestamp":1795402800,"UpdatedTime":"2026-11-23T03:00:00.694009Z","ClusterName":"default","HostName":"node-1","NamespaceName":"shop","PodName":"web-1","Labels":"app=web,tier=front",
"Owner":{"Ref":"Deployment","Name":"web","Namespace":"shop"},"ContainerID":"72de193f","ContainerName":"web","ContainerImage":"docker.io/library/wordpress:4.8-apache@sha256:6216","HostPPID":495804,"HostPID":495877,"PPID":1,"PID":309841,"UID":33,
"ParentProcessName":"/bin/bash","Type":"MatchedPolicy","Enforcer":"BPFLSM",` + fields + `}`
}

var kubeArmorLines = []string{
	kubeArmorAlert(
		`"ProcessName":"/usr/bin/apt","PolicyName":"harden-web-pkg-mngr-exec","Severity":"5","Tags":"NIST,process","Message":"package management denied","Source":"/bin/bash","Operation":"Process","Resource":"/usr/bin/apt update","Data":"syscall=SYS_EXECVE","Action":"Block","Result":"Permission denied"`,
	),
	kubeArmorAlert(
		`"ProcessName":"/bin/rm","PolicyName":"ours","Severity":8,"ATags":["MITRE","MITRE_T1036_masquerading"],"Source":"/bin/rm /sbin/raw","Operation":"File","Resource":"/sbin/raw","Data":"syscall=SYS_UNLINKAT flags=","Action":"Block","Result":"Permission denied"`,
	),
	kubeArmorAlert(
		`"ProcessName":"/bin/m","PolicyName":"DefaultPosture","Source":"/bin/m","Operation":"Network","Resource":"sa_family=AF_INET sin_port=3333 sin_addr=203.0.113.7","Data":"syscall=SYS_CONNECT fd=10","Action":"Audit","Result":"Passed"`,
	),
	kubeArmorAlert(
		`"ProcessName":"/bin/m","PolicyName":"no-raw","Severity":"10","Operation":"Network","Resource":"domain=AF_INET type=SOCK_RAW protocol=1","Data":"syscall=SYS_SOCKET","Action":"Audit","Result":"Passed"`,
	),
	strings.Replace(
		kubeArmorAlert(`"Operation":"File","Resource":"/etc/hosts","Data":"syscall=SYS_OPENAT","Result":"Passed"`),
		"MatchedPolicy",
		"ContainerLog",
		1,
	),
	`{"Timestamp":1795402800,"UpdatedTime":"2026-11-23T03:00:00Z","ClusterName":"default","HostName":"node-1","HostIP":"10.0.0.1","Type":"","Level":"INFO","Message":"Initialized KubeArmor"}`,
	`{"Timestamp":1795402800,"HostName":"node-1","Type":"MatchedHostPolicy","PolicyName":"sleep-deny","Severity":"5","Operation":"Process","Resource":"/usr/bin/sleep 10","Action":"Block","Result":"Permission denied"}`,
}

func TestKubeArmorPolicyBecomesDetection(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeKubeArmor, kubeArmorLines[0])
	require.Equal(t, "harden-web-pkg-mngr-exec", d.Rule)
	require.Equal(t, sensors.SeverityMedium, d.Severity)
	require.Contains(t, d.Reasons[1], "KubeArmor's own hardening policies")
	require.Contains(t, d.Reasons, "KubeArmor blocked it.")
	require.Equal(t, 694009000, d.Time.Nanosecond())
	e := d.Event
	require.Equal(t, sensors.KindExec, e.Kind)
	require.True(t, e.Syscall.Failed)
	require.Equal(t, []string{"/usr/bin/apt", "update"}, e.Process.Args)
	require.Equal(t, uint32(495877), e.Process.PID)
	require.Equal(t, sensors.Ancestor{PID: 495804, Name: "bash", Exe: "/bin/bash"}, e.Process.Ancestors[0])
	require.Equal(t, "docker.io/library/wordpress:4.8-apache", e.Container.Image)
	require.Equal(t, "sha256:6216", e.Container.ImageDigest)
	require.Equal(t, sensors.Workload{Kind: "Deployment", Name: "web"}, e.Container.Workload)
	require.Equal(t, map[string]string{"app": "web", "tier": "front"}, e.Container.Pod.Labels)
}

func TestKubeArmorOperationsMapToEventKinds(t *testing.T) {
	d := decodeAlert(t, integrations.DecodeKubeArmor, kubeArmorLines[1])
	require.Equal(t, sensors.KindFileDelete, d.Event.Kind)
	require.Equal(t, sensors.File{Path: "/sbin/raw", OpenedForWrite: true}, d.Event.File)
	require.Equal(t, "T1036", d.Technique)
	require.Equal(t, sensors.ObjectiveDefenseEvasion, d.Objective)
	require.Equal(t, sensors.SeverityHigh, d.Severity, "a valid number")
	d = decodeAlert(t, integrations.DecodeKubeArmor, kubeArmorLines[2])
	require.Equal(t, sensors.KindConnect, d.Event.Kind)
	require.Equal(t, sensors.Network{Family: "ipv4", Address: "203.0.113.7", Port: 3333}, d.Event.Network)
	require.Contains(t, d.Reasons[1], "is a guess")
	require.Contains(t, d.Reasons[2], "allowed it")
	d = decodeAlert(t, integrations.DecodeKubeArmor, kubeArmorLines[3])
	require.Equal(t, sensors.KindRawSocket, d.Event.Kind)
	require.Equal(t, sensors.SeverityCritical, d.Severity)
}

func TestKubeArmorLogIsTelemetry(t *testing.T) {
	r, err := integrations.DecodeKubeArmor([]byte(kubeArmorLines[4]))
	require.NoError(t, err)
	require.Equal(t, integrations.DecodedRecord{Telemetry: true}, r)
	r, err = integrations.DecodeKubeArmor([]byte(kubeArmorLines[5]))
	require.NoError(t, err)
	require.Equal(t, "KubeArmor reported: Initialized KubeArmor", r.Health.Message)
	_, err = integrations.DecodeKubeArmor([]byte(kubeArmorLines[6]))
	require.ErrorContains(t, err, "does not identify a container", "a host policy has no container")
	_, err = integrations.DecodeKubeArmor([]byte(`{"Type":"Odd"}`))
	require.ErrorContains(t, err, `its type is "Odd"`)
}
