package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"stanch/deploy/image"
)

// The images of every lab. Pause holds a pod's namespaces; Busybox has a shell and all applets.
const (
	PauseImage   = "stanch.lab/pause:1"
	BusyboxImage = "stanch.lab/busybox:1"
	// AttackImage is Busybox with testenv/attack as /attack and entrypoint; see ImportAttack.
	AttackImage = "stanch.lab/attack:1"
)

// ImageSpec describes the content of an image.
type ImageSpec struct {
	Name        string                // with a tag other than "latest": "stanch.lab/shop:1"
	Files       map[string]image.File // by absolute path in the image; parent directories are created
	WithBusybox bool                  // adds /bin/busybox, its applets, /etc/passwd, /etc/shadow and /tmp
	Entrypoint  []string
	Env         []string // NAME=value
	User        string   // "" is root
}

// ImportImage creates an image of one layer and imports it into the lab's containerd by name and by digest, so that
// pods report the digest as they do for a pulled image. It returns the digest ("sha256:…").
func (c *Cluster) ImportImage(ctx context.Context, spec ImageSpec) (digest string, err error) {
	archive, digest, err := spec.archive()
	if err != nil {
		return "", fmt.Errorf("make the image %s: %w", spec.Name, err)
	}
	return digest, c.ImportArchive(ctx, bytes.NewReader(archive))
}

// ImportArchive imports an OCI archive into the lab's containerd.
func (c *Cluster) ImportArchive(ctx context.Context, archive io.Reader) error {
	cmd := exec.CommandContext(ctx, "ctr", "--address", c.CRISocket, "--namespace", "k8s.io", "images", "import", "-")
	cmd.Stdin = archive
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import an image: %w: %s", err, out)
	}
	return nil
}

func (c *Cluster) importBaseImages(ctx context.Context) error {
	_, err := c.ImportImage(ctx, ImageSpec{
		Name: PauseImage, WithBusybox: true, Entrypoint: []string{"/bin/busybox", "sleep", "2147483647"},
	})
	_, err2 := c.ImportImage(ctx, ImageSpec{Name: BusyboxImage, WithBusybox: true, Entrypoint: []string{"/bin/sh"}})
	return errors.Join(err, err2)
}

// ImportAttack builds testenv/attack and imports it as AttackImage, returning the image's digest.
func (c *Cluster) ImportAttack(ctx context.Context) (digest string, err error) {
	program := c.filePath("attack-" + rand.Text()) // several test processes can share the lab
	defer os.Remove(program)
	if err := BuildStatic(ctx, "stanch/testenv/attack", program); err != nil {
		return "", err
	}
	return c.ImportImage(ctx, ImageSpec{
		Name: AttackImage, WithBusybox: true, Files: map[string]image.File{"/attack": {HostPath: program}},
		Entrypoint: []string{"/attack"},
	})
}

// BuildStatic builds a command of this project so that it runs in an image with no other content.
func BuildStatic(ctx context.Context, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if root, err := moduleDir(); err == nil {
		cmd.Dir = filepath.Join(root, "../../..")
	}
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, said)
	}
	return nil
}

// busyboxFiles are the files that ImageSpec.WithBusybox adds.
func busyboxFiles() (map[string]image.File, error) {
	program, err := lookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox (apt-get install busybox-static): %w", err)
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", err)
	}
	files := map[string]image.File{
		"/bin/busybox": {HostPath: program},
		"/etc/passwd": {
			Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
			Mode: 0o644,
		},
		"/etc/group":  {Data: []byte("root:x:0:\nnobody:x:65534:\n"), Mode: 0o644},
		"/etc/shadow": {Data: []byte("root:*:19000:0:99999:7:::\n"), Mode: 0o600},
		"/tmp":        {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		"/root":       {Mode: fs.ModeDir | 0o700},
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			files["/bin/"+applet] = image.File{SymlinkTarget: "busybox"}
		}
	}
	return files, nil
}

// archive creates an OCI archive that names the image twice: by tag and by digest.
func (s ImageSpec) archive() (content []byte, digest string, err error) {
	files := map[string]image.File{}
	if s.WithBusybox {
		if files, err = busyboxFiles(); err != nil {
			return nil, "", err
		}
	}
	maps.Copy(files, s.Files)
	built, err := image.Spec{
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, Files: files, Entrypoint: s.Entrypoint,
		Env: s.Env, User: s.User, Uncompressed: true,
	}.Build()
	if err != nil {
		return nil, "", err
	}
	hash, err := built.Digest()
	if err != nil {
		return nil, "", err
	}
	repository, _, _ := strings.Cut(s.Name, ":")
	var out bytes.Buffer
	err = image.WriteArchive(&out, built, s.Name, repository+"@"+hash.String())
	return out.Bytes(), hash.String(), err
}
