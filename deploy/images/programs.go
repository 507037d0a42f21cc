package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"stanch/deploy/image"
)

// program is one program with its image.
type program struct {
	Name        string // of the program and its image
	Description string
	User        string // UID:GID
	// BudgetMiB limits the compressed size of the image for each platform, in MiB.
	BudgetMiB float64
}

// programs are what an installation runs. The sensor needs root on its node; the worker needs none.
func programs() []program {
	return []program{
		{
			Name: "stanch", User: "65532:65532", BudgetMiB: 56,
			Description: "Stanch's gateway and worker, and its command line",
		},
		{
			Name: "stanch-sensor", User: "0:0", BudgetMiB: 8,
			Description: "Stanch's sensor for one node",
		},
	}
}

// source is what the programs are built from.
type source struct {
	Version  string
	Revision string    // of the commit; "" if unknown
	Time     time.Time // of the commit
	URL      string    // of the repository; "" if unknown
	Dir      string    // "" is the current one
	Changed  bool      // the checkout differs from the commit
}

// buildFlags are the flags with which every program is built: its bytes depend on the sources and on Go's version only.
func buildFlags(version string) []string {
	return []string{"-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=" + version}
}

// buildEnvironment sets every variable that changes what the compiler writes, whatever the builder's own settings are.
func buildEnvironment(platform v1.Platform) []string {
	return []string{
		"CGO_ENABLED=0", "GOOS=" + platform.OS, "GOARCH=" + platform.Architecture, "GOAMD64=v1", "GOARM64=v8.0",
		"GOEXPERIMENT=", "GOFIPS140=off", "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off",
	}
}

// compile builds a program for a platform.
func (p program) compile(ctx context.Context, s source, platform v1.Platform, dir string) (file string, err error) {
	file = filepath.Join(dir, p.Name+"-"+platform.Architecture)
	args := append([]string{"build", "-o", file}, buildFlags(s.Version)...)
	cmd := exec.CommandContext(ctx, "go", append(args, "stanch/cmd/"+p.Name)...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), buildEnvironment(platform)...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s for %s: %w: %s", p.Name, platform, err, said)
	}
	return file, nil
}

// spec returns the image of a compiled program.
func (p program) spec(s source, platform v1.Platform, file string) image.Spec {
	labels := map[string]string{
		"org.opencontainers.image.title":       p.Name,
		"org.opencontainers.image.description": p.Description,
		"org.opencontainers.image.version":     s.Version,
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.created":     s.Time.UTC().Format(time.RFC3339),
	}
	if s.Revision != "" {
		labels["org.opencontainers.image.revision"] = s.Revision
	}
	if s.URL != "" {
		labels["org.opencontainers.image.source"] = s.URL
	}
	return image.Spec{
		Platform: platform, User: p.User, Labels: labels, Created: s.Time,
		Entrypoint: []string{"/" + p.Name},
		Files: map[string]image.File{
			"/" + p.Name: {HostPath: file},
			"/etc/passwd": {
				Data: []byte("root:x:0:0:root:/:/none\nstanch:x:65532:65532:stanch:/:/none\n"), Mode: 0o644,
			},
			"/etc/group": {Data: []byte("root:x:0:\nstanch:x:65532:\n"), Mode: 0o644},
		},
	}
}

// readSource returns the commit of the checkout. Outside of a checkout only the version is known, and the images have
// the time of SOURCE_DATE_EPOCH, or 1970.
func readSource(ctx context.Context, o options) (source, error) {
	s := source{Version: o.version, URL: o.sourceURL, Dir: o.moduleDir, Time: time.Unix(0, 0)}
	git := exec.CommandContext(ctx, "git", "log", "-1", "--format=%H %ct")
	git.Dir = s.Dir
	if out, err := git.Output(); err == nil {
		var seconds int64
		if _, err := fmt.Sscan(string(out), &s.Revision, &seconds); err != nil {
			return source{}, fmt.Errorf("read the commit %q: %w", strings.TrimSpace(string(out)), err)
		}
		s.Time = time.Unix(seconds, 0)
		status := exec.CommandContext(ctx, "git", "status", "--porcelain")
		status.Dir = s.Dir
		changes, err := status.Output()
		if err != nil {
			return source{}, fmt.Errorf("compare the checkout with its commit: %w", err)
		}
		if s.Changed = len(changes) > 0; s.Changed {
			s.Revision = "" // the images are not those of the commit
		}
	}
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		var seconds int64
		if _, err := fmt.Sscan(epoch, &seconds); err != nil {
			return source{}, fmt.Errorf("invalid SOURCE_DATE_EPOCH %q: use seconds since 1970", epoch)
		}
		s.Time = time.Unix(seconds, 0)
	}
	return s, nil
}
