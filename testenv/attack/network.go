package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// minerName is the process name of the miner.
const minerName = "xmrig"

const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// execAsMiner executes this program with the command line of a miner.
func execAsMiner(pool string) error {
	return fmt.Errorf("execute itself: %w", syscall.Exec("/proc/self/exe", []string{
		minerName, "--url", "stratum+tcp://" + pool, "--user", "harmless-drill", "--pass", "x", "--donate-level", "1",
	}, os.Environ()))
}

// mineUntilStopped talks to the pool of the command line and uses a little CPU until it is stopped.
func mineUntilStopped(args []string) error {
	pool := ""
	for i, a := range args {
		if a == "--url" && i+1 < len(args) {
			pool = strings.TrimPrefix(args[i+1], "stratum+tcp://")
		}
	}
	if pool == "" {
		return errors.New("no --url stratum+tcp://ADDR")
	}
	go func() {
		for {
			fmt.Println("pool:", connectToPool(pool))
			time.Sleep(time.Second)
		}
	}()
	stop := terminationSignal()
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	work := sha256.Sum256([]byte(pool))
	for {
		select {
		case <-stop:
			return nil
		case <-beat.C:
			for until := time.Now().Add(4 * time.Millisecond); time.Now().Before(until); {
				work = sha256.Sum256(work[:])
			}
		}
	}
}

func connectToPool(pool string) error {
	conn, err := net.DialTimeout("tcp", pool, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("pool: connected to", pool)
	if _, err := io.WriteString(conn, `{"id":1,"jsonrpc":"2.0","method":"login","params":`+
		`{"login":"harmless-drill","pass":"x","agent":"XMRig/6.21.0 (Linux x86_64)"}}`+"\n"); err != nil {
		return err
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		fmt.Println("pool said", len(lines.Text()), "bytes")
	}
	return errors.Join(errors.New("the pool hung up"), lines.Err())
}

func readSecretFile(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fmt.Printf("read %d bytes of %s\n", len(content), path)
	return nil
}

func queryMetadataService(args []string) error {
	address := "169.254.169.254:80"
	if len(args) > 0 {
		address = args[0]
	}
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get("http://" + address + "/latest/meta-data/iam/security-credentials/")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<20))
	fmt.Printf("metadata: %s, %d bytes\n", answer.Status, n)
	return err
}

func connectTCP(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("connected to", address)
	return waitForTermination()
}

func serveTCP(address string) error {
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Println("serving", address)
	select {
	case err := <-failed:
		return err
	case <-terminationSignal():
		return server.Close()
	}
}
