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

	"stanch/sensors"
	"stanch/sensors/baseline"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
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
	var closers []func()
	closeAll = func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}
	o := Options{
		Node: s.Node, RuleFiles: files, StateDir: s.StateDir, Log: s.Log, Failpoint: s.Failpoint,
		KubeletPath: s.KubeletPath, APIServers: s.APIServers, HeartbeatInterval: s.HeartbeatInterval,
	}
	if len(s.SnapshotProgram) > 0 {
		o.SnapshotHelper = snapshot.NewHelperPool(s.SnapshotProgram[0], s.SnapshotProgram[1:]...)
		o.SnapshotHelper.Prewarm()
		closers = append(closers, func() { _ = o.SnapshotHelper.Close() })
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); host != "" &&
		len(o.APIServers) == 0 {
		o.APIServers = []string{net.JoinHostPort(host, port)}
	}
	if s.StateDir != "" {
		if o.Baselines, err = baseline.Open(BaselinePath(s.StateDir),
			baseline.Options{LearningPeriod: s.LearningPeriod}); err != nil {
			s.Log.Error("the image baselines cannot be read", "error", err)
		}
	}
	if o.Resolver, err = containermeta.Open(containermeta.Options{CRISocket: s.CRISocket}); err != nil {
		return nil, nil, fmt.Errorf("start the container resolver: %w", err)
	}
	closers = append(closers, func() { _ = o.Resolver.Close() })
	s.Probe.Node = s.Node
	if o.Probe, err = probe.Load(s.Probe); err != nil {
		s.Log.Error("the kernel probes cannot be loaded; detections from other sources still work", "error", err)
	} else {
		closers = append(closers, func() { _ = o.Probe.Close() })
		for _, h := range o.Probe.Status().Hooks {
			if !h.Enabled {
				s.Log.Warn("a probe is disabled; the others are enabled", "hook", h.Hook, "reason", h.Reason)
			}
		}
	}
	if !s.DisableLock {
		o.EgressLock, err = probe.OpenEgressLock(s.EgressLockDir)
		if errors.Is(err, probe.ErrInUse) {
			closeAll()
			return nil, nil, fmt.Errorf("start a sensor: %w", err)
		}
		if err != nil {
			o.EgressLockError = err.Error()
			s.Log.Error("the egress lock is disabled; isolation uses only NetworkPolicies", "error", err)
		} else {
			closers = append(closers, func() { _ = o.EgressLock.Close() })
		}
		if len(s.ThawProgram) > 0 {
			o.Freezer = snapshot.NewFreezer(o.Resolver.CgroupRoot(), s.Log, s.ThawProgram...)
			if err := o.Freezer.RecoverFreezes(context.Background()); err != nil {
				s.Log.Warn("could not recover the freezes of a previous sensor", "error", err)
			}
			closers = append(closers, func() { _ = o.Freezer.Close() })
		}
	} else {
		o.EgressLockError = "this sensor runs in watch-only mode and cannot contain anything"
	}
	a, err = New(o, set)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	// The kernel's BTF types, which are needed only to load the programs, use far more memory than what remains.
	// Return it to the node.
	debug.FreeOSMemory()
	return a, closeAll, nil
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

// Serve detects, spools and executes commands until ctx ends, which is not an error. It sets the Handler, Spool,
// BootID and StatusFunc of client.
func (a *Agent) Serve(ctx context.Context, client *gatewayrpc.Client, spool *gatewayrpc.Spool) error {
	client.Handler, client.Spool, client.BootID = a, spool, BootID()
	client.StatusFunc = func() any { return a.Report(spool.Len(), spool.Dropped()) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() { failed <- client.Run(ctx) }()
	go func() {
		failed <- a.Watch(ctx, nil, func(d sensors.Detection) {
			a.failpoint("agent/detected/" + d.Rule)
			if err := spool.Add(d); err != nil {
				a.logThrottled("spool a detection", err)
			}
		})
	}()
	err := <-failed
	cancel()
	<-failed
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
