package rules

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

// webServerEvent returns a typical event of a web server pod with all the fields that a node fills.
func webServerEvent(kind sensors.Kind) sensors.Event {
	e := sensors.Event{
		ID: "n/b/1", Kind: kind, Time: time.Unix(1, 0), Node: "n",
		Container: sensors.Container{
			ID: "0123456789abcdef", Name: "web", Runtime: "containerd", CgroupID: 7, Image: "docker.io/library/nginx:1.29",
			ImageDigest: "sha256:0",
			Pod: sensors.Pod{
				Namespace: "shop", Name: "web-6d4cf56db6-abcde", UID: "u",
				Labels: map[string]string{"app": "web", "pod-template-hash": "6d4cf56db6"},
			},
			Workload: sensors.Workload{Kind: "Deployment", Name: "web"},
		},
		Process: sensors.Process{
			PID: 700, PPID: 699, Name: "nginx", Exe: "/usr/sbin/nginx", Args: []string{"nginx", "-g", "daemon off;"}, UID: 101,
			EUID: 101,
			Ancestors: []sensors.Ancestor{
				{PID: 699, Name: "nginx", Exe: "/usr/sbin/nginx"},
				{PID: 600, Name: "containerd-shim"},
			},
		},
	}
	switch kind {
	case sensors.KindConnect:
		e.Network = sensors.Network{Protocol: "tcp", Family: "ipv4", Address: "10.96.3.4", Port: 5432}
	case sensors.KindFileOpen:
		e.File = sensors.File{Path: "/etc/ssl/private/key.pem", SensitiveClass: "private-key"}
	default:
	}
	return e
}

// BenchmarkRuleThatDoesNotMatch measures each shipped rule on a typical event of its kind.
func BenchmarkRuleThatDoesNotMatch(b *testing.B) {
	set, err := LoadShipped()
	require.NoError(b, err)
	for _, r := range set.Rules() {
		v := newConditionEnv()
		b.Run(r.Name, func(b *testing.B) {
			b.ReportAllocs()
			v.setEvent(webServerEvent(r.Kind))
			fired := false
			for b.Loop() {
				v.hasExe, v.hasCommand, v.hasParent = false, false, false
				fired, _, _ = r.evaluate(v)
			}
			if fired {
				b.Log("it fires on this event")
			}
		})
	}
}

// BenchmarkServerEvents measures how many events per second one core evaluates with all shipped rules.
func BenchmarkServerEvents(b *testing.B) {
	set, err := LoadShipped()
	require.NoError(b, err)
	var mix []sensors.Event
	for kind, n := range map[sensors.Kind]int{
		sensors.KindExec: 30, sensors.KindExit: 30, sensors.KindConnect: 25,
		sensors.KindFileOpen: 10, sensors.KindDNS: 5,
	} {
		for range n {
			mix = append(mix, webServerEvent(kind))
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		set.Evaluate(mix[i%len(mix)])
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
