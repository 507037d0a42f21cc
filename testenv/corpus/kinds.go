package corpus

import "stanch/sensors"

// IncidentKind is a kind of incident and its share per thousand.
type IncidentKind struct {
	Name     string
	PerMille int
	Doc      string
	build    func(*scenarioBuilder)
}

// Kinds are the generated kinds. Most incidents of a year are people at work.
var Kinds = []IncidentKind{
	{
		"debug-shell", 200, "a developer has a terminal in a pod; low confidence, someone is asked or nothing happens",
		(*scenarioBuilder).buildDebugShell,
	},
	{
		"install", 120, "a developer installs a package by kubectl exec: drift, and the registry is contacted",
		(*scenarioBuilder).buildPackageInstall,
	},
	{
		"backup", 60, "a backup job reads its token and a credentials file as it does every night",
		(*scenarioBuilder).buildBackup,
	},
	{"miner", 130, "a miner is started in one pod", (*scenarioBuilder).buildMiner},
	{"miner-pods", 60, "a miner in several pods of one workload", (*scenarioBuilder).buildMinerInSeveralPods},
	{"reverse-shell", 90, "a shell whose input and output are a connection", (*scenarioBuilder).buildReverseShell},
	{"credentials", 80, "the metadata service is contacted and the token read", (*scenarioBuilder).buildCredentialTheft},
	{"chain", 70, "several tactics in one window: shell, download, token, egress", (*scenarioBuilder).buildAttackChain},
	{"repeated", 60, "one detection again and again, over an hour", (*scenarioBuilder).buildRepeatedDetections},
	{"storm", 4, "one rule a thousand times within seconds", (*scenarioBuilder).buildDetectionStorm},
	{
		"refused", 40, "the pod uses its host's network: isolation is refused, freezing is tried",
		(*scenarioBuilder).buildRefusedAction,
	},
	{"failed", 30, "the node does not answer; some attempts fail, or all", (*scenarioBuilder).buildFailedAction},
	{
		"missing", 36, "the recorded run was another playbook's: answers are missing",
		(*scenarioBuilder).buildMissingEvidence,
	},
	{"drifted", 20, "someone else changes what is held, while it is held", (*scenarioBuilder).buildDrift},
}

func findKind(name string) (IncidentKind, bool) {
	for _, k := range Kinds {
		if k.Name == name {
			return k, true
		}
	}
	return IncidentKind{}, false
}

// ruleInfo is a detection rule as in the shipped pack.
type ruleInfo struct {
	name, title string
	severity    sensors.Severity
	confidence  float64
	objective   sensors.Objective
	technique   string
	kind        sensors.Kind
}

// shippedRules are the shipped rules that the corpus uses.
var shippedRules = map[string]ruleInfo{
	"terminal-shell": {
		"terminal-shell", "Shell with a terminal in a container", sensors.SeverityMedium, 0.6,
		sensors.ObjectiveExecution, "T1059.004", sensors.KindExec,
	},
	"reverse-shell": {
		"reverse-shell", "Shell whose input and output are a network connection",
		sensors.SeverityCritical, 0.95, sensors.ObjectiveCommandControl, "T1059.004", sensors.KindExec,
	},
	"miner-process": {
		"miner-process", "Crypto-miner started", sensors.SeverityHigh, 0.9,
		sensors.ObjectiveCryptoMining, "T1496.001", sensors.KindExec,
	},
	"miner-pool": {
		"miner-pool", "Connection to a mining pool's port", sensors.SeverityMedium, 0.55,
		sensors.ObjectiveCryptoMining, "T1496.001", sensors.KindConnect,
	},
	"metadata-access": {
		"metadata-access", "Cloud metadata service contacted", sensors.SeverityMedium, 0.5,
		sensors.ObjectiveCredentialAccess, "T1552.005", sensors.KindConnect,
	},
	"token-read": {
		"token-read", "Service account token read by a shell, a tool or a foreign program",
		sensors.SeverityHigh, 0.7, sensors.ObjectiveCredentialAccess, "T1528", sensors.KindFileOpen,
	},
	"sensitive-file": {
		"sensitive-file", "Password hashes or cloud credentials read", sensors.SeverityMedium, 0.6,
		sensors.ObjectiveCredentialAccess, "T1552.001", sensors.KindFileOpen,
	},
	"drift": {
		"drift", "Program executed that was not in the image", sensors.SeverityHigh, 0.7,
		sensors.ObjectivePersistence, "T1105", sensors.KindExec,
	},
	"fileless": {
		"fileless", "Program executed from memory or after its file was deleted", sensors.SeverityHigh,
		0.85, sensors.ObjectiveDefenseEvasion, "T1620", sensors.KindExec,
	},
	"undeclared-egress": {
		"undeclared-egress", "Connection that the workload did not declare", sensors.SeverityMedium,
		0.65, sensors.ObjectiveExfiltration, "T1041", sensors.KindConnect,
	},
}

// the behavior of each kind, from the first detection to the outcome

func (s *scenarioBuilder) buildDebugShell() {
	s.addDetection(s.addPod(), "terminal-shell", randomElement(s.random, [][]string{
		{"bash"},
		{"sh", "-il"},
		{"ash"},
		{"/bin/bash", "--login"},
	}), 0)
	s.respondToShell(s.pods[0])
}

func (s *scenarioBuilder) buildPackageInstall() {
	p := s.addPod()
	s.addDetection(p, "terminal-shell", []string{"sh"}, 0)
	s.addDetection(p, "drift", randomElement(s.random, [][]string{
		{"apk", "add", "curl"},
		{"pip", "install", "debugpy"},
		{"apt-get", "install", "-y", "strace"},
	}), 4_000+s.random.Int64N(60_000))
	s.addDetection(p, "undeclared-egress", []string{"apk"}, 5_000+s.random.Int64N(60_000))
	s.respondToShell(p)
}

func (s *scenarioBuilder) buildBackup() {
	p := s.addPod()
	s.addDetection(p, "sensitive-file", []string{"restic", "backup", "/var/lib"}, 0)
	if s.random.IntN(2) == 0 {
		s.addDetection(p, "token-read", []string{"python3", "/app/backup.py"}, 700)
	}
	s.respondToStolenCredentials(p)
}

var minerCommands = [][]string{
	{"xmrig", "--url", "stratum+tcp://198.51.100.7:3333", "--donate-level", "1"},
	{"kdevtmpfsi"},
	{"./x", "-o", "pool.example.net:14444", "-u", "47x"},
}

func (s *scenarioBuilder) buildMiner() {
	p := s.addPod()
	s.addDetection(p, "miner-process", randomElement(s.random, minerCommands), 0)
	s.addDetection(p, "miner-pool", []string{"xmrig"}, 60+s.random.Int64N(900))
	s.respondToMining(p)
}

func (s *scenarioBuilder) buildMinerInSeveralPods() {
	for i := range 2 + s.random.IntN(5) {
		p := s.addPod()
		s.addDetection(p, "miner-process", randomElement(s.random, minerCommands), int64(i)*(200+s.random.Int64N(20_000)))
		if s.random.IntN(3) > 0 {
			s.addDetection(p, "miner-pool", []string{"xmrig"}, s.currentMS()+100)
		}
	}
	s.respondToMining(s.pods...)
}

func (s *scenarioBuilder) buildReverseShell() {
	p := s.addPod()
	s.addDetection(p, "reverse-shell", randomElement(s.random, [][]string{
		{"bash", "-i"},
		{"sh"},
		{"python3", "-c", "import pty;pty.spawn('sh')"},
	}), 0)
	if s.random.IntN(3) == 0 {
		s.addDetection(p, "undeclared-egress", []string{"bash"}, 30)
	}
	s.respondByIsolating(p)
}

func (s *scenarioBuilder) buildCredentialTheft() {
	p := s.addPod()
	s.addDetection(p, "metadata-access", []string{"curl", "-s", "http://169.254.169.254/latest/meta-data/"}, 0)
	s.addDetection(p, "token-read", []string{"cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"},
		800+s.random.Int64N(30_000))
	s.respondToStolenCredentials(p)
}

func (s *scenarioBuilder) buildAttackChain() {
	p := s.addPod()
	s.addDetection(p, "terminal-shell", []string{"sh"}, 0)
	s.addDetection(p, "drift", []string{"/tmp/.x"}, 9_000+s.random.Int64N(20_000))
	s.addDetection(p, "fileless", []string{"memfd:", "-d"}, s.currentMS()+2_000)
	s.addDetection(p, "token-read", []string{"/tmp/.x", "--token"}, s.currentMS()+3_000+s.random.Int64N(60_000))
	s.addDetection(p, "undeclared-egress", []string{"/tmp/.x"}, s.currentMS()+400)
	if s.random.IntN(2) == 0 {
		s.addDetection(p, "miner-process", minerCommands[0], s.currentMS()+20_000)
		s.respondToMining(p)
		return
	}
	s.respondToShell(p)
}

func (s *scenarioBuilder) buildRepeatedDetections() {
	p := s.addPod()
	name := randomElement(s.random, []string{"metadata-access", "terminal-shell", "sensitive-file"})
	for i := range 5 + s.random.IntN(20) {
		s.addDetection(p, name, []string{"agent"}, int64(i)*(20_000+s.random.Int64N(130_000)))
	}
	if name == "terminal-shell" {
		s.respondToShell(p)
	} else {
		s.respondToStolenCredentials(p)
	}
}

func (s *scenarioBuilder) buildDetectionStorm() {
	p := s.addPod()
	for i := range s.stormSize {
		s.addDetection(p, "miner-pool", []string{"xmrig", "-o", "198.51.100.7:3333"}, int64(i)*8)
	}
	s.addDetection(p, "miner-process", minerCommands[0], s.currentMS())
	s.respondToMining(p)
}

func (s *scenarioBuilder) buildRefusedAction() {
	p := s.addPod()
	p.hostNetwork = true
	s.addDetection(p, "miner-process", randomElement(s.random, minerCommands), 0)
	s.respondToMining(p)
}

func (s *scenarioBuilder) buildFailedAction() {
	s.faultMode = randomElement(s.random, []faultMode{faultFirstApply, faultEveryApply, faultEvidence})
	p := s.addPod()
	s.addDetection(p, "reverse-shell", []string{"bash", "-i"}, 0)
	s.respondByIsolating(p)
}

func (s *scenarioBuilder) buildMissingEvidence() {
	p := s.addPod()
	s.addDetection(p, "reverse-shell", []string{"nc", "-e", "sh"}, 0)
	// It ran before the playbook existed: only the context was looked up.
	s.addWorkloadResult(p)
}

func (s *scenarioBuilder) buildDrift() {
	s.faultMode = faultDrift
	p := s.addPod()
	s.addDetection(p, "miner-process", randomElement(s.random, minerCommands), 0)
	s.respondToMining(p)
}
