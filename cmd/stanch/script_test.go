package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker/authority"
	"stanch/worker/freeport"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"stanch": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			err := rootCommand().ExecuteContext(ctx)
			stop()
			if err != nil && !errors.Is(err, errReported) {
				fmt.Fprintln(os.Stderr, "stanch:", err)
			}
			os.Exit(exitCode(err))
		}, "store-evidence": storeEvidenceCommand, "plant-evidence": plantEvidenceCommand,
		"post-detection": postDetectionCommand,
	})
}

const evidenceIncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

// storeEvidenceCommand is `store-evidence DATA TARGET NAME TEXT`: it stores an artifact as an activity does.
func storeEvidenceCommand() {
	auth, err := authority.OpenOrCreate(filepath.Join(os.Args[1], "keys"))
	exitOnError(err)
	store := &activities.EvidenceStore{Dir: filepath.Join(os.Args[1], "evidence"), Authority: auth}
	_, err = store.StoreArtifact(evidenceIncidentID, "pod.logs", os.Args[2],
		activities.Artifact{Name: os.Args[3], Data: []byte(os.Args[4])}, time.Now())
	exitOnError(err)
}

// plantEvidenceCommand is `plant-evidence DATA NAME TEXT`: it puts unsigned lines before all others, as an attacker
// who can write to the directory but has no key.
func plantEvidenceCommand() {
	data, dir := []byte(os.Args[3]), filepath.Join(os.Args[1], "evidence")
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	exitOnError(os.MkdirAll(filepath.Join(dir, "blobs", sum[:2]), 0o700))
	exitOnError(os.WriteFile(filepath.Join(dir, "blobs", sum[:2], sum), data, 0o600))
	body, err := json.Marshal(activities.ManifestEntry{
		IncidentID: evidenceIncidentID, Sequence: 1, Kind: "evidence",
		Evidence: &playbooks.EvidenceRef{Name: os.Args[2], SHA256: sum, SizeBytes: int64(len(data))},
	})
	exitOnError(err)
	spoofed, err := json.Marshal(activities.ManifestEntry{
		IncidentID: evidenceIncidentID, Sequence: 1, Kind: "evidence\x1b[2KSPOOF",
		Evidence: &playbooks.EvidenceRef{Name: "spoof", SHA256: "\x1b[2KSPOOF"},
	})
	exitOnError(err)
	path := filepath.Join(dir, "incidents", evidenceIncidentID+".jsonl")
	before, err := os.ReadFile(path)
	exitOnError(err)
	var text []byte
	for _, b := range [][]byte{body, spoofed} {
		line, err := json.Marshal(attestation.Envelope{
			PayloadType: attestation.PayloadTypeManifest,
			KeyID:       "0011223344556677", Payload: b, Signature: []byte("x"),
		})
		exitOnError(err)
		text = append(append(text, line...), '\n')
	}
	exitOnError(os.WriteFile(path, append(text, before...), 0o600))
}

func exitOnError(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// waitForOutput is `eventually REGEXP COMMAND…`: it runs a command until its output matches.
func waitForOutput(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually REGEXP COMMAND…")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	const limit = 90 * time.Second // much of it is Temporal's start on a busy machine
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		_ = ts.Exec(args[1], args[2:]...)
		out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if want.MatchString(out) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q does not appear in the output of %v:\n%s", args[0], args[1:], out)
		}
	}
}

// postDetectionCommand is `post-detection URL TOKEN TEXT`: it posts as another sensor does. NOW in TEXT is the
// current time.
func postDetectionCommand() {
	text := strings.ReplaceAll(os.Args[3], "NOW", time.Now().UTC().Format(time.RFC3339Nano))
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, os.Args[1], strings.NewReader(text))
	exitOnError(err)
	r.Header.Set("Authorization", "Bearer "+os.Args[2])
	resp, err := http.DefaultClient.Do(r)
	exitOnError(err)
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil || resp.StatusCode != http.StatusAccepted {
		exitOnError(fmt.Errorf("status %d, %w", resp.StatusCode, err))
	}
}

// Each file of testdata/script tests one part of the command line.
func TestScripts(t *testing.T) {
	recordings, err := filepath.Abs("../../testenv/recordings")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("RECORDINGS", recordings)
			ports, err := freeport.Find("127.0.0.1", 1)
			if err != nil {
				return err //nolint:wrapcheck // a test
			}
			e.Setenv("ADDRESS", net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])))
			return nil
		}, Cmds: map[string]func(*testscript.TestScript, bool, []string){"eventually": waitForOutput},
	})
}
