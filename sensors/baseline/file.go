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
)

// Version is that of the file's shape.
const Version = 1

// maxFile bounds a file that is read, in bytes.
const maxFile = 64 << 20

// document is a file of baselines.
type document struct {
	Version int     `json:"version"`
	Images  []Image `json:"images"`
}

// Write writes all that was learnt.
func (b *Baselines) Write(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(document{Version: Version, Images: b.Images()}); err != nil {
		return fmt.Errorf("write the baselines: %w", err)
	}
	return nil
}

// Read adds what a file holds: of an image that is known already both count. A file that is not sound changes nothing.
func (b *Baselines) Read(r io.Reader) (images int, err error) {
	decoder := json.NewDecoder(io.LimitReader(r, maxFile))
	decoder.DisallowUnknownFields()
	var d document
	if err := decoder.Decode(&d); err != nil {
		return 0, fmt.Errorf("these are no baselines: %w; `stanch-sensor baseline export` writes them", err)
	}
	if d.Version != Version {
		return 0, fmt.Errorf("the baselines have version %d, this program reads %d", d.Version, Version)
	}
	now := b.opt.Now()
	for i, image := range d.Images {
		switch {
		case !strings.HasPrefix(image.Digest, "sha256:") || len(image.Digest) > maxText:
			return 0, fmt.Errorf("image %d: %q is not a digest", i+1, image.Digest)
		case image.First.IsZero() || image.First.After(now.Add(time.Hour)) || image.Last.Before(image.First):
			return 0, fmt.Errorf("image %s: it was first seen %s and last %s: that cannot be", image.Digest, image.First, image.Last)
		case len(image.Executables) > maxExecutables || len(image.Destinations) > maxDestinations:
			return 0, fmt.Errorf("image %s: it has more than %d executables or %d destinations", image.Digest, maxExecutables, maxDestinations)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(d.Images) - 1; i >= 0; i-- { // the one that was seen last is kept longest
		b.add(&d.Images[i])
	}
	return len(d.Images), nil
}

// add takes in one image. The caller holds b.mu.
func (b *Baselines) add(image *Image) {
	b.dirty = true
	known := b.images[image.Digest]
	if known == nil {
		image.Executables, image.Destinations = merge(nil, image.Executables, maxExecutables), merge(nil, image.Destinations, maxDestinations)
		b.images[image.Digest] = image
		image.place = b.order.PushFront(image.Digest)
		for b.order.Len() > b.opt.Images {
			b.drop(b.order.Back())
		}
		return
	}
	if image.First.Before(known.First) {
		known.First = image.First
	}
	known.Containers += image.Containers
	known.FullExecutables = known.FullExecutables || image.FullExecutables
	known.FullDestinations = known.FullDestinations || image.FullDestinations
	known.Executables = merge(known.Executables, image.Executables, maxExecutables)
	known.Destinations = merge(known.Destinations, image.Destinations, maxDestinations)
}

func merge(into, from map[string]Fact, most int) map[string]Fact {
	if into == nil {
		into = map[string]Fact{}
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
			if f.First.Before(have.First) {
				have.First = f.First
			}
			if f.Last.After(have.Last) {
				have.Last = f.Last
			}
		}
		into[name] = have
	}
	return into
}

// Open reads a file of baselines; where there is none yet, nothing is known. A damaged file is put aside, and the error says
// where: learning begins again.
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
		if renamed := os.Rename(file, aside); renamed != nil {
			return b, errors.Join(err, renamed)
		}
		return b, fmt.Errorf("%s is put aside as %s, and learning begins again: %w", file, aside, err)
	}
	b.dirty = false
	return b, nil
}

// Save writes the file as a whole if anything was learnt since, and forgets images that nobody has any more.
func (b *Baselines) Save(file string) error {
	b.mu.Lock()
	for el := b.order.Back(); el != nil; {
		before := el.Prev()
		digest, _ := el.Value.(string)
		if b.opt.Now().Sub(b.images[digest].Last) > b.opt.Forget {
			b.drop(el)
			b.dirty = true
		}
		el = before
	}
	dirty := b.dirty
	b.dirty = false
	b.mu.Unlock()
	if !dirty {
		return nil
	}
	err := func() error {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(b.Write(f), f.Close()); err != nil {
			return err
		}
		return os.Rename(file+".new", file)
	}()
	if err != nil {
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
		return fmt.Errorf("keep the baselines: %w", err)
	}
	return nil
}
