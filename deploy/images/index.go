package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"stanch/deploy/image"
)

// localRegistry is the registry in the names of archived images, which are imported on nodes and not pulled.
const localRegistry = "localhost"

// assemble makes one index of the images for all platforms, with its provenance.
func (b *builtProgram) assemble() (err error) {
	b.index = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	digests := map[string]v1.Hash{}
	for _, one := range b.images {
		b.index = mutate.AppendManifests(b.index, mutate.IndexAddendum{
			Add: one.Image, Descriptor: v1.Descriptor{Platform: &one.Platform},
		})
		digests[one.Platform.String()] = one.Digest
	}
	if b.digest, err = b.index.Digest(); err != nil {
		return fmt.Errorf("make the index of %s: %w", b.Name, err)
	}
	b.provenance, err = writeProvenance(b.program, b.source, digests, b.digest)
	return err
}

// writeArchive writes the archive, and replaces an earlier one only when it is complete.
func (b *builtProgram) writeArchive(file string) error {
	out, err := os.CreateTemp(filepath.Dir(file), ".archive-")
	if err != nil {
		return fmt.Errorf("write the archive of %s: %w", b.Name, err)
	}
	defer os.Remove(out.Name())
	err = image.WriteArchive(out, b.index, localRegistry+"/"+b.Name+":"+b.source.Version)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(out.Name(), 0o644) //nolint:gosec // people share archives
	}
	if err == nil {
		err = os.Rename(out.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write the archive of %s: %w", b.Name, err)
	}
	return nil
}

// push pushes the index with its images, and refers to them from the bills of materials and the provenance, which
// registries list as referrers. Credentials are those of `docker login`.
func (b *builtProgram) push(ctx context.Context, registry string) error {
	repository, err := name.NewRepository(registry + "/" + b.Name)
	if err != nil {
		return fmt.Errorf("push %s: %w", b.Name, err)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	// The tag comes last: whoever sees it can get everything that belongs to it.
	if err := remote.WriteIndex(repository.Digest(b.digest.String()), b.index, options...); err != nil {
		return fmt.Errorf("push %s: %w", b.Name, err)
	}
	index, err := descriptorOf(b.index)
	if err != nil {
		return err
	}
	if err := pushReferrer(repository, index, provenanceMediaType, b.provenance, options); err != nil {
		return fmt.Errorf("push the provenance of %s: %w", b.Name, err)
	}
	for _, one := range b.images {
		subject, err := descriptorOf(one.Image)
		if err != nil {
			return err
		}
		if err := pushReferrer(repository, subject, sbomMediaType, one.SBOM, options); err != nil {
			return fmt.Errorf("push the bill of materials of %s: %w", b.Name, err)
		}
	}
	if err := remote.Tag(repository.Tag(b.source.Version), b.index, options...); err != nil {
		return fmt.Errorf("tag %s: %w", b.Name, err)
	}
	return nil
}

// manifest is an image or an index.
type manifest interface {
	Digest() (v1.Hash, error)
	Size() (int64, error)
	MediaType() (types.MediaType, error)
}

func descriptorOf(m manifest) (d v1.Descriptor, err error) {
	if d.Digest, err = m.Digest(); err != nil {
		return d, fmt.Errorf("read a manifest: %w", err)
	}
	if d.Size, err = m.Size(); err != nil {
		return d, fmt.Errorf("read a manifest: %w", err)
	}
	if d.MediaType, err = m.MediaType(); err != nil {
		return d, fmt.Errorf("read a manifest: %w", err)
	}
	return d, nil
}

// pushReferrer pushes a document as an artifact that refers to a manifest.
func pushReferrer(repository name.Repository, subject v1.Descriptor, mediaType string, content []byte,
	options []remote.Option,
) error {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.MediaType(mediaType))
	artifact, err := mutate.Append(base, mutate.Addendum{Layer: static.NewLayer(content, types.MediaType(mediaType))})
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	referrer, ok := mutate.Subject(artifact, subject).(v1.Image)
	if !ok {
		return fmt.Errorf("a manifest of %s cannot refer to another", mediaType)
	}
	digest, err := referrer.Digest()
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	return remote.Write(repository.Digest(digest.String()), referrer, options...) //nolint:wrapcheck // as above
}
