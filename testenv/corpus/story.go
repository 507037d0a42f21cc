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

// story is one recording as it comes about.
type story struct {
	random  *rand.Rand
	rec     recording.Recording
	at      int64 // when the last answer was given
	pods    []*pod
	storms  int
	trouble trouble
	// The workload that it is about.
	namespace, name, kind, image, digest string
	workloadUID                          string
	others                               int // pods with the same image
	phase                                int
	attempts                             map[string]int
}

// trouble is what goes wrong with actions.
type trouble int

const (
	troubleNone     trouble = iota
	troubleOnce             // the first apply fails
	troubleAlways           // every apply fails
	troubleEvidence         // evidence cannot be taken
	troubleDrift            // somebody else changes what is held
)

// pod is one pod of the workload.
type pod struct {
	name, uid, container, node string
	hostNetwork                bool
}

func (p *pod) target() string { return "pod:" + p.uid }
func (s *story) said(p *pod) string {
	return fmt.Sprintf("pod %s/%s", s.namespace, p.name)
}

var (
	namespaces = []string{"shop", "payments", "web", "ci", "data", "internal-tools"}
	names      = []string{"checkout", "api", "runner", "search", "cart", "billing", "reports", "frontend", "ingest", "auth"}
	kinds      = []string{"Deployment", "Deployment", "Deployment", "StatefulSet", "DaemonSet"}
	people     = []string{"alice", "bob", "carol", "dan"}
)

func newStory(random *rand.Rand, o Options, i int, kind string) *story {
	s := &story{random: random, storms: o.Storm, attempts: map[string]int{}}
	if s.storms == 0 {
		s.storms = 1000
	}
	s.namespace, s.name, s.kind = pick(random, namespaces), pick(random, names), pick(random, kinds)
	s.digest = "sha256:" + hexOf(random, 64)
	s.image = fmt.Sprintf("registry.example/%s/%s:%d.%d", s.namespace, s.name, 1+random.IntN(9), random.IntN(40))
	s.workloadUID = uid(random)
	s.others = max(0, random.IntN(6)-2)
	s.phase = pick(random, []int{1, 2, 2, 2, 3, 3})
	s.rec = recording.Recording{Version: recording.FormatVersion, Anonymized: true, Incident: recording.Incident{
		ID:          fmt.Sprintf("INC-%026s", strings.ToUpper(fmt.Sprintf("%x%06x%s", o.Seed&0xffff, i, hexOf(random, 14)))),
		GroupingKey: fmt.Sprintf("corpus/%s/%s/%s", s.namespace, s.kind, s.name), Cluster: "corpus", Scope: s.namespace, Phase: s.phase,
		Opened: opened(o.Seed, i).Add(time.Duration(random.IntN(3600)) * time.Second), IdleTimeoutMS: (15 * time.Minute).Milliseconds(), VerifyIntervalMS: 60_000, ConfigHash: "corpus:" + kind,
	}}
	s.rec.Incident.ID = strings.ReplaceAll(s.rec.Incident.ID, " ", "0")
	return s
}

func uid(r *rand.Rand) string {
	h := hexOf(r, 32)
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// pod adds a pod to the workload.
func (s *story) pod() *pod {
	p := &pod{name: fmt.Sprintf("%s-%s-%s", s.name, hexOf(s.random, 9), hexOf(s.random, 5)), uid: uid(s.random), container: hexOf(s.random, 64), node: fmt.Sprintf("node-%d", 1+s.random.IntN(12))}
	s.pods = append(s.pods, p)
	return p
}

func (s *story) now() int64 {
	if n := len(s.rec.Detections); n > 0 {
		return s.rec.Detections[n-1].OffsetMS
	}
	return 0
}

// detect adds a detection; one that would come before the last comes with it.
func (s *story) detect(p *pod, name string, args []string, after int64) {
	r := rules[name]
	after = max(after, s.now())
	n := len(s.rec.Detections)
	batch := 1
	if n > 0 {
		batch = s.rec.Detections[n-1].BatchNumber
		// The gateway sends what comes within a moment together.
		if after > s.rec.Detections[n-1].OffsetMS+100 || n%50 == 49 {
			batch++
		} else {
			after = s.rec.Detections[n-1].OffsetMS
		}
	}
	at := s.rec.Incident.Opened.Add(time.Duration(after) * time.Millisecond)
	pid := 1000 + uint32(s.random.IntN(60_000))
	e := sensors.Event{
		ID: fmt.Sprintf("%s-%s-%d", p.node, hexOf(s.random, 8), n), Kind: r.kind, Time: at, Node: p.node,
		Process: sensors.Process{
			PID: pid, PPID: pid - 7, StartNS: s.random.Uint64() >> 12, Name: clip(args[0], 15), Exe: "/usr/bin/" + strings.TrimPrefix(args[0], "./"), Args: args, ExeInUpperLayer: name == "drift", ExeIsMemfd: name == "fileless",
			UID: uint32(s.random.IntN(2) * 1000), ExeInode: s.random.Uint64() >> 40, ExeDevice: 65024,
			Ancestors: []sensors.Ancestor{{PID: pid - 7, Name: "sh", Exe: "/bin/sh"}, {PID: 1, Name: s.name, Exe: "/app/" + s.name}},
		},
		Container: sensors.Container{
			ID: p.container, Name: "app", Runtime: "containerd", CgroupID: s.random.Uint64() >> 44, CgroupPath: "/kubepods/burstable/pod" + p.uid + "/" + p.container, Image: s.image, ImageDigest: s.digest,
			Pod:      sensors.Pod{Namespace: s.namespace, Name: p.name, UID: p.uid, IP: fmt.Sprintf("192.0.2.%d", 1+s.random.IntN(254)), HostNetwork: p.hostNetwork, ServiceAccount: s.name, Labels: map[string]string{"app": s.name}},
			Workload: sensors.Workload{Kind: s.kind, Name: s.name},
		},
	}
	switch r.kind {
	case sensors.KindConnect:
		e.Network = sensors.Network{Protocol: "tcp", Family: "ipv4", Address: fmt.Sprintf("198.51.100.%d", 1+s.random.IntN(254)), Port: pick(s.random, []uint16{80, 443, 3333, 4444, 14444})}
	case sensors.KindFileOpen:
		e.File = sensors.File{Path: "/var/run/secrets/kubernetes.io/serviceaccount/token", SensitiveClass: "service-account-token"}
	default: // the process alone
	}
	s.rec.Detections = append(s.rec.Detections, recording.Detection{OffsetMS: after, BatchNumber: batch, Detection: sensors.Detection{
		ID: hexOf(s.random, 24), Rule: r.name, Title: r.title, Severity: r.severity, Confidence: r.confidence, Objective: r.objective, Technique: r.technique,
		Reasons: []string{r.title + "."}, Source: "stanch", Time: at, Detected: at.Add(time.Millisecond), Node: p.node, Event: e,
	}})
}

func clip(s string, n int) string { return s[:min(n, len(s))] }

// answer adds what an action answered.
func (s *story) answer(a recording.ActionResult) {
	key := string(a.Operation) + a.Action + a.Target
	s.attempts[key]++
	s.at += 4 + s.random.Int64N(40)
	a.AttemptNumber, a.OffsetMS, a.DurationMS = s.attempts[key], s.at, 1+s.random.Int64N(30)
	s.rec.ActionResults = append(s.rec.ActionResults, a)
}

// step adds what became of a step.
func (s *story) step(playbook, step, action, target string, o playbooks.Outcome, reason string) {
	s.rec.Steps = append(s.rec.Steps, recording.StepResult{Playbook: playbook, Step: step, Action: action, Target: target, Outcome: o, Reason: reason, OffsetMS: s.at})
}

func raw(v any) json.RawMessage {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	return out
}

func piece(r *rand.Rand, name string) recording.Artifact {
	h := hexOf(r, 32)
	sum := sha256.Sum256([]byte(h))
	return recording.Artifact{Name: name, SHA256: hex.EncodeToString(sum[:]), SizeBytes: 200 + r.Int64N(90_000)}
}

// finish closes the incident after its last lease and its quiet window.
func (s *story) finish() recording.Recording {
	last := max(s.at, s.now())
	for _, l := range s.rec.Leases {
		last = max(last, l.OffsetMS)
	}
	s.rec.Incident.ClosedAfterMS = last + s.rec.Incident.IdleTimeoutMS
	slices.SortStableFunc(s.rec.ActionResults, func(a, b recording.ActionResult) int { return int(a.OffsetMS - b.OffsetMS) })
	return s.rec
}
