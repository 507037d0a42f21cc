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

// storm is a sensor in a process of its own that detects as fast as it can, from the number that it is given on, and
// prints each detection's number once its spool has it.
func storm(dir string) error {
	base, err := gatewayrpc.LoadTLS(dir, "node")
	if err != nil {
		return err
	}
	spool, err := gatewayrpc.OpenSpool(dir, gatewayrpc.SpoolLimits{MaxDetections: 100_000})
	if err != nil {
		return err
	}
	c := &gatewayrpc.Client{Address: os.Getenv("STANCH_TEST_GATEWAY"), TLS: base, Node: "storm", Spool: spool, Handler: handler{}, Log: slog.New(slog.DiscardHandler)}
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
		if err := spool.Add(made("storm", n)); err != nil {
			return err
		}
		fmt.Println(n)
		time.Sleep(time.Duration(rand.IntN(400)) * time.Microsecond) // a pace that the gateway can just not keep up with
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
	return nil
}

// process is such a sensor.
type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func launch(t *testing.T, dir, address string, from, to int) *process {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "STANCH_TEST_SENSOR="+dir, "STANCH_TEST_GATEWAY="+address, "STANCH_TEST_FROM="+strconv.Itoa(from), "STANCH_TEST_TO="+strconv.Itoa(to))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &process{cmd, bufio.NewScanner(out)}
}

// until reads what the spool has until there are n more, and gives the last number.
func (p *process) until(t *testing.T, n int) int {
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

// kill kills it as the kernel would, and gives the last number that its spool had.
func (p *process) kill(t *testing.T, last int) int {
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

func nodeDir(t *testing.T, pki *authority.PKI) string {
	t.Helper()
	dir := t.TempDir()
	_, _, err := pki.Files(dir, "node", authority.RoleNode, "storm")
	require.NoError(t, err)
	return dir
}

func TestASensorThatIsKilledInAStormLosesNothingThatItsSpoolHad(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": story})
	e := open(t, server, edgeOptions{limits: config.Nodes{Rate: 100_000, Burst: 100_000}})
	dir := nodeDir(t, e.pki)
	const total, kills = 6000, 4
	next := 0
	for k := range kills {
		p := launch(t, dir, e.address, next, total)
		next = p.kill(t, p.until(t, total/(kills+1))) + 1
		t.Logf("kill %d after detection %d, %d had arrived", k+1, next-1, len(told(t, server, "Container/storm-c@storm")))
	}
	p := launch(t, dir, e.address, next, total)
	p.until(t, total-next)
	arrived(t, server, total)
}

// arrived waits until every detection of the storm is known by its id, and no other.
func arrived(t *testing.T, server *temporal.Server, total int) {
	t.Helper()
	want := ids("storm", total)
	require.Eventually(t, func() bool { return len(idsOf(told(t, server, "Container/storm-c@storm"))) >= total }, 2*time.Minute, 200*time.Millisecond)
	all := told(t, server, "Container/storm-c@storm")
	require.ElementsMatch(t, want, idsOf(all))
	t.Logf("%d detections arrived, %d of them twice: an incident knows them by their ids", total, len(all)-total)
}

// away is for how long the gateway is away: STANCH_TEST_AWAY=5m is the long run.
func away(t *testing.T) time.Duration {
	t.Helper()
	if long := os.Getenv("STANCH_TEST_AWAY"); long != "" {
		d, err := time.ParseDuration(long)
		require.NoError(t, err)
		return d
	}
	return 20 * time.Second
}

func TestWhileTheGatewayIsAwayNothingThatFitsTheSpoolIsLost(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": story})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	pki, err := authority.OpenPKI(t.TempDir())
	require.NoError(t, err)
	auth, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	o := edgeOptions{limits: config.Nodes{Rate: 100_000, Burst: 100_000}, pki: pki, auth: auth, address: address, file: filepath.Join(t.TempDir(), "nodes.json"), timing: health.Timing{Lost: 30 * time.Second}}
	e := open(t, server, o)
	const total = 9000
	p := launch(t, nodeDir(t, pki), address, 0, total)
	p.until(t, total/3)
	e.stop() // in the middle of the storm
	had := len(idsOf(told(t, server, "Container/storm-c@storm")))
	require.Less(t, had, total)
	back := time.After(away(t))
	p.until(t, total-total/3)
	<-back
	require.Len(t, idsOf(told(t, server, "Container/storm-c@storm")), had, "it was away")
	open(t, server, o)
	arrived(t, server, total)
	require.Empty(t, told(t, server, "Node/storm"), "a gateway that was away does not blame the node")
}
