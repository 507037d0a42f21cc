package baseline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stanch/sensors/durablefile"
)

// FileVersion is the version of the file format.
const FileVersion = 1

// maxFileBytes is the maximum size of a file, in bytes.
const maxFileBytes = 64 << 20

// baselineFile is the content of a baseline file.
type baselineFile struct {
	Version int     `json:"version"`
	Images  []Image `json:"images"`
}

// Write writes all baselines as JSON in the format that Read reads.
func (b *Baselines) Write(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(baselineFile{Version: FileVersion, Images: b.Images()}); err != nil {
		return fmt.Errorf("write the baselines: %w", err)
	}
	return nil
}

// Read merges the baselines of a file, at most 64 MiB, and returns the number of images in it. If an image is already
// known, the observations of both count. An invalid file changes nothing.
func (b *Baselines) Read(r io.Reader) (images int, err error) {
	decoder := json.NewDecoder(io.LimitReader(r, maxFileBytes))
	decoder.DisallowUnknownFields()
	var d baselineFile
	if err := decoder.Decode(&d); err != nil {
		return 0, fmt.Errorf("invalid baselines: %w; create them with `stanch-sensor baseline export`", err)
	}
	if d.Version != FileVersion {
		return 0, fmt.Errorf("the baselines have version %d; this program supports version %d", d.Version, FileVersion)
	}
	now := b.options.Now()
	for i, image := range d.Images {
		switch {
		case !strings.HasPrefix(image.Digest, "sha256:") || len(image.Digest) > maxTextBytes:
			return 0, fmt.Errorf("image %d: invalid digest %q", i+1, image.Digest)
		case image.FirstSeen.IsZero() || image.FirstSeen.After(now.Add(time.Hour)) || image.LastSeen.Before(image.FirstSeen):
			return 0,
				fmt.Errorf("image %s: invalid times: first seen %s, last seen %s", image.Digest, image.FirstSeen, image.LastSeen)
		case len(image.Executables) > maxExecutablesPerImage || len(image.Destinations) > maxDestinationsPerImage:
			return 0,
				fmt.Errorf("image %s: more than %d executables or %d destinations", image.Digest, maxExecutablesPerImage,
					maxDestinationsPerImage)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(d.Images) - 1; i >= 0; i-- { // the most recently seen image last, so that it is evicted last
		b.mergeImage(&d.Images[i])
	}
	return len(d.Images), nil
}

// mergeImage merges one image. The caller holds b.mu.
func (b *Baselines) mergeImage(image *Image) {
	b.dirty = true
	known, ok := b.images.Peek(image.Digest)
	if !ok {
		image.Executables, image.Destinations = mergeObservations(nil, image.Executables, maxExecutablesPerImage),
			mergeObservations(nil, image.Destinations, maxDestinationsPerImage)
		b.images.Add(image.Digest, image)
		return
	}
	if image.FirstSeen.Before(known.FirstSeen) {
		known.FirstSeen = image.FirstSeen
	}
	known.ContainerCount += image.ContainerCount
	known.ExecutablesOverflowed = known.ExecutablesOverflowed || image.ExecutablesOverflowed
	known.DestinationsOverflowed = known.DestinationsOverflowed || image.DestinationsOverflowed
	known.Executables = mergeObservations(known.Executables, image.Executables, maxExecutablesPerImage)
	known.Destinations = mergeObservations(known.Destinations, image.Destinations, maxDestinationsPerImage)
}

func mergeObservations(into, from map[string]Observation, most int) map[string]Observation {
	if into == nil {
		into = map[string]Observation{}
	}
	for name, f := range from {
		have, ok := into[name]
		switch {
		case !ok && len(into) >= most:
			continue
		case !ok:
			have = f
		default:
			have.Count += f.Count
			if f.FirstSeen.Before(have.FirstSeen) {
				have.FirstSeen = f.FirstSeen
			}
			if f.LastSeen.After(have.LastSeen) {
				have.LastSeen = f.LastSeen
			}
		}
		into[name] = have
	}
	return into
}

// Open reads a baseline file. If it does not exist, the baselines are empty. If it is corrupted, Open renames it, and
// returns empty baselines and an error that says where the file is: learning starts again.
func Open(file string, o Options) (*Baselines, error) {
	b := New(o)
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, fmt.Errorf("open the baselines: %w", err)
	}
	defer func() { _ = f.Close() }()
	if _, err := b.Read(f); err != nil {
		aside := file + ".damaged"
		if renamed := durablefile.Rename(file, aside); renamed != nil {
			return b, errors.Join(err, renamed)
		}
		return b, fmt.Errorf("%s was moved to %s, and learning restarts: %w", file, aside, err)
	}
	b.dirty = false
	return b, nil
}

// Save writes the file atomically if something changed since the last Save, and evicts images that exceeded the
// retention.
func (b *Baselines) Save(file string) error {
	b.mu.Lock()
	for _, image := range b.images.Values() {
		if b.options.Now().Sub(image.LastSeen) > b.options.Retention {
			b.images.Remove(image.Digest)
			b.dirty = true
		}
	}
	dirty := b.dirty
	b.dirty = false
	b.mu.Unlock()
	if !dirty {
		return nil
	}
	err := func() error {
		if err := durablefile.MakeDirectory(filepath.Dir(file), 0o700); err != nil {
			return err //nolint:wrapcheck // wrapped below
		}
		return durablefile.WriteFrom(file, 0o600, b.Write) //nolint:wrapcheck // wrapped below
	}()
	if err != nil {
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
		return fmt.Errorf("save the baselines: %w", err)
	}
	return nil
}
