package health_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/gatewayrpc"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/health"
)

// runStormSensor runs a sensor in its own process that detects as fast as possible, from the given number on, and
// prints each detection's number when it is in the spool.
func runStormSensor(dir string) error {
	base, err := gatewayrpc.LoadTLS(dir, "node")
	if err != nil {
		return err
	}
	spool, err := gatewayrpc.OpenSpool(dir, gatewayrpc.SpoolLimits{MaxDetections: 100_000})
	if err != nil {
		return err
	}
	c := &gatewayrpc.Client{
		Address: os.Getenv("STANCH_TEST_GATEWAY"), TLS: base, Node: "storm", Spool: spool,
		Handler: noopHandler{}, Log: slog.New(slog.DiscardHandler),
	}
	go func() { _ = c.Run(context.Background()) }()
	from, err := strconv.Atoi(os.Getenv("STANCH_TEST_FROM"))
	if err != nil {
		return err
	}
	to, err := strconv.Atoi(os.Getenv("STANCH_TEST_TO"))
	if err != nil {
		return err
	}
	for n := from; n < to; n++ {
		if err := spool.Add(newStormDetection("storm", n)); err != nil {
			return err
		}
		fmt.Println(n)
		time.Sleep(time.Duration(rand.IntN(400)) * time.Microsecond) // slightly faster than the gateway can accept
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed
	return nil
}

// stormProcess is such a sensor process.
type stormProcess struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startStormProcess(t *testing.T, dir, address string, from, to int) *stormProcess {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "STANCH_TEST_SENSOR="+dir, "STANCH_TEST_GATEWAY="+address, "STANCH_TEST_FROM="+
		strconv.Itoa(from), "STANCH_TEST_TO="+strconv.Itoa(to))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &stormProcess{cmd, bufio.NewScanner(out)}
}

// readUntil reads the output until the spool has n more detections, and returns the last number.
func (p *stormProcess) readUntil(t *testing.T, n int) int {
	t.Helper()
	last := -1
	for range n {
		require.True(t, p.lines.Scan(), "the sensor ended")
		var err error
		last, err = strconv.Atoi(p.lines.Text())
		require.NoError(t, err)
	}
	return last
}

// kill sends SIGKILL, and returns the last number in the spool.
func (p *stormProcess) kill(t *testing.T, last int) int {
	t.Helper()
	require.NoError(t, p.cmd.Process.Kill())
	for p.lines.Scan() {
		if n, err := strconv.Atoi(p.lines.Text()); err == nil {
			last = n
		}
	}
	_ = p.cmd.Wait()
	return last
}

func newNodeDir(t *testing.T, pki *authority.PKI) string {
	t.Helper()
	dir := t.TempDir()
	_, _, err := pki.WriteCertificateFiles(dir, "node", authority.RoleNode, "storm")
	require.NoError(t, err)
	return dir
}

func TestKilledSensorLosesNoSpooledDetections(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": incidentWorkflow})
	e := newGatewayFixture(t, server, gatewayFixtureOptions{limits: config.NodeLimits{
		DetectionsPerSecond: 100_000,
		DetectionBurst:      100_000,
	}})
	dir := newNodeDir(t, e.pki)
	const total, kills = 6000, 4
	next := 0
	for k := range kills {
		p := startStormProcess(t, dir, e.address, next, total)
		next = p.kill(t, p.readUntil(t, total/(kills+1))) + 1
		t.Logf("kill %d after detection %d, %d had arrived", k+1, next-1,
			len(incidentDetections(t, server, "Container/storm-c@storm")))
	}
	p := startStormProcess(t, dir, e.address, next, total)
	p.readUntil(t, total-next)
	waitForAllDetections(t, server, total)
}

// waitForAllDetections waits until exactly the detections of the storm are known, by id.
func waitForAllDetections(t *testing.T, server *temporal.Server, total int) {
	t.Helper()
	want := stormDetectionIDs("storm", total)
	require.Eventually(t, func() bool {
		return len(uniqueDetectionIDs(incidentDetections(t, server, "Container/storm-c@storm"))) >= total
	}, 2*time.Minute, 200*time.Millisecond)
	all := incidentDetections(t, server, "Container/storm-c@storm")
	require.ElementsMatch(t, want, uniqueDetectionIDs(all))
	t.Logf("%d detections arrived, %d of them twice: an incident knows them by their ids", total, len(all)-total)
}

// outageDuration is how long the gateway is down: STANCH_TEST_AWAY=5m is the long run.
func outageDuration(t *testing.T) time.Duration {
	t.Helper()
	if long := os.Getenv("STANCH_TEST_AWAY"); long != "" {
		d, err := time.ParseDuration(long)
		require.NoError(t, err)
		return d
	}
	return 20 * time.Second
}

func TestGatewayOutageLosesNoSpooledDetections(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": incidentWorkflow})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	pki, err := authority.OpenOrCreatePKI(t.TempDir())
	require.NoError(t, err)
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	o := gatewayFixtureOptions{
		limits: config.NodeLimits{DetectionsPerSecond: 100_000, DetectionBurst: 100_000}, pki: pki,
		authority: auth, address: address, file: filepath.Join(t.TempDir(), "nodes.json"),
		timing: health.Timing{LostAfter: 30 * time.Second},
	}
	e := newGatewayFixture(t, server, o)
	const total = 9000
	p := startStormProcess(t, newNodeDir(t, pki), address, 0, total)
	p.readUntil(t, total/3)
	e.stop() // in the middle of the storm
	had := len(uniqueDetectionIDs(incidentDetections(t, server, "Container/storm-c@storm")))
	require.Less(t, had, total)
	back := time.After(outageDuration(t))
	p.readUntil(t, total-total/3)
	<-back
	require.Len(t, uniqueDetectionIDs(incidentDetections(t, server, "Container/storm-c@storm")), had,
		"no detection arrives during the outage")
	newGatewayFixture(t, server, o)
	waitForAllDetections(t, server, total)
	require.Empty(t, incidentDetections(t, server, "Node/storm"),
		"an outage of the gateway is not reported as the node's gap")
}
