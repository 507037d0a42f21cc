// Command images builds the container images of Stanch for every platform, without a container daemon, and writes an
// OCI archive, a bill of materials and a provenance statement of each, and the chart that installs them. With -push it
// also pushes the images to a registry.
//
// It refuses to exceed an image's size budget, and to put anything but the program into an image. The same commit gives
// the same digests on every machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// options are the flags of the command.
type options struct {
	version, sourceURL, outDir, registry string
	moduleDir                            string // "" is the current one
	platforms                            []v1.Platform
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	var o options
	flags.StringVar(&o.version, "version", "dev", "the `VERSION` of the programs, and the tag of the images")
	flags.StringVar(&o.sourceURL, "source", "", "the `URL` of the source repository, for the label and the provenance")
	flags.StringVar(&o.outDir, "out", "dist", "the `DIR` for the archives")
	flags.StringVar(&o.registry, "push", "", "push to this `REGISTRY` with its path: registry.example/security")
	flags.StringVar(&o.moduleDir, "C", "", "build the sources in this `DIR`")
	platforms := flags.String("platforms", "linux/amd64,linux/arm64", "the `PLATFORMS`, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err //nolint:wrapcheck // it names the flag
	}
	for text := range strings.SplitSeq(*platforms, ",") {
		p, err := v1.ParsePlatform(text)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return fmt.Errorf("invalid platform %q; use OS/ARCHITECTURE, such as linux/amd64", text)
		}
		o.platforms = append(o.platforms, *p)
	}
	s, err := readSource(ctx, o)
	if err != nil {
		return err
	}
	if o.registry != "" && s.Changed {
		return errors.New("push images: the checkout has changes that are not in a commit; commit them first, so that the " +
			"provenance is true")
	}
	if err := os.MkdirAll(o.outDir, 0o755); err != nil {
		return fmt.Errorf("create the directory for the archives: %w", err)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tPLATFORM\tDIGEST\tMIB\tBUDGET\tSECONDS")
	var exceeded []error
	images := chartImages{version: o.version, registry: o.registry, digests: map[string]string{}}
	for _, p := range programs() {
		built, err := buildProgram(ctx, p, s, o)
		if err != nil {
			return err
		}
		exceeded = append(exceeded, built.report(table))
		images.digests[p.Name] = built.digest.String()
		if o.registry != "" {
			if err := built.push(ctx, o.registry); err != nil {
				return err
			}
		}
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the images: %w", err)
	}
	return errors.Join(append(exceeded, writeChart(o.outDir, images))...)
}

// platformImage is the image of a program for one platform.
type platformImage struct {
	Platform v1.Platform
	Image    v1.Image
	Digest   v1.Hash
	Bytes    int64 // compressed
	SBOM     []byte
	Duration time.Duration // of compiling and packing
}

// builtProgram is a program with its images.
type builtProgram struct {
	program

	source     source
	images     []platformImage
	index      v1.ImageIndex
	digest     v1.Hash
	provenance []byte
}

func buildProgram(ctx context.Context, p program, s source, o options) (*builtProgram, error) {
	dir, err := os.MkdirTemp("", "images-")
	if err != nil {
		return nil, fmt.Errorf("create a directory for the programs: %w", err)
	}
	defer os.RemoveAll(dir)
	b := &builtProgram{program: p, source: s}
	for _, platform := range o.platforms {
		one, err := p.build(ctx, s, platform, dir)
		if err != nil {
			return nil, err
		}
		b.images = append(b.images, one)
	}
	if err := b.assemble(); err != nil {
		return nil, err
	}
	return b, b.write(o.outDir)
}

func (p program) build(ctx context.Context, s source, platform v1.Platform, dir string) (one platformImage, err error) {
	began := time.Now()
	one.Platform = platform
	file, err := p.compile(ctx, s, platform, dir)
	if err != nil {
		return one, err
	}
	if one.SBOM, err = writeSBOM(p, s, file); err != nil {
		return one, err
	}
	if one.Image, err = p.spec(s, platform, file).Build(); err != nil {
		return one, fmt.Errorf("make the image of %s for %s: %w", p.Name, platform, err)
	}
	if one.Digest, err = one.Image.Digest(); err != nil {
		return one, fmt.Errorf("make the image of %s for %s: %w", p.Name, platform, err)
	}
	manifest, err := one.Image.Manifest()
	if err != nil {
		return one, fmt.Errorf("make the image of %s for %s: %w", p.Name, platform, err)
	}
	for _, layer := range manifest.Layers {
		one.Bytes += layer.Size
	}
	one.Duration = time.Since(began)
	return one, nil
}

// report prints the images, and returns an error for those that are larger than their budget.
func (b *builtProgram) report(out io.Writer) error {
	var exceeded []error
	for _, one := range b.images {
		size := float64(one.Bytes) / (1 << 20)
		fmt.Fprintf(out, "%s:%s\t%s\t%s\t%.1f\t%.0f\t%.0f\n", b.Name, b.source.Version, one.Platform, one.Digest, size,
			b.BudgetMiB, one.Duration.Seconds())
		if size > b.BudgetMiB {
			exceeded = append(exceeded, fmt.Errorf("%s for %s has %.1f MiB; its budget is %.0f MiB: find what became larger, "+
				"or raise the budget in deploy/images/programs.go", b.Name, one.Platform, size, b.BudgetMiB))
		}
	}
	fmt.Fprintf(out, "%s:%s\tall\t%s\t\t\t\n", b.Name, b.source.Version, b.digest)
	return errors.Join(exceeded...)
}

// write writes the archive, the bills of materials and the provenance.
func (b *builtProgram) write(dir string) error {
	files := map[string][]byte{b.Name + ".provenance.json": b.provenance}
	for _, one := range b.images {
		files[b.Name+"-"+one.Platform.Architecture+".cdx.json"] = one.SBOM
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o644); err != nil { //nolint:gosec // people share them
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return b.writeArchive(filepath.Join(dir, b.Name+".oci.tar"))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
