package foreign_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/foreign"
)

const alert = `{"uuid":"0f7a","output":"10:00 Critical crypto miner","priority":"Critical","rule":"Detect crypto miners using the Stratum protocol","source":"syscall",
"tags":["maturity_sandbox","mitre_impact","T1496"],"time":"2026-11-23T03:00:00.123456789Z","hostname":"node-1",
"output_fields":{"container.id":"abc123","container.image.repository":"shop/web","container.image.tag":"7","evt.time":1795402800123456789,"k8s.ns.name":"shop","k8s.pod.name":"web-1",
"proc.cmdline":"xmrig -o stratum+tcp://pool:3333","proc.name":"xmrig","proc.pid":4242,"proc.pname":"sh","user.uid":null,"proc.exepath":"<NA>"}}`

func TestAFalcoAlertBecomesADetection(t *testing.T) {
	d, err := foreign.Falco([]byte(alert))
	require.NoError(t, err)
	require.Equal(t, sensors.ObjectiveCryptoMining, d.Objective)
	require.Equal(t, sensors.SeverityCritical, d.Severity)
	require.Equal(t, "T1496", d.Technique)
	require.Equal(t, "0f7a", d.ID)
	require.Equal(t, uint32(4242), d.Event.Process.PID)
	require.Equal(t, "shop/web:7", d.Event.Container.Image)
	require.Equal(t, "web-1", d.Event.Container.Pod.Name)
	require.Empty(t, d.Event.Process.Exe, "<NA> is nothing")
	require.Equal(t, 123456789, d.Time.Nanosecond(), "no digit of the time is lost")
}

// Who did it is named whole: a name that was cut is nobody's, and its owner could approve what they triggered.
func TestTheActorIsNamedWhole(t *testing.T) {
	arn := "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_AdministratorAccess_0123456789abcdef/alice@example.com"
	for field, want := range map[string]string{"ka.user.name": "kubernetes:" + arn, "ct.user.arn": "aws:" + arn} {
		d, err := foreign.Falco([]byte(strings.Replace(alert, `"output_fields":{`, `"output_fields":{"`+field+`":"`+arn+`",`, 1)))
		require.NoError(t, err)
		require.Equal(t, want, d.Event.Actor)
	}
}

func TestWhatIsNoAlertAboutAContainerIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                                  "not Falco's JSON",
		`{"hello":"world"}`:                  "not a Falco alert",
		`{"rule":"r","priority":"Horrible"}`: "none of Falco's",
		`{"rule":"r","priority":"Critical"}`: "about no container",
		`{"rule":"r","priority":"Critical","output_fields":{"container.id":"host"}}`: "about no container",
	} {
		_, err := foreign.Falco([]byte(text))
		require.ErrorContains(t, err, want, text)
	}
}

func FuzzFalco(f *testing.F) {
	f.Add([]byte(alert))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if d, err := foreign.Falco(raw); err == nil && (d.ID == "" || d.Rule == "") {
			t.Fatal("accepted without an id or a rule")
		}
	})
}
