package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/agent"
	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
)

// localSensor is the sensor of this machine. It loads its kernel programs while Temporal starts, and detaches them
// while Temporal stops.
type localSensor struct {
	config agent.Config
	log    *slog.Logger
	cancel context.CancelFunc
	ctx    context.Context //nolint:containedctx // of the sensor's own goroutine
	loaded chan struct{}   // closed when agent, close and err are set
	agent  *agent.Agent
	close  func()
	err    error
	served chan struct{} // closed when serve has ended; nil if it was not called
}

// sensorStopTimeout is how long Stanch waits for its sensor to stop. A command that a container blocks may not end.
const sensorStopTimeout = 3 * time.Second

// newLocalSensor returns the sensor of a run, not loaded yet.
func newLocalSensor(u *upRun) *localSensor {
	return &localSensor{
		config: agent.Config{
			Node: u.nodeName, StateDir: filepath.Join(u.dataDir, "node"), EgressLockDir: u.lockDir,
			CRISocket: u.criSocket, RuleDirs: slices.Concat(u.config.Rules, u.ruleDirs), Log: u.log,
			Failpoint: newCrashFailpoint(u.crashPoint), ThawProgram: []string{"/proc/self/exe", agent.ThawCommand},
		},
		log: u.log, loaded: make(chan struct{}),
	}
}

// load starts loading the sensor.
func (s *localSensor) load(ctx context.Context, cluster kubernetes.Interface) {
	s.ctx, s.cancel = context.WithCancel(ctx)
	go func() {
		defer close(s.loaded)
		s.config.APIServers = apiServerAddresses(s.ctx, cluster)
		s.agent, s.close, s.err = agent.NewFromConfig(s.config)
	}()
}

// serve connects the sensor to the gateway as any other sensor, until its context ends or stop is called. The channel
// receives its result; a nil sensor never has one.
func (s *localSensor) serve(pki *authority.PKI, auth *authority.Authority, address string) <-chan error {
	result := make(chan error, 1)
	if s == nil {
		return result
	}
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		result <- s.run(pki, auth, address)
	}()
	return result
}

func (s *localSensor) run(pki *authority.PKI, auth *authority.Authority, address string) error {
	<-s.loaded
	if s.err != nil {
		return s.err
	}
	tlsConfig, err := pki.MutualTLSConfig(authority.RoleNode, s.agent.Node)
	if err != nil {
		return err
	}
	identity, err := gatewayrpc.NewNodeCertificate(tlsConfig, "")
	if err != nil {
		return err
	}
	pins, err := gatewayrpc.OpenPinnedKeys("", "", auth.KeySet()) // the keys of this process
	if err != nil {
		return err
	}
	spool, err := gatewayrpc.OpenSpool(s.config.StateDir, gatewayrpc.SpoolLimits{})
	if err != nil {
		return err
	}
	defer func() { _ = spool.Close() }()
	return s.agent.Serve(s.ctx, &gatewayrpc.Client{
		Address: address, NodeCertificate: identity, PinnedKeys: pins, Node: s.agent.Node,
		Version: version, Log: s.log,
	}, spool)
}

// stop stops the sensor and detaches its programs. Egress locks stay in force.
func (s *localSensor) stop() {
	s.cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if s.served != nil {
			<-s.served
		}
		if <-s.loaded; s.err == nil {
			s.close()
		}
	}()
	select {
	case <-stopped:
	case <-time.After(sensorStopTimeout):
		s.log.Warn("the sensor does not stop; its programs are detached when this process ends")
	}
}

// apiServerAddresses returns the HOST:PORT addresses of the cluster's API for containers; nil if they cannot be read.
func apiServerAddresses(ctx context.Context, cluster kubernetes.Interface) []string {
	if cluster == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	service, err := cluster.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	var out []string
	for _, ip := range service.Spec.ClusterIPs {
		for _, p := range service.Spec.Ports {
			out = append(out, net.JoinHostPort(ip, strconv.Itoa(int(p.Port))))
		}
	}
	return out
}

// phaseTimes are the times that parts of a start take, for the log.
type phaseTimes struct {
	began, last time.Time
	attrs       []any
}

func newPhaseTimes() *phaseTimes {
	now := time.Now()
	return &phaseTimes{began: now, last: now}
}

// end ends a phase; the next one begins.
func (p *phaseTimes) end(name string) {
	now := time.Now()
	p.attrs = append(p.attrs, name, now.Sub(p.last).Round(time.Millisecond))
	p.last = now
}

// attributes returns the phases and their sum as attributes of a log line.
func (p *phaseTimes) attributes() []any {
	return append(p.attrs, "total", p.last.Sub(p.began).Round(time.Millisecond))
}
