// Package aws is an AWS account on this machine: moto_server as a real process, and in front of it a fake that
// implements what moto lacks (CloudTrail lookups, policy simulation, EKS Pod Identity) and forwards everything else.
//
// It refuses to guess: the simulation of a condition that Stanch does not write is an error. It proves that policies
// have the right content, not that AWS enforces them.
package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"stanch/testenv/prereq"
	"stanch/worker/freeport"
)

// Region and Number identify the account.
const (
	Region    = "eu-central-1"
	AccountID = "123456789012"
)

// The credentials of moto's root user.
const (
	RootAccessKeyID     = "AKIAIOSFODNN7ROOT000"
	RootSecretAccessKey = "moto-takes-anything"
)

// Moto is a running moto_server.
type Moto struct {
	URL string
	cmd *exec.Cmd
}

// ErrNoMoto means that moto_server is not installed.
var ErrNoMoto = errors.New("moto_server is missing: `make setup` installs it (pip install 'moto[server]==5.2.1')")

// findMotoServer returns the path at which `make setup` installs it, or one on PATH.
func findMotoServer() (string, error) {
	home, _ := os.UserHomeDir()
	cache := os.Getenv("STANCH_CACHE")
	if cache == "" {
		cache = filepath.Join(home, ".cache", "stanch")
	}
	for _, candidate := range []string{
		filepath.Join(cache, "moto", "bin", "moto_server"), "moto_server",
		filepath.Join(home, ".pyenv", "shims", "moto_server"),
	} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", ErrNoMoto
}

// Open starts moto_server on a free port of loopback.
func Open(ctx context.Context) (*Moto, error) {
	path, err := findMotoServer()
	if err != nil {
		return nil, err
	}
	ports, err := freeport.Find("127.0.0.1", 1)
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(ports[0])
	m := &Moto{
		URL: "http://127.0.0.1:" + port,
		cmd: exec.Command(path, "-H", "127.0.0.1", "-p", port),
	} //nolint:noctx // it is killed by Close
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start moto_server: %w", err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.URL+"/moto-api/data.json", nil)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			_ = response.Body.Close()
			return m, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("moto_server does not answer: %w", err), m.Close())
		}
		time.Sleep(50 * time.Millisecond) // polled until it responds
	}
}

// Close ends the process.
func (m *Moto) Close() error {
	if err := syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("end moto_server: %w", err)
	}
	_ = m.cmd.Wait()
	return nil
}

// IAMClient returns a client of moto itself, without the fake and with every permission, so that a test reads the
// actual state.
func (m *Moto) IAMClient() *iam.Client {
	return iam.NewFromConfig(awssdk.Config{
		Region: Region, Credentials: credentials.NewStaticCredentialsProvider(RootAccessKeyID, RootSecretAccessKey, ""),
		BaseEndpoint: &m.URL,
	})
}

// StartFake starts moto and a fake for one test.
func StartFake(t testing.TB) *FakeAWS {
	t.Helper()
	m, err := Open(context.Background())
	if errors.Is(err, ErrNoMoto) {
		prereq.SkipOrFail(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m.NewFake(t)
}

// CredentialEnv returns the environment variables with the credentials for the account.
func CredentialEnv() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + RootAccessKeyID, "AWS_SECRET_ACCESS_KEY=" + RootSecretAccessKey,
		"AWS_EC2_METADATA_DISABLED=true",
	}
}
