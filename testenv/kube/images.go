package kube

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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
	Name        string               // with a tag other than "latest": "stanch.lab/shop:1"
	Files       map[string]ImageFile // by absolute path in the image; parent directories are created
	WithBusybox bool                 // adds /bin/busybox, its applets, /etc/passwd, /etc/shadow and /tmp
	Entrypoint  []string
	Env         []string // NAME=value
	User        string   // "" is root
}

// ImageFile is one file of an image. One of Data, From, Link and Same is its content.
type ImageFile struct {
	Data          []byte
	HostPath      string      // a file of the host, copied
	SymlinkTarget string      // the target of a symbolic link
	HardlinkTo    string      // another file of the image, to which this is a hard link
	Mode          fs.FileMode // 0 means 0755
	// CapabilityXattr is the extended attribute security.capability; "" for none.
	CapabilityXattr string
}

// ImportImage creates an image of one layer and imports it into the lab's containerd by name and by digest, so that
// pods report the digest as they do for a pulled image. It returns the digest ("sha256:…").
func (c *Cluster) ImportImage(ctx context.Context, image ImageSpec) (digest string, err error) {
	archive, digest, err := image.ociArchive()
	if err != nil {
		return "", fmt.Errorf("make the image %s: %w", image.Name, err)
	}
	cmd := exec.CommandContext(ctx, "ctr", "--address", c.CRISocket, "--namespace", "k8s.io", "images", "import", "-")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("import the image %s: %w: %s", image.Name, err, out)
	}
	return digest, nil
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
		Name: AttackImage, WithBusybox: true, Files: map[string]ImageFile{"/attack": {HostPath: program}},
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
func busyboxFiles() (map[string]ImageFile, error) {
	program, err := lookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox (apt-get install busybox-static): %w", err)
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", err)
	}
	files := map[string]ImageFile{
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
			files["/bin/"+applet] = ImageFile{SymlinkTarget: "busybox"}
		}
	}
	return files, nil
}

// ociArchive creates a tar with an OCI layout that names the image twice: by tag and by digest.
func (image ImageSpec) ociArchive() (content []byte, digest string, err error) {
	files := map[string]ImageFile{}
	if image.WithBusybox {
		if files, err = busyboxFiles(); err != nil {
			return nil, "", err
		}
	}
	maps.Copy(files, image.Files)
	layer, err := buildLayer(files)
	if err != nil {
		return nil, "", err
	}
	blobs := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	add := func(media string, content []byte) map[string]any {
		sum := sha256.Sum256(content)
		name := hex.EncodeToString(sum[:])
		blobs["blobs/sha256/"+name] = content
		return map[string]any{"mediaType": media, "digest": "sha256:" + name, "size": len(content)}
	}
	layerRef := add("application/vnd.oci.image.layer.v1.tar", layer)
	configRef := add("application/vnd.oci.image.config.v1+json", mustEncodeJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Entrypoint": image.Entrypoint, "User": image.User,
			"Env": append([]string{"PATH=/bin:/sbin:/usr/bin"}, image.Env...),
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layerRef["digest"]}},
	}))
	manifest := add("application/vnd.oci.image.manifest.v1+json", mustEncodeJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": configRef, "layers": []any{layerRef},
	}))
	digest = manifest["digest"].(string)
	repository, _, _ := strings.Cut(image.Name, ":")
	var named []any
	for _, name := range []string{image.Name, repository + "@" + digest} {
		m := maps.Clone(manifest)
		m["annotations"] = map[string]string{"io.containerd.image.name": name}
		named = append(named, m)
	}
	blobs["index.json"] = mustEncodeJSON(map[string]any{"schemaVersion": 2, "manifests": named})

	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(blobs[name]))}),
			errOnly(w.Write(blobs[name]))); err != nil {
			return nil, "", err
		}
	}
	return out.Bytes(), digest, w.Close()
}

func errOnly(_ int, err error) error { return err }

// mustEncodeJSON encodes a value whose encoding cannot fail.
func mustEncodeJSON(v any) []byte {
	content, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return content
}

// buildLayer creates the layer. The same files give the same bytes.
func buildLayer(files map[string]ImageFile) ([]byte, error) {
	for name := range maps.Clone(files) {
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			if _, ok := files[dir]; !ok {
				files[dir] = ImageFile{Mode: fs.ModeDir | 0o755}
			}
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		mode := f.Mode
		if mode == 0 {
			mode = 0o755
		}
		h := &tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: int64(mode.Perm()), Typeflag: tar.TypeReg}
		if mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if mode&fs.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		data := f.Data
		switch {
		case mode.IsDir():
			h.Name, h.Typeflag = h.Name+"/", tar.TypeDir
		case f.SymlinkTarget != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.SymlinkTarget
		case f.HardlinkTo != "":
			h.Typeflag, h.Linkname = tar.TypeLink, strings.TrimPrefix(f.HardlinkTo, "/")
		case f.HostPath != "":
			var err error
			if data, err = os.ReadFile(f.HostPath); err != nil {
				return nil, err
			}
		}
		if f.CapabilityXattr != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": f.CapabilityXattr}
		}
		h.Size = int64(len(data))
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
