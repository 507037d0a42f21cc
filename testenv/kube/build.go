package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Version is the Kubernetes version of the lab.
const Version = "v1.36.3"

// ErrNotBuilt means that the node's binary is not in the cache. Building it takes minutes, so it must be requested
// explicitly.
var ErrNotBuilt = errors.New("the lab's node is not built; run `go run ./testenv/kube/cmd/labnode build`")

// CacheDir returns the directory of built binaries: $STANCH_CACHE, or stanch in the user's cache directory.
func CacheDir() string {
	if dir := os.Getenv("STANCH_CACHE"); dir != "" {
		return dir
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	return filepath.Join(base, "stanch")
}

// moduleDir returns the directory of the node's module beside this file. The lab runs from a checkout, as tests do.
func moduleDir() (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("find the lab's source: no caller information")
	}
	dir := filepath.Join(filepath.Dir(here), "node")
	if _, err := os.Stat(filepath.Join(dir, "go.sum")); err == nil {
		return dir, nil
	}
	// With -trimpath, go list finds the directory.
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "stanch/testenv/kube").Output()
	if err != nil {
		return "", fmt.Errorf("find the lab's source (run from inside the checkout): %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "node"), nil
}

// binaryPath returns the binary's path, which contains a hash of its sources.
func binaryPath() (path, dir string, err error) {
	dir, err = moduleDir()
	if err != nil {
		return "", "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, Version, runtime.GOARCH, runtime.Version())
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", "", fmt.Errorf("hash the node's module: %w", err)
		}
		fmt.Fprintln(sum, name, len(content))
		sum.Write(content)
	}
	return filepath.Join(CacheDir(), "kube", hex.EncodeToString(sum.Sum(nil))[:16], "node"), dir, nil
}

// Binary returns the path of the built node, or ErrNotBuilt.
func Binary() (string, error) {
	path, _, err := binaryPath()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w (looked for %s)", ErrNotBuilt, path)
	}
	return path, nil
}

// Build builds the node's binary unless the cache has it, and logs its progress. It takes about seven minutes on two
// cores with a cold Go build cache. Concurrent builds wait for each other.
func Build(ctx context.Context, progress io.Writer) (string, error) {
	path, module, err := binaryPath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory: %w", err)
	}
	unlock, err := lockFile(filepath.Join(filepath.Dir(path), "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		fmt.Fprintf(progress, "labnode: %s is built already\n", path)
		return path, nil
	}

	fmt.Fprintf(progress, "labnode: building Kubernetes %s for the lab, once: about 7 minutes on 2 cores\n", Version)
	const version = "k8s.io/component-base/version."
	minor := strings.Split(Version, ".")[1]
	cmd := exec.CommandContext(ctx, "go", "build", "-v", "-trimpath", "-o", path+".partial", "-ldflags",
		"-s -w -X "+version+"gitVersion="+Version+" -X "+version+"gitMajor=1 -X "+version+"gitMinor="+minor, ".")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off", "CGO_ENABLED=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	seen := &buildProgress{out: progress, started: time.Now()}
	cmd.Stdout, cmd.Stderr = seen, seen
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build the node in %s: %w; the compiler's last words:\n%s", module, err, seen.lastLines())
	}
	if err := os.Rename(path+".partial", path); err != nil {
		return "", fmt.Errorf("put the built node into the cache: %w", err)
	}
	fmt.Fprintf(progress, "labnode: built %s in %s\n", path, time.Since(seen.started).Round(time.Second))
	return path, nil
}

// buildProgress reduces the output of `go build -v`, one package per line, to one line every few seconds.
type buildProgress struct {
	out                   io.Writer
	started, lastReported time.Time
	packages              int
	last                  []string
}

// expectedNodePackages is the approximate number of packages of the node, for progress only.
const expectedNodePackages = 2600

func (c *buildProgress) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "go: downloading") || !strings.Contains(line, " ") {
			c.packages++
		}
		c.last = append(c.last, line)
		if len(c.last) > 20 {
			c.last = c.last[1:]
		}
		if time.Since(c.lastReported) > 5*time.Second {
			c.lastReported = time.Now()
			fmt.Fprintf(c.out, "labnode: %4d of about %d packages, %s  %s\n", c.packages, expectedNodePackages,
				time.Since(c.started).Round(time.Second), line)
		}
	}
	return len(p), nil
}

func (c *buildProgress) lastLines() string { return strings.Join(c.last, "\n") }

// lockFile takes an exclusive lock that the kernel releases when the process exits.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock %s: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
