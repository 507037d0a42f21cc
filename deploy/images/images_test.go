package main

import (
	"archive/tar"
	"encoding/json"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"stanch/deploy/image"
)

var thisPlatform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// copyOfSources copies the checkout, with its commits, into another directory.
func copyOfSources(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.Mkdir(dir, 0o755))
	root := filepath.Join("..", "..")
	copied := exec.CommandContext(t.Context(), "sh", "-c",
		`{ git ls-files -z --cached --others --exclude-standard; printf '.git\0'; } | `+
			`xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh | tar -c --null -T - | tar -x -C "$0"`, dir)
	copied.Dir = root
	out, err := copied.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

func buildForTest(t *testing.T, p program, o options) *builtProgram {
	t.Helper()
	s, err := readSource(t.Context(), o)
	require.NoError(t, err)
	o.outDir = t.TempDir()
	b, err := buildProgram(t.Context(), p, s, o)
	require.NoError(t, err)
	return b
}

// Two people who build the same commit in different directories get the same digests.
func TestImagesAreReproducible(t *testing.T) {
	elsewhere := copyOfSources(t)
	for _, p := range programs() {
		t.Run(p.Name, func(t *testing.T) {
			o := options{version: "v1.2.3", platforms: []v1.Platform{thisPlatform}}
			here := buildForTest(t, p, o)
			o.moduleDir = elsewhere
			there := buildForTest(t, p, o)
			require.Equal(t, here.digest, there.digest)
			require.Equal(t, here.images[0].SBOM, there.images[0].SBOM)
			require.Equal(t, here.provenance, there.provenance)

			if p.Name == "stanch" {
				return // linking it takes longest
			}
			o.version = "v1.2.4"
			require.NotEqual(t, here.digest, buildForTest(t, p, o).digest, "the digest is that of the content")
		})
	}
}

func TestImagesOfAllPlatformsArePushed(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true)))
	defer server.Close()
	sensor := programs()[1]
	o := options{version: "v1.2.3", platforms: []v1.Platform{
		{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"},
	}}
	b := buildForTest(t, sensor, o)
	host := strings.TrimPrefix(server.URL, "http://") + "/security"
	require.NoError(t, b.push(t.Context(), host))

	reference, err := name.ParseReference(host + "/stanch-sensor:v1.2.3")
	require.NoError(t, err)
	for i, platform := range o.platforms {
		pulled, err := remote.Image(reference, remote.WithPlatform(platform))
		require.NoError(t, err)
		digest, err := pulled.Digest()
		require.NoError(t, err)
		require.Equal(t, b.images[i].Digest, digest)
		requireImageOf(t, pulled, platform)
		bom := readReferrer(t, reference.Context().Digest(digest.String()), sbomMediaType)
		var components cyclonedx.BOM
		require.NoError(t, json.Unmarshal(bom, &components))
		requireComponent(t, components, "github.com/cilium/ebpf")
	}
	statementJSON := readReferrer(t, reference.Context().Digest(b.digest.String()), provenanceMediaType)
	var st statement
	require.NoError(t, json.Unmarshal(statementJSON, &st))
	require.Equal(t, b.digest.Hex, st.Subject[0].Digest["sha256"])
	require.Len(t, st.Subject, 3)
	if b.source.Changed { // images of a changed checkout are not those of its commit
		require.Empty(t, st.Predicate.BuildDefinition.ResolvedDependencies)
		return
	}
	require.Equal(t, b.source.Revision, st.Predicate.BuildDefinition.ResolvedDependencies[0].Digest["gitCommit"])
}

// requireImageOf requires that an image contains the sensor and users, and nothing else.
func requireImageOf(t *testing.T, pulled v1.Image, platform v1.Platform) {
	t.Helper()
	config, err := pulled.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, platform.Architecture, config.Architecture)
	require.Equal(t, []string{"/stanch-sensor"}, config.Config.Entrypoint)
	require.Equal(t, "0:0", config.Config.User)
	require.Equal(t, "v1.2.3", config.Config.Labels["org.opencontainers.image.version"])
	require.Equal(t, config.Created.UTC().Format("2006-01-02T15:04:05Z"),
		config.Config.Labels["org.opencontainers.image.created"])
	content := mutate.Extract(pulled)
	defer content.Close()
	var files []string
	for archive := tar.NewReader(content); ; {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		files = append(files, header.Name)
		require.Zero(t, header.Uid)
		require.True(t, header.ModTime.Unix() == 0, "%s has a time: %s", header.Name, header.ModTime)
	}
	require.ElementsMatch(t, []string{"etc", "etc/group", "etc/passwd", "stanch-sensor"}, files)
}

// readReferrer returns the content of the only artifact of a kind that refers to a manifest.
func readReferrer(t *testing.T, subject name.Digest, kind string) []byte {
	t.Helper()
	index, err := remote.Referrers(subject, remote.WithFilter("artifactType", kind))
	require.NoError(t, err)
	listed, err := index.IndexManifest()
	require.NoError(t, err)
	require.Len(t, listed.Manifests, 1)
	artifact, err := remote.Image(subject.Context().Digest(listed.Manifests[0].Digest.String()))
	require.NoError(t, err)
	layers, err := artifact.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	content, err := layers[0].Compressed()
	require.NoError(t, err)
	defer content.Close()
	raw, err := io.ReadAll(content)
	require.NoError(t, err)
	return raw
}

func requireComponent(t *testing.T, bom cyclonedx.BOM, module string) {
	t.Helper()
	for _, c := range *bom.Components {
		if c.Name == module {
			require.NotEmpty(t, c.Version)
			require.NotEmpty(t, *c.Hashes)
			require.Contains(t, c.PackageURL, "pkg:golang/"+module+"@"+c.Version)
			return
		}
	}
	t.Fatalf("%s is not in the bill of materials", module)
}

func TestArchiveNamesItsImage(t *testing.T) {
	built, err := image.Spec{Platform: thisPlatform, Files: map[string]image.File{"/a": {Data: []byte("a")}}}.Build()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "a.tar")
	out, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, image.WriteArchive(out, built, "localhost/a:1", "localhost/a:2"))
	require.NoError(t, out.Close())
	got, err := image.ArchiveName(file)
	require.NoError(t, err)
	require.Equal(t, "localhost/a:1", got)
	require.NoError(t, os.WriteFile(file, []byte("no archive"), 0o600))
	_, err = image.ArchiveName(file)
	require.ErrorContains(t, err, "read the index of")
}

func TestImageAboveItsBudgetIsAnError(t *testing.T) {
	b := &builtProgram{
		program: program{Name: "stanch", BudgetMiB: 10},
		images:  []platformImage{{Platform: thisPlatform, Bytes: 10 << 20}},
	}
	require.NoError(t, b.report(io.Discard))
	b.images[0].Bytes++
	require.ErrorContains(t, b.report(io.Discard), "its budget is 10 MiB")
}

func TestInvalidFlagsAreErrors(t *testing.T) {
	for want, args := range map[string][]string{
		`invalid platform "linux"`: {"-platforms", "linux"},
		"provided but not defined": {"-platform", "linux/amd64"},
	} {
		require.ErrorContains(t, run(t.Context(), args, io.Discard), want)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	require.ErrorContains(t, run(t.Context(), nil, io.Discard), "use seconds since 1970")
}
