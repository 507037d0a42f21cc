package image

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// containerdName is the annotation by which containerd names an image that it imports.
const containerdName = "io.containerd.image.name"

// WriteArchive writes an image, or an index of images for several platforms, as a tar with an OCI layout, once for each
// of its names. Tools that import images, such as `ctr images import` and `skopeo copy oci-archive:`, read it.
func WriteArchive(w io.Writer, content partial.Describable, names ...string) error {
	dir, err := os.MkdirTemp("", "oci-layout-")
	if err != nil {
		return fmt.Errorf("create a directory for the archive: %w", err)
	}
	defer os.RemoveAll(dir)
	target, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("create the archive: %w", err)
	}
	for _, name := range names {
		annotations := layout.WithAnnotations(map[string]string{
			containerdName: name, "org.opencontainers.image.ref.name": name,
		})
		switch content := content.(type) {
		case v1.Image:
			err = target.AppendImage(content, annotations)
		case v1.ImageIndex:
			err = target.AppendIndex(content, annotations)
		default:
			err = fmt.Errorf("%T is neither an image nor an index", content)
		}
		if err != nil {
			return fmt.Errorf("write %s to the archive: %w", name, err)
		}
	}
	return writeTar(w, dir)
}

// writeTar writes the files of a directory, in the order of their names, without their times and owners.
func writeTar(w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	if err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err //nolint:wrapcheck // the caller adds context
		}
		return copyToTar(out, file, filepath.ToSlash(name))
	}); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

func copyToTar(out *tar.Writer, file, name string) error {
	in, err := os.Open(file)
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: info.Size()}); err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	_, err = io.Copy(out, in)
	return err //nolint:wrapcheck // the caller adds context
}

// ArchiveName returns the first name in an archive that WriteArchive wrote.
func ArchiveName(file string) (string, error) {
	in, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read the archive: %w", err)
	}
	defer in.Close()
	for archive := tar.NewReader(in); ; {
		header, err := archive.Next()
		if err != nil {
			return "", fmt.Errorf("read the index of %s: %w", file, err)
		}
		if header.Name != "index.json" {
			continue
		}
		index, err := v1.ParseIndexManifest(archive)
		if err != nil {
			return "", fmt.Errorf("read the index of %s: %w", file, err)
		}
		if len(index.Manifests) == 0 || index.Manifests[0].Annotations[containerdName] == "" {
			return "", fmt.Errorf("read the index of %s: it names no image", file)
		}
		return index.Manifests[0].Annotations[containerdName], nil
	}
}
