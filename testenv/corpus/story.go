package corpus

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors"
)

// scenarioBuilder builds one recording.
type scenarioBuilder struct {
	random    *rand.Rand
	rec       recording.Recording
	elapsedMS int64 // the time of the last result
	pods      []*podInfo
	stormSize int
	faultMode faultMode
	// The workload of the incident.
	namespace, name, kind, image, digest string
	workloadUID                          string
	otherPods                            int // pods with the same image
	phase                                int
	attempts                             map[string]int
}

// faultMode is the fault of the actions.
type faultMode int

const (
	faultNone       faultMode = iota
	faultFirstApply           // the first apply fails
	faultEveryApply           // every apply fails
	faultEvidence             // evidence cannot be captured
	faultDrift                // another writer changes a contained target
)

// podInfo is one pod of the workload.
type podInfo struct {
	name, uid, container, node string
	hostNetwork                bool
}

func (p *podInfo) targetRef() string { return "pod:" + p.uid }
func (s *scenarioBuilder) describePod(p *podInfo) string {
	return fmt.Sprintf("pod %s/%s", s.namespace, p.name)
}

var (
	sampleNamespaces = []string{"shop", "payments", "web", "ci", "data", "internal-tools"}
	sampleNames      = []string{
		"checkout", "api", "runner", "search", "cart", "billing", "reports", "frontend",
		"ingest", "auth",
	}
	sampleWorkloadKinds = []string{"Deployment", "Deployment", "Deployment", "StatefulSet", "DaemonSet"}
	samplePeople        = []string{"alice", "bob", "carol", "dan"}
)

func newScenarioBuilder(random *rand.Rand, o Options, i int, kind string) *scenarioBuilder {
	s := &scenarioBuilder{random: random, stormSize: o.StormDetections, attempts: map[string]int{}}
	if s.stormSize == 0 {
		s.stormSize = 1000
	}
	s.namespace, s.name, s.kind = randomElement(random, sampleNamespaces), randomElement(random, sampleNames),
		randomElement(random, sampleWorkloadKinds)
	s.digest = "sha256:" + randomHex(random, 64)
	s.image = fmt.Sprintf("registry.example/%s/%s:%d.%d", s.namespace, s.name, 1+random.IntN(9), random.IntN(40))
	s.workloadUID = randomUID(random)
	s.otherPods = max(0, random.IntN(6)-2)
	s.phase = randomElement(random, []int{1, 2, 2, 2, 3, 3})
	s.rec = recording.Recording{Version: recording.FormatVersion, Anonymized: true, Incident: recording.Incident{
		ID: fmt.Sprintf("INC-%026s", strings.ToUpper(fmt.Sprintf("%x%06x%s", o.Seed&0xffff, i,
			randomHex(random, 14)))),
		GroupingKey: fmt.Sprintf("corpus/%s/%s/%s", s.namespace, s.kind, s.name), Cluster: "corpus", Scope: s.namespace,
		Phase:         s.phase,
		Opened:        openedAt(o.Seed, i).Add(time.Duration(random.IntN(3600)) * time.Second),
		IdleTimeoutMS: (15 * time.Minute).Milliseconds(), VerifyIntervalMS: 60_000, ConfigHash: "corpus:" + kind,
	}}
	s.rec.Incident.ID = strings.ReplaceAll(s.rec.Incident.ID, " ", "0")
	return s
}

func randomUID(r *rand.Rand) string {
	h := randomHex(r, 32)
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// addPod adds a pod to the workload.
func (s *scenarioBuilder) addPod() *podInfo {
	p := &podInfo{
		name: fmt.Sprintf("%s-%s-%s", s.name, randomHex(s.random, 9), randomHex(s.random, 5)),
		uid:  randomUID(s.random), container: randomHex(s.random, 64), node: fmt.Sprintf("node-%d", 1+s.random.IntN(12)),
	}
	s.pods = append(s.pods, p)
	return p
}

func (s *scenarioBuilder) currentMS() int64 {
	if n := len(s.rec.Detections); n > 0 {
		return s.rec.Detections[n-1].OffsetMS
	}
	return 0
}

// addDetection adds a detection. One with a time before the last detection gets the time of the last.
func (s *scenarioBuilder) addDetection(p *podInfo, name string, args []string, after int64) {
	r := shippedRules[name]
	after = max(after, s.currentMS())
	n := len(s.rec.Detections)
	batch := 1
	if n > 0 {
		batch = s.rec.Detections[n-1].BatchNumber
		// The gateway batches detections that arrive at about the same time.
		if after > s.rec.Detections[n-1].OffsetMS+100 || n%50 == 49 {
			batch++
		} else {
			after = s.rec.Detections[n-1].OffsetMS
		}
	}
	at := s.rec.Incident.Opened.Add(time.Duration(after) * time.Millisecond)
	pid := 1000 + uint32(s.random.IntN(60_000))
	e := sensors.Event{
		ID: fmt.Sprintf("%s-%s-%d", p.node, randomHex(s.random, 8), n), Kind: r.kind, Time: at, Node: p.node,
		Process: sensors.Process{
			PID: pid, PPID: pid - 7, StartNS: s.random.Uint64() >> 12, Name: truncate(args[0], 15),
			Exe: "/usr/bin/" + strings.TrimPrefix(args[0], "./"), Args: args, ExeInUpperLayer: name == "drift",
			ExeIsMemfd: name == "fileless",
			UID:        uint32(s.random.IntN(2) * 1000), ExeInode: s.random.Uint64() >> 40, ExeDevice: 65024,
			Ancestors: []sensors.Ancestor{
				{PID: pid - 7, Name: "sh", Exe: "/bin/sh"},
				{PID: 1, Name: s.name, Exe: "/app/" + s.name},
			},
		},
		Container: sensors.Container{
			ID: p.container, Name: "app", Runtime: "containerd", CgroupID: s.random.Uint64() >> 44,
			CgroupPath: "/kubepods/burstable/pod" + p.uid + "/" + p.container, Image: s.image, ImageDigest: s.digest,
			Pod: sensors.Pod{
				Namespace: s.namespace, Name: p.name, UID: p.uid,
				IP: fmt.Sprintf("192.0.2.%d", 1+s.random.IntN(254)), HostNetwork: p.hostNetwork, ServiceAccount: s.name,
				Labels: map[string]string{"app": s.name},
			},
			Workload: sensors.Workload{Kind: s.kind, Name: s.name},
		},
	}
	switch r.kind {
	case sensors.KindConnect:
		e.Network = sensors.Network{Protocol: "tcp", Family: "ipv4", Address: fmt.Sprintf("198.51.100.%d",
			1+s.random.IntN(254)), Port: randomElement(s.random, []uint16{80, 443, 3333, 4444, 14444})}
	case sensors.KindFileOpen:
		e.File = sensors.File{
			Path:           "/var/run/secrets/kubernetes.io/serviceaccount/token",
			SensitiveClass: "service-account-token",
		}
	default: // the process alone
	}
	s.rec.Detections = append(s.rec.Detections, recording.Detection{
		OffsetMS: after, BatchNumber: batch,
		Detection: sensors.Detection{
			ID: randomHex(s.random, 24), Rule: r.name, Title: r.title, Severity: r.severity, Confidence: r.confidence,
			Objective: r.objective, Technique: r.technique,
			Reasons: []string{r.title + "."}, Source: "stanch", Time: at, Detected: at.Add(time.Millisecond), Node: p.node,
			Event: e,
		},
	})
}

func truncate(s string, n int) string { return s[:min(n, len(s))] }

// addActionResult adds the result of an action.
func (s *scenarioBuilder) addActionResult(a recording.ActionResult) {
	key := string(a.Operation) + a.Action + a.Target
	s.attempts[key]++
	s.elapsedMS += 4 + s.random.Int64N(40)
	a.AttemptNumber, a.OffsetMS, a.DurationMS = s.attempts[key], s.elapsedMS, 1+s.random.Int64N(30)
	s.rec.ActionResults = append(s.rec.ActionResults, a)
}

// addStepOutcome adds the outcome of a step.
func (s *scenarioBuilder) addStepOutcome(playbook, step, action, target string, o playbooks.Outcome, reason string) {
	s.rec.Steps = append(s.rec.Steps, recording.StepResult{
		Playbook: playbook, Step: step, Action: action, Target: target,
		Outcome: o, Reason: reason, OffsetMS: s.elapsedMS,
	})
}

func mustMarshal(v any) json.RawMessage {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	return out
}

func newArtifact(r *rand.Rand, name string) recording.Artifact {
	h := randomHex(r, 32)
	sum := sha256.Sum256([]byte(h))
	return recording.Artifact{Name: name, SHA256: hex.EncodeToString(sum[:]), SizeBytes: 200 + r.Int64N(90_000)}
}

// closeIncident closes the incident after its last lease and its idle time.
func (s *scenarioBuilder) closeIncident() recording.Recording {
	last := max(s.elapsedMS, s.currentMS())
	for _, l := range s.rec.Leases {
		last = max(last, l.OffsetMS)
	}
	s.rec.Incident.ClosedAfterMS = last + s.rec.Incident.IdleTimeoutMS
	slices.SortStableFunc(s.rec.ActionResults,
		func(a, b recording.ActionResult) int { return int(a.OffsetMS - b.OffsetMS) })
	return s.rec
}
