package health_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/integrations"
	"stanch/sensors/probe"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/health"
)

const lostAfter, stoppedAfter, repeatInterval = time.Minute, 5 * time.Minute, 5 * time.Minute

func TestMonitorConditions(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": incidentWorkflow})
	// The tests move the monitor's clock, so that these limits do not depend on how busy the machine is.
	short := health.Timing{CheckInterval: 20 * time.Millisecond, LostAfter: lostAfter, StoppedAfter: stoppedAfter}

	t.Run("disconnected node", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		s := e.connectSensor(t, fakeSensorOptions{name: "gone-1"})
		e.waitUntilConnected(t, "gone-1")
		s.breakConnection()
		e.waitUntilGone(t, "gone-1")
		d := e.waitUntilLost(t, "gone-1")
		require.Equal(t, sensors.Subject{Kind: "Node", Name: "gone-1"}, d.Event.Subject)
		require.Equal(t, sensors.ObjectiveDefenseEvasion, d.Objective)
		require.Equal(t, "T1685", d.Technique)
		require.Contains(t, d.Reasons[0], "without announcing a shutdown")
		require.Less(t, d.Confidence, 0.8, "the confidence permits no automatic containment")
	})

	t.Run("regular shutdown of an unexpected node", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		s := e.connectSensor(t, fakeSensorOptions{name: "stopped-1"})
		other := e.connectSensor(t, fakeSensorOptions{name: "gone-2"})
		e.waitUntilConnected(t, "stopped-1")
		e.waitUntilConnected(t, "gone-2")
		s.shutDown()
		e.waitUntilGone(t, "stopped-1")
		e.advance(2 * stoppedAfter)
		other.breakConnection()
		e.waitUntilGone(t, "gone-2")
		e.waitUntilLost(t, "gone-2")
		e.advance(2 * stoppedAfter)
		e.waitForRepeat(t, "gone-2")
		require.Empty(t, incidentDetections(t, server, "Node/stopped-1"))
	})

	t.Run("repeat interval", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		node := e.connectSensor(t, fakeSensorOptions{name: "gone-3"})
		e.waitUntilConnected(t, "gone-3")
		node.breakConnection()
		e.waitUntilGone(t, "gone-3")
		e.waitUntilLost(t, "gone-3")
		e.waitForRepeat(t, "gone-3")
		e.waitForRepeat(t, "gone-3")
		ids := map[string]bool{}
		for _, d := range incidentDetections(t, server, "Node/gone-3") {
			ids[d.ID] = true
		}
		require.Len(t, ids, 3)
	})

	t.Run("refused node", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{
			timing: short,
			limits: config.NodeLimits{RefusedNodes: []string{"taken-over"}},
		})
		said, write := io.Pipe()
		t.Cleanup(func() { _ = write.Close() })
		e.connectSensor(t, fakeSensorOptions{name: "taken-over", log: write})
		e.connectSensor(t, fakeSensorOptions{name: "heard-1"})
		lines := bufio.NewScanner(said)
		for lines.Scan() && !strings.Contains(lines.Text(), "is not allowed") {
			t.Log(lines.Text())
		}
		go func() { _, _ = io.Copy(io.Discard, said) }()
		require.Contains(t, lines.Text(), "taken-over")
		e.waitUntilConnected(t, "heard-1")
		require.Nil(t, e.nodeServer.ConnectedNodes()["taken-over"])
	})

	t.Run("clock skew", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		e.connectSensor(t, fakeSensorOptions{
			name: "late-1",
			now:  func() time.Time { return time.Now().Add(-90 * time.Second) },
		})
		e.connectSensor(t, fakeSensorOptions{name: "right-1"})
		d := waitForDetection(t, server, "Node/late-1", "clock-skew")
		require.Regexp(t, `off by 1m30s: its clock is behind`, d.Reasons[0])
		e.waitUntilConnected(t, "right-1")
		require.Eventually(t, func() bool {
			var said struct {
				Gateway struct {
					Clock struct {
						Skew time.Duration `json:"offset_ns"`
					} `json:"clock_skew"`
				} `json:"gateway"`
			}
			require.NoError(t, json.Unmarshal(e.nodeServer.ConnectedNodes()["right-1"], &said))
			return said.Gateway.Clock.Skew != 0 && said.Gateway.Clock.Skew.Abs() < 2*time.Second
		}, 10*time.Second, 10*time.Millisecond)
		require.Empty(t, incidentDetections(t, server, "Node/right-1"))
	})

	t.Run("node above its rate", func(t *testing.T) {
		timing := short
		timing.OverRateAfter = 300 * time.Millisecond // it lasts for seconds
		e := newGatewayFixture(t, server, gatewayFixtureOptions{
			timing: timing,
			limits: config.NodeLimits{DetectionsPerSecond: 150, DetectionBurst: 200},
		})
		noisy, idle := e.connectSensor(t, fakeSensorOptions{name: "noisy-1"}),
			e.connectSensor(t, fakeSensorOptions{name: "idle-1"})
		const n = 900
		for i := range n {
			require.NoError(t, noisy.spool.Add(newStormDetection("noisy-1", i)))
		}
		began := time.Now()
		require.NoError(t, idle.spool.Add(newStormDetection("idle-1", 0)))
		require.Eventually(t, func() bool { return idle.spool.Len() == 0 }, 10*time.Second, time.Millisecond)
		require.Positive(t, noisy.spool.Len(), "the other node was served while the noisy one waited")
		require.Eventually(t, func() bool { return noisy.spool.Len() == 0 }, 60*time.Second, 5*time.Millisecond)
		require.Greater(t, time.Since(began), 3*time.Second, "900 at 150 per second, 200 of them as a burst")
		require.Zero(t, noisy.spool.Dropped())
		arrived := uniqueDetectionIDs(incidentDetections(t, server, "Container/noisy-1-c@noisy-1"))
		require.Len(t, arrived, n)
		require.ElementsMatch(t, stormDetectionIDs("noisy-1", n), arrived)
		require.Contains(t, waitForDetection(t, server, "Node/noisy-1", "node-rate-limited").Reasons[0], "nodes: rate")
		require.Empty(t, incidentDetections(t, server, "Node/idle-1"))
	})

	t.Run("rate of health reports", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		heard := &healthEventCounter{Monitor: e.nodeServer.Monitor}
		e.nodeServer.Monitor = heard
		var said atomic.Int64
		began := time.Now()
		e.connectSensor(t, fakeSensorOptions{name: "talker-1", healthInterval: time.Millisecond, status: func() any {
			return agent.StatusReport{Health: agent.Health{Node: "talker-1"}, Spooled: int(said.Add(1))}
		}})
		require.Eventually(t, func() bool { return said.Load() >= 500 }, 30*time.Second, time.Millisecond)
		require.LessOrEqual(t, float64(heard.healthEvents.Load()), 12+time.Since(began).Seconds())
		require.GreaterOrEqual(t, heard.healthEvents.Load(), int64(10))
	})

	t.Run("large detections", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		s := e.connectSensor(t, fakeSensorOptions{name: "large-1"})
		e.waitUntilConnected(t, "large-1")
		d := newStormDetection("large-1", 0)
		d.Event.Container.Pod.Annotations = map[string]string{"a": strings.Repeat("<", 250<<10)}
		require.NoError(t, s.spool.Add(d))
		require.NoError(t, s.spool.Add(newStormDetection("large-1", 1)))
		require.Eventually(t, func() bool { return s.spool.Len() == 0 }, 30*time.Second, 5*time.Millisecond)
		require.ElementsMatch(t, stormDetectionIDs("large-1", 2),
			uniqueDetectionIDs(incidentDetections(t, server, "Container/large-1-c@large-1")))
		var many []sensors.Detection
		for i := range 30 { // of several nodes, more than Temporal accepts at once
			d := newStormDetection("large-2", i)
			d.Event.Process.Args = append(d.Event.Process.Args, strings.Repeat("x", 200<<10))
			many = append(many, d)
		}
		require.NoError(t, e.ingester.Accept(t.Context(), many))
	})

	t.Run("certificate renewal", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		s := e.connectSensor(t, fakeSensorOptions{name: "aging-1", certificateHalfExpired: true})
		first := s.NodeCertificate.Certificate()
		require.Eventually(t, func() bool { return s.NodeCertificate.Certificate() != first }, 10*time.Second,
			5*time.Millisecond)
		second := s.NodeCertificate.Certificate()
		require.Equal(t, "aging-1", second.Subject.CommonName)
		require.Equal(t, []string{authority.RoleNode}, second.Subject.OrganizationalUnit)
		require.NotEqual(t, first.PublicKey, second.PublicKey)
	})

	t.Run("expiring certificate", func(t *testing.T) {
		timing := short
		timing.CertificateWarning = 100 * 24 * time.Hour
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: timing})
		e.connectSensor(t, fakeSensorOptions{name: "expiring-1"})
		require.Contains(t, waitForDetection(t, server, "Node/expiring-1", "certificate-expiring").Reasons[0],
			"was not renewed")
	})

	t.Run("blind sensor and detached hooks", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		var off, failing atomic.Bool
		status := func() any {
			r := agent.StatusReport{Health: agent.Health{
				Node:      "blind-1",
				Heartbeat: agent.HeartbeatStatus{Failing: failing.Load(), ConsecutiveMisses: 3},
			}}
			r.ProbeStatus.LoadedAt = time.Now().Truncate(time.Hour)
			r.ProbeStatus.Hooks = []probe.HookStatus{
				{Hook: "exec", Enabled: !off.Load(), Reason: "it was taken away"},
				{Hook: "dns", Reason: "this kernel has none"},
			}
			return r
		}
		e.connectSensor(t, fakeSensorOptions{name: "blind-1", status: status})
		e.waitUntilConnected(t, "blind-1")
		require.Empty(t, incidentDetections(t, server, "Node/blind-1"), "a hook that was never attached is not reported")
		off.Store(true)
		require.Contains(t, waitForDetection(t, server, "Node/blind-1", "heartbeat-failing").Reasons[0],
			"The hook exec on node blind-1 was attached and is now detached: it was taken away.")
		e.connectSensor(t, fakeSensorOptions{name: "blind-2", status: func() any {
			return agent.StatusReport{Health: agent.Health{Node: "blind-2", Heartbeat: agent.HeartbeatStatus{
				Failing:           true,
				ConsecutiveMisses: 3, FailureReason: "nothing came",
			}}}
		}})
		require.Contains(t, waitForDetection(t, server, "Node/blind-2", "heartbeat-failing").Reasons[1], "nothing came")
	})

	t.Run("spoofed cgroups", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		e.connectSensor(t, fakeSensorOptions{name: "decoy-1", status: func() any {
			return agent.StatusReport{Health: agent.Health{Node: "decoy-1", SpoofedCgroups: []agent.SpoofedCgroup{
				{
					TargetID: "container:c0ffee", GenuinePaths: []string{"/docker/c0ffee"}, SpoofedPaths: []string{"/a/docker/c0ffee"},
					FirstSeen: time.Now(),
				},
				{TargetID: "pod:uid-1", SpoofedPaths: []string{"/a/poduid-1", "/b/poduid-1"}, FirstSeen: time.Now()},
			}}}
		}})
		d := waitForDetection(t, server, "Node/decoy-1", "spoofed-cgroup")
		require.Contains(t, d.Reasons[0], "/a/docker/c0ffee")
		require.Contains(t, d.Reasons[1], "not contained")
	})

	t.Run("dropped events", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		began := time.Now().Add(-time.Hour).UTC()
		const podUID = "3f1c2a4e_9b7d_4c1a_8e21_5d0f6a7b8c9d"
		podCgroup := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + podUID + ".slice/cri-1.scope"
		var lost atomic.Uint64
		status := func() any {
			r := agent.StatusReport{Health: agent.Health{Node: "lossy-1"}}
			r.ProbeStatus.LoadedAt, r.ProbeStatus.Drops = began, map[string]uint64{"alerts ring full": lost.Load()}
			r.Drops = agent.DropStats{
				CountingSince: began, KernelEvents: lost.Load(), EpisodeStart: began,
				LastDropAt: time.Now(), TopSources: []agent.DropSource{
					{Container: sensors.Container{ID: "f100d", CgroupPath: "/f100d"}, Cgroup: "/f100d", Dropped: lost.Load()},
					{Cgroup: podCgroup, Dropped: lost.Load()},
				},
			}
			return r
		}
		e.connectSensor(t, fakeSensorOptions{name: "lossy-1", status: status})
		e.waitUntilConnected(t, "lossy-1")
		require.Empty(t, incidentDetections(t, server, "Node/lossy-1"))
		lost.Store(1000)
		d := waitForDetection(t, server, "Node/lossy-1", "events-dropped")
		require.Equal(t, 1000, d.Event.Count)
		require.Contains(t, d.Reasons[0], "alerts ring full")
		require.Contains(t, fmt.Sprint(d.Reasons), "container f100d (1000)")
		require.Contains(t, fmt.Sprint(d.Reasons), podUID, "the cgroup's path names the pod")
		require.Contains(t, fmt.Sprint(d.Reasons), "Falco internal: syscall event drop")
		d = waitForDetection(t, server, "Container/f100d@lossy-1", "event-flood")
		require.Equal(t, "f100d", d.Event.Container.ID)
		require.Equal(t, "lossy-1", d.Node)
	})

	t.Run("node connected to another gateway", func(t *testing.T) {
		pki, err := authority.OpenOrCreatePKI(t.TempDir())
		require.NoError(t, err)
		auth, err := authority.OpenOrCreate(t.TempDir())
		require.NoError(t, err)
		one := newGatewayFixture(t, server, gatewayFixtureOptions{
			timing: short, pki: pki, authority: auth,
			pollNodeQueues: true, name: "one",
		})
		two := newGatewayFixture(t, server, gatewayFixtureOptions{
			timing: short, pki: pki, authority: auth,
			pollNodeQueues: true, name: "two",
		})
		s, other := one.connectSensor(t, fakeSensorOptions{name: "moved-1"}),
			one.connectSensor(t, fakeSensorOptions{name: "gone-4"})
		one.waitUntilConnected(t, "moved-1")
		one.waitUntilConnected(t, "gone-4")
		s.breakConnection()
		two.connectSensor(t, fakeSensorOptions{name: "moved-1"})
		two.waitUntilConnected(t, "moved-1")
		one.waitUntilGone(t, "moved-1")
		one.advance(2 * lostAfter)
		other.breakConnection()
		one.waitUntilGone(t, "gone-4")
		one.waitUntilLost(t, "gone-4")
		one.waitForRepeat(t, "gone-4")
		require.Empty(t, incidentDetections(t, server, "Node/moved-1"))
	})

	t.Run("one detection of two gateways", func(t *testing.T) {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "never-1"},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
				Type:   corev1.NodeReady,
				Status: corev1.ConditionTrue,
			}}},
		}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "stanch-system", Name: "s",
				Labels: map[string]string{"app": "sensor"},
			}, Spec: corev1.PodSpec{NodeName: "never-1"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning},
		}
		kube := fake.NewClientset(node, pod)
		for _, name := range []string{"one", "two"} {
			e := newGatewayFixture(t, server, gatewayFixtureOptions{
				timing: short, name: name,
				cluster: &health.KubernetesCluster{KubeClient: kube, Namespace: "stanch-system", Selector: "app=sensor"},
			})
			// To the middle of an interval: reports of the same interval have the same id.
			interval := e.now().Add(lostAfter).Truncate(repeatInterval).Add(repeatInterval)
			e.advance(interval.Add(repeatInterval / 2).Sub(e.now()))
		}
		require.Eventually(t, func() bool { return len(incidentDetections(t, server, "Node/never-1")) == 2 }, 20*time.Second,
			20*time.Millisecond)
		all := incidentDetections(t, server, "Node/never-1")
		require.Equal(t, all[0].ID, all[1].ID)
		require.Contains(t, all[0].Reasons[0], "has not connected")
		require.Contains(t, all[0].Reasons[1], "ready; its sensor's pod: Running")
	})

	t.Run("dropped events of another source", func(t *testing.T) {
		e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: short})
		e.OnSourceHealth(context.Background(), integrations.SensorHealth{
			Source: "falco-1", Node: "n", Dropped: 7,
			Message: "Syscall event drop",
		})
		require.Contains(t, waitForDetection(t, server, "Source/falco-1", "source-events-dropped").Reasons[0],
			"lost 7 events on node n")
		e.OnSourceHealth(context.Background(), integrations.SensorHealth{
			Source: "api-1", UndecodableEvents: 3,
			Message: "it nests deeper",
		})
		require.Equal(t, []string{"3 events of the source api-1 could not be decoded.", "The error was: it nests deeper"},
			waitForDetection(t, server, "Source/api-1", "source-events-unreadable").Reasons[:2])
	})
}
