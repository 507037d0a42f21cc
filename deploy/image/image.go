// Package image makes container images from files, for a registry or for a runtime's import, without a daemon.
//
// It refuses what would make two builds of the same files differ, such as times and owners of the machine that builds,
// and it knows no base image: an image contains its files and nothing else.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec describes an image of one layer for one platform.
type Spec struct {
	Platform   v1.Platform
	Files      map[string]File // by absolute path in the image; parent directories are created
	Entrypoint []string
	Env        []string // NAME=value
	User       string   // UID:GID; "" is root
	Labels     map[string]string
	Created    time.Time // of the sources, not of the build; zero is 1970
	// Uncompressed leaves out the compression, for an image that is imported on the machine that builds it.
	Uncompressed bool
}

// File is one file of an image. One of Data, HostPath, SymlinkTarget and HardlinkTo is its content.
type File struct {
	Data          []byte
	HostPath      string      // a file of the host, copied
	SymlinkTarget string      // the target of a symbolic link
	HardlinkTo    string      // another file of the image, to which this is a hard link
	Mode          fs.FileMode // 0 means 0755
	// CapabilityXattr is the extended attribute security.capability; "" for none.
	CapabilityXattr string
}

// Build returns the image. The same spec with the same files gives the same digest on every machine.
func (s Spec) Build() (v1.Image, error) {
	content, err := buildLayer(s.Files)
	if err != nil {
		return nil, err
	}
	layer, err := s.packLayer(content)
	if err != nil {
		return nil, fmt.Errorf("create the layer: %w", err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.ConfigFile(base, &v1.ConfigFile{
		OS: s.Platform.OS, Architecture: s.Platform.Architecture, Variant: s.Platform.Variant,
		Created: v1.Time{Time: s.Created.UTC()}, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: s.Entrypoint, User: s.User, Labels: s.Labels,
			Env: append([]string{"PATH=/bin:/sbin:/usr/bin"}, s.Env...),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create the configuration: %w", err)
	}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer: layer, History: v1.History{Created: v1.Time{Time: s.Created.UTC()}, CreatedBy: "stanch"},
	})
	if err != nil {
		return nil, fmt.Errorf("add the layer: %w", err)
	}
	return image, nil
}

// packLayer returns the layer, compressed unless the spec says otherwise.
func (s Spec) packLayer(content []byte) (v1.Layer, error) {
	if s.Uncompressed {
		return static.NewLayer(content, types.OCIUncompressedLayer), nil
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching,
		tarball.WithCompressionLevel(gzip.DefaultCompression))
}

// buildLayer creates the layer. The same files give the same bytes.
func buildLayer(given map[string]File) ([]byte, error) {
	files := maps.Clone(given)
	for name := range given {
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			if _, ok := files[dir]; !ok {
				files[dir] = File{Mode: fs.ModeDir | 0o755}
			}
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header, data, err := tarEntry(name, files[name])
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
		if _, err := w.Write(data); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("close the layer: %w", err)
	}
	return out.Bytes(), nil
}

func tarEntry(name string, f File) (*tar.Header, []byte, error) {
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
			return nil, nil, fmt.Errorf("read %s of the image: %w", name, err)
		}
	}
	if f.CapabilityXattr != "" {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": f.CapabilityXattr}
	}
	h.Size = int64(len(data))
	return h, data, nil
}
