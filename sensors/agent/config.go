package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"stanch/sensors/baseline"
	"stanch/sensors/containermeta"
	"stanch/sensors/probe"
	"stanch/sensors/snapshot"
)

// SnapshotCommand is the first argument that makes an agent's executable take one snapshot.
const SnapshotCommand = "take-snapshot"

// ThawCommand is the first argument that makes an agent's executable end one freeze.
const ThawCommand = "thaw-at-end"

// Config configures an agent of this machine. The zero value watches all containers of the machine and stores no
// state.
type Config struct {
	Node          string // default: the host name
	StateDir      string // default: no state is stored
	EgressLockDir string // the pin directory of the egress lock; default probe.DefaultEgressLockDir
	CRISocket     string
	KubeletPath   string // see Options
	// SnapshotProgram is a command line that calls snapshot.ServeHelper: see Options.SnapshotHelper. Empty means no
	// helper.
	SnapshotProgram []string
	// ThawProgram is a command line that calls snapshot.RunThawer with its last argument. Empty disables freezing.
	ThawProgram []string
	RuleDirs    []string
	// LearningPeriod is how long an image is observed before an event can be unusual. The default is 24 h.
	LearningPeriod time.Duration
	// APIServers: see Options. The default is the API server address in the environment of a pod.
	APIServers  []string
	DisableLock bool               // only detect, never lock
	Failpoint   func(point string) // for tests: see Options
	// Probe sizes the ring buffers and disables hooks. Node and CgroupRoot are filled in.
	Probe probe.Options
	// HeartbeatInterval: see Options.
	HeartbeatInterval time.Duration
	Log               *slog.Logger
}

// NewFromConfig opens everything that this machine supports, and logs what is missing. closeAll releases it; active
// locks stay in force. It returns an error if no rule can be loaded, containers cannot be identified, or another
// sensor uses the egress lock.
func NewFromConfig(s Config) (a *Agent, closeAll func(), err error) {
	if s.Log == nil {
		s.Log = slog.Default()
	}
	if s.Node == "" {
		if s.Node, err = os.Hostname(); err != nil {
			return nil, nil, fmt.Errorf("find this node's name: %w; set --node", err)
		}
	}
	files, set, err := OpenRules(s.RuleDirs, s.Log)
	if err != nil {
		return nil, nil, err
	}
	p := &agentParts{Config: s, options: Options{
		Node: s.Node, RuleFiles: files, StateDir: s.StateDir, Log: s.Log, Failpoint: s.Failpoint,
		KubeletPath: s.KubeletPath, APIServers: s.APIServers, HeartbeatInterval: s.HeartbeatInterval,
	}}
	for _, open := range []func() error{p.openHelpers, p.openResolver, p.openProbe, p.openContainment} {
		if err := open(); err != nil {
			p.closeAll()
			return nil, nil, err
		}
	}
	if a, err = New(p.options, set); err != nil {
		p.closeAll()
		return nil, nil, err
	}
	// The kernel's BTF types, which are needed only to load the programs, use far more memory than what remains.
	// Return it to the node.
	debug.FreeOSMemory()
	return a, p.closeAll, nil
}

// agentParts are the parts of an agent while it is opened.
type agentParts struct {
	Config
	options Options
	closers []func()
}

func (p *agentParts) closeAll() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
}

// openHelpers starts the snapshot helper, finds the API server and opens the baselines, without which the agent works.
func (p *agentParts) openHelpers() error {
	if len(p.SnapshotProgram) > 0 {
		p.options.SnapshotHelper = snapshot.NewHelperPool(p.SnapshotProgram[0], p.SnapshotProgram[1:]...)
		p.options.SnapshotHelper.Prewarm()
		p.closers = append(p.closers, func() { _ = p.options.SnapshotHelper.Close() })
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); host != "" &&
		len(p.options.APIServers) == 0 {
		p.options.APIServers = []string{net.JoinHostPort(host, port)}
	}
	if p.StateDir == "" {
		return nil
	}
	var err error
	if p.options.Baselines, err = baseline.Open(BaselinePath(p.StateDir),
		baseline.Options{LearningPeriod: p.LearningPeriod}); err != nil {
		p.Log.Error("the image baselines cannot be read", "error", err)
	}
	return nil
}

func (p *agentParts) openResolver() (err error) {
	if p.options.Resolver, err = containermeta.Open(containermeta.Options{CRISocket: p.CRISocket}); err != nil {
		return fmt.Errorf("start the container resolver: %w", err)
	}
	p.closers = append(p.closers, func() { _ = p.options.Resolver.Close() })
	return nil
}

// openProbe loads the kernel programs, without which detections from other sources still work.
func (p *agentParts) openProbe() (err error) {
	p.Probe.Node = p.Node
	if p.options.Probe, err = probe.Load(p.Probe); err != nil {
		p.Log.Error("the kernel probes cannot be loaded; detections from other sources still work", "error", err)
		return nil
	}
	p.closers = append(p.closers, func() { _ = p.options.Probe.Close() })
	for _, h := range p.options.Probe.Status().Hooks {
		if !h.Enabled {
			p.Log.Warn("a probe is disabled; the others are enabled", "hook", h.Hook, "reason", h.Reason)
		}
	}
	return nil
}

// openContainment opens the egress lock and the freezer, unless the sensor only watches.
func (p *agentParts) openContainment() (err error) {
	if p.DisableLock {
		p.options.EgressLockError = "this sensor runs in watch-only mode and cannot contain anything"
		return nil
	}
	if err = checkPinsOutlivePod(p.EgressLockDir); err == nil {
		p.options.EgressLock, err = probe.OpenEgressLock(p.EgressLockDir)
	}
	if errors.Is(err, probe.ErrInUse) {
		return fmt.Errorf("start a sensor: %w", err)
	}
	if err != nil {
		p.options.EgressLockError = err.Error()
		p.Log.Error("the egress lock is disabled; isolation uses only NetworkPolicies", "error", err)
	} else {
		p.closers = append(p.closers, func() { _ = p.options.EgressLock.Close() })
	}
	if len(p.ThawProgram) > 0 {
		p.options.Freezer = snapshot.NewFreezer(p.options.Resolver.CgroupRoot(), p.Log, p.ThawProgram...)
		if err := p.options.Freezer.RecoverFreezes(context.Background()); err != nil {
			p.Log.Warn("could not recover the freezes of a previous sensor", "error", err)
		}
		p.closers = append(p.closers, func() { _ = p.options.Freezer.Close() })
	}
	return nil
}

// checkPinsOutlivePod checks that the pin directory of a sensor in a pod is on the node's BPF file system. The sensor
// could mount one in its pod, but then its locks would end with the pod.
func checkPinsOutlivePod(dir string) error {
	if os.Getenv("KUBERNETES_SERVICE_HOST") == "" || probe.IsBPFDir(dir) {
		return nil
	}
	return fmt.Errorf("open the egress lock: %s is not on the node's BPF file system, and locks would end with this pod; "+
		"mount one on the node (mount -t bpf bpf /sys/fs/bpf, as systemd does) and restart the pod", dir)
}

func (a *Agent) failpoint(point string) {
	if a.Failpoint != nil {
		a.Failpoint(point)
	}
}

// BootID returns the ID of the machine's current boot, or "" if it cannot be read.
func BootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
