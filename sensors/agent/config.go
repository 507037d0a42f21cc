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

// SnapshotCommand is the first argument with which a program that has an agent is started to take one snapshot.
const SnapshotCommand = "take-snapshot"

// ThawCommand is the first argument with which a program that has an agent is started to end one freeze.
const ThawCommand = "thaw-at-end"

// Config says how to make an agent on this machine. The zero value watches every container of it.
type Config struct {
	Node          string // default: the host's name
	StateDir      string // default: none is kept
	EgressLockDir string // where the egress lock is pinned; default probe.DefaultEgressLockDir
	CRISocket     string
	KubeletPath   string // see Options
	// SnapshotProgram and its arguments call snapshot.ServeHelper: see Options.SnapshotHelper. Empty: none.
	SnapshotProgram []string
	// ThawProgram and its arguments call snapshot.RunThawer with the last argument. Empty: this node freezes nothing.
	ThawProgram []string
	RuleDirs    []string
	// LearningPeriod is how long an image is watched before anything it does can be unusual. Default 24 h.
	LearningPeriod time.Duration
	// APIServers: see Options. Where there are none, the addresses that a pod gets in its environment.
	APIServers  []string
	DisableLock bool               // only watch
	Failpoint   func(point string) // for tests: see Options
	// Probe sizes the rings and turns hooks off; Node and CgroupRoot are filled in.
	Probe probe.Options
	// HeartbeatInterval: see Options.
	HeartbeatInterval time.Duration
	Log               *slog.Logger
}

// NewFromConfig opens everything that this machine has and says what it lacks. Close ends it; locks in force stay.
func NewFromConfig(s Config) (a *Agent, closeAll func(), err error) {
	if s.Log == nil {
		s.Log = slog.Default()
	}
	if s.Node == "" {
		if s.Node, err = os.Hostname(); err != nil {
			return nil, nil, fmt.Errorf("find this node's name: %w; give it with --node", err)
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
	o := Options{Node: s.Node, RuleFiles: files, StateDir: s.StateDir, Log: s.Log, Failpoint: s.Failpoint, KubeletPath: s.KubeletPath, APIServers: s.APIServers, HeartbeatInterval: s.HeartbeatInterval}
	if len(s.SnapshotProgram) > 0 {
		o.SnapshotHelper = snapshot.NewHelperPool(s.SnapshotProgram[0], s.SnapshotProgram[1:]...)
		o.SnapshotHelper.Prewarm()
		closers = append(closers, func() { _ = o.SnapshotHelper.Close() })
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); host != "" && len(o.APIServers) == 0 {
		o.APIServers = []string{net.JoinHostPort(host, port)}
	}
	if s.StateDir != "" {
		if o.Baselines, err = baseline.Open(BaselinePath(s.StateDir), baseline.Options{LearningPeriod: s.LearningPeriod}); err != nil {
			s.Log.Error("what was learnt of images cannot be read", "error", err)
		}
	}
	if o.Resolver, err = containermeta.Open(containermeta.Options{CRISocket: s.CRISocket}); err != nil {
		return nil, nil, fmt.Errorf("tell containers apart: %w", err)
	}
	closers = append(closers, func() { _ = o.Resolver.Close() })
	s.Probe.Node = s.Node
	if o.Probe, err = probe.Load(s.Probe); err != nil {
		s.Log.Error("the kernel cannot be watched; foreign detections still work", "error", err)
	} else {
		closers = append(closers, func() { _ = o.Probe.Close() })
		for _, h := range o.Probe.Status().Hooks {
			if !h.Enabled {
				s.Log.Warn("a probe is off, the others are on", "hook", h.Hook, "reason", h.Reason)
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
			s.Log.Error("the egress lock is off: isolation has only NetworkPolicies", "error", err)
		} else {
			closers = append(closers, func() { _ = o.EgressLock.Close() })
		}
		if len(s.ThawProgram) > 0 {
			o.Freezer = snapshot.NewFreezer(o.Resolver.CgroupRoot(), s.Log, s.ThawProgram...)
			if err := o.Freezer.RecoverFreezes(context.Background()); err != nil {
				s.Log.Warn("find what an earlier sensor froze", "error", err)
			}
			closers = append(closers, func() { _ = o.Freezer.Close() })
		}
	} else {
		o.EgressLockError = "this sensor only watches"
	}
	a, err = New(o, set)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	// The kernel's types, which the programs were fitted to, are many times what is kept: give that back to the node.
	debug.FreeOSMemory()
	return a, closeAll, nil
}

func (a *Agent) failpoint(point string) {
	if a.Failpoint != nil {
		a.Failpoint(point)
	}
}

// BootID names this boot of the machine.
func BootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// Serve watches, spools and obeys until ctx ends. The client's Handler, Spool and Status are this agent's.
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
