package corpus

import "stanch/sensors"

// Kind is one kind of incident, and how many of a thousand are of it.
type Kind struct {
	Name     string
	PerMille int
	Doc      string
	tell     func(*story)
}

// Kinds are the kinds that are made. Most incidents of a year are people at work.
var Kinds = []Kind{
	{"debug-shell", 200, "a developer has a terminal in a pod; low confidence, somebody is asked or nothing happens", (*story).debugShell},
	{"install", 120, "a developer installs a package by kubectl exec: drift, and the registry is contacted", (*story).install},
	{"backup", 60, "a backup job reads its token and a credentials file as it does every night", (*story).backup},
	{"miner", 130, "a miner is started in one pod", (*story).miner},
	{"miner-pods", 60, "a miner in several pods of one workload", (*story).minerPods},
	{"reverse-shell", 90, "a shell whose input and output are a connection", (*story).reverseShell},
	{"credentials", 80, "the metadata service is contacted and the token read", (*story).credentials},
	{"chain", 70, "several tactics in one window: shell, download, token, egress", (*story).chain},
	{"repeated", 60, "one detection again and again, over an hour", (*story).repeated},
	{"storm", 4, "one rule a thousand times within seconds", (*story).storm},
	{"refused", 40, "the pod uses its host's network: isolation is refused, freezing is tried", (*story).refused},
	{"failed", 30, "the node does not answer; some attempts fail, or all", (*story).failed},
	{"missing", 36, "the recorded run was another playbook's: answers are missing", (*story).missing},
	{"drifted", 20, "somebody else changes what is held, while it is held", (*story).drifted},
}

func kindOf(name string) (Kind, bool) {
	for _, k := range Kinds {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// rule is a detection rule as the shipped pack has it.
type rule struct {
	name, title string
	severity    sensors.Severity
	confidence  float64
	objective   sensors.Objective
	technique   string
	kind        sensors.Kind
}

// rules are the shipped ones.
var rules = map[string]rule{
	"terminal-shell":    {"terminal-shell", "Shell with a terminal in a container", sensors.SeverityMedium, 0.6, sensors.ObjectiveExecution, "T1059.004", sensors.KindExec},
	"reverse-shell":     {"reverse-shell", "Shell whose input and output are a network connection", sensors.SeverityCritical, 0.95, sensors.ObjectiveCommandControl, "T1059.004", sensors.KindExec},
	"miner-process":     {"miner-process", "Crypto-miner started", sensors.SeverityHigh, 0.9, sensors.ObjectiveCryptoMining, "T1496.001", sensors.KindExec},
	"miner-pool":        {"miner-pool", "Connection to a mining pool's port", sensors.SeverityMedium, 0.55, sensors.ObjectiveCryptoMining, "T1496.001", sensors.KindConnect},
	"metadata-access":   {"metadata-access", "Cloud metadata service contacted", sensors.SeverityMedium, 0.5, sensors.ObjectiveCredentialAccess, "T1552.005", sensors.KindConnect},
	"token-read":        {"token-read", "Service account token read by a shell, a tool or a foreign program", sensors.SeverityHigh, 0.7, sensors.ObjectiveCredentialAccess, "T1528", sensors.KindFileOpen},
	"sensitive-file":    {"sensitive-file", "Password hashes or cloud credentials read", sensors.SeverityMedium, 0.6, sensors.ObjectiveCredentialAccess, "T1552.001", sensors.KindFileOpen},
	"drift":             {"drift", "Program executed that was not in the image", sensors.SeverityHigh, 0.7, sensors.ObjectivePersistence, "T1105", sensors.KindExec},
	"fileless":          {"fileless", "Program executed from memory or after its file was deleted", sensors.SeverityHigh, 0.85, sensors.ObjectiveDefenseEvasion, "T1620", sensors.KindExec},
	"undeclared-egress": {"undeclared-egress", "Connection that the workload did not declare", sensors.SeverityMedium, 0.65, sensors.ObjectiveExfiltration, "T1041", sensors.KindConnect},
}

// the behaviour of each kind, from the first detection to what became of it.

func (s *story) debugShell() {
	s.detect(s.pod(), "terminal-shell", pick(s.random, [][]string{{"bash"}, {"sh", "-il"}, {"ash"}, {"/bin/bash", "--login"}}), 0)
	s.shell(s.pods[0])
}

func (s *story) install() {
	p := s.pod()
	s.detect(p, "terminal-shell", []string{"sh"}, 0)
	s.detect(p, "drift", pick(s.random, [][]string{{"apk", "add", "curl"}, {"pip", "install", "debugpy"}, {"apt-get", "install", "-y", "strace"}}), 4_000+s.random.Int64N(60_000))
	s.detect(p, "undeclared-egress", []string{"apk"}, 5_000+s.random.Int64N(60_000))
	s.shell(p)
}

func (s *story) backup() {
	p := s.pod()
	s.detect(p, "sensitive-file", []string{"restic", "backup", "/var/lib"}, 0)
	if s.random.IntN(2) == 0 {
		s.detect(p, "token-read", []string{"python3", "/app/backup.py"}, 700)
	}
	s.stolen(p)
}

var miners = [][]string{
	{"xmrig", "--url", "stratum+tcp://198.51.100.7:3333", "--donate-level", "1"},
	{"kdevtmpfsi"},
	{"./x", "-o", "pool.example.net:14444", "-u", "47x"},
}

func (s *story) miner() {
	p := s.pod()
	s.detect(p, "miner-process", pick(s.random, miners), 0)
	s.detect(p, "miner-pool", []string{"xmrig"}, 60+s.random.Int64N(900))
	s.mined(p)
}

func (s *story) minerPods() {
	for i := range 2 + s.random.IntN(5) {
		p := s.pod()
		s.detect(p, "miner-process", pick(s.random, miners), int64(i)*(200+s.random.Int64N(20_000)))
		if s.random.IntN(3) > 0 {
			s.detect(p, "miner-pool", []string{"xmrig"}, s.now()+100)
		}
	}
	s.mined(s.pods...)
}

func (s *story) reverseShell() {
	p := s.pod()
	s.detect(p, "reverse-shell", pick(s.random, [][]string{{"bash", "-i"}, {"sh"}, {"python3", "-c", "import pty;pty.spawn('sh')"}}), 0)
	if s.random.IntN(3) == 0 {
		s.detect(p, "undeclared-egress", []string{"bash"}, 30)
	}
	s.cut(p)
}

func (s *story) credentials() {
	p := s.pod()
	s.detect(p, "metadata-access", []string{"curl", "-s", "http://169.254.169.254/latest/meta-data/"}, 0)
	s.detect(p, "token-read", []string{"cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"}, 800+s.random.Int64N(30_000))
	s.stolen(p)
}

func (s *story) chain() {
	p := s.pod()
	s.detect(p, "terminal-shell", []string{"sh"}, 0)
	s.detect(p, "drift", []string{"/tmp/.x"}, 9_000+s.random.Int64N(20_000))
	s.detect(p, "fileless", []string{"memfd:", "-d"}, s.now()+2_000)
	s.detect(p, "token-read", []string{"/tmp/.x", "--token"}, s.now()+3_000+s.random.Int64N(60_000))
	s.detect(p, "undeclared-egress", []string{"/tmp/.x"}, s.now()+400)
	if s.random.IntN(2) == 0 {
		s.detect(p, "miner-process", miners[0], s.now()+20_000)
		s.mined(p)
		return
	}
	s.shell(p)
}

func (s *story) repeated() {
	p := s.pod()
	name := pick(s.random, []string{"metadata-access", "terminal-shell", "sensitive-file"})
	for i := range 5 + s.random.IntN(20) {
		s.detect(p, name, []string{"agent"}, int64(i)*(20_000+s.random.Int64N(130_000)))
	}
	if name == "terminal-shell" {
		s.shell(p)
	} else {
		s.stolen(p)
	}
}

func (s *story) storm() {
	p := s.pod()
	for i := range s.storms {
		s.detect(p, "miner-pool", []string{"xmrig", "-o", "198.51.100.7:3333"}, int64(i)*8)
	}
	s.detect(p, "miner-process", miners[0], s.now())
	s.mined(p)
}

func (s *story) refused() {
	p := s.pod()
	p.hostNetwork = true
	s.detect(p, "miner-process", pick(s.random, miners), 0)
	s.mined(p)
}

func (s *story) failed() {
	s.trouble = pick(s.random, []trouble{troubleOnce, troubleAlways, troubleEvidence})
	p := s.pod()
	s.detect(p, "reverse-shell", []string{"bash", "-i"}, 0)
	s.cut(p)
}

func (s *story) missing() {
	p := s.pod()
	s.detect(p, "reverse-shell", []string{"nc", "-e", "sh"}, 0)
	// It ran before there was such a playbook: nothing but the context was asked.
	s.workload(p)
}

func (s *story) drifted() {
	s.trouble = troubleDrift
	p := s.pod()
	s.detect(p, "miner-process", pick(s.random, miners), 0)
	s.mined(p)
}
