package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/proof"
	"stanch/worker/authority"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"stanch": func() {
		err := command().Execute()
		if err != nil && !errors.Is(err, errAnswered) {
			fmt.Fprintln(os.Stderr, "stanch:", err)
		}
		os.Exit(exitCode(err))
	}, "keep": keep, "plant": plant})
}

const keptFor = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

// keep is `keep DATA TARGET NAME TEXT`: it stores a piece as an activity does.
func keep() {
	auth, err := authority.Open(filepath.Join(os.Args[1], "keys"))
	must(err)
	store := &activities.EvidenceStore{Dir: filepath.Join(os.Args[1], "evidence"), Authority: auth}
	_, err = store.Put(context.Background(), keptFor, "pod.logs", os.Args[2], activities.Piece{Name: os.Args[3], Data: []byte(os.Args[4])}, time.Now())
	must(err)
}

// plant is `plant DATA NAME TEXT`: somebody who may write to the directory, and has no key, puts bytes of their own
// before everything else.
func plant() {
	data, dir := []byte(os.Args[3]), filepath.Join(os.Args[1], "evidence")
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	must(os.MkdirAll(filepath.Join(dir, "blobs", sum[:2]), 0o700))
	must(os.WriteFile(filepath.Join(dir, "blobs", sum[:2], sum), data, 0o600))
	body, err := json.Marshal(activities.Entry{Incident: keptFor, Seq: 1, Kind: "evidence", Evidence: &playbooks.EvidenceRef{Name: os.Args[2], SHA256: sum, Bytes: int64(len(data))}})
	must(err)
	spoofed, err := json.Marshal(activities.Entry{
		Incident: keptFor, Seq: 1, Kind: "evidence\x1b[2KSPOOF", Evidence: &playbooks.EvidenceRef{Name: "spoof", SHA256: "\x1b[2KSPOOF"},
	})
	must(err)
	path := filepath.Join(dir, "incidents", keptFor+".jsonl")
	before, err := os.ReadFile(path)
	must(err)
	var text []byte
	for _, b := range [][]byte{body, spoofed} {
		line, err := json.Marshal(proof.Signed{Purpose: proof.PurposeCustody, KeyID: "0011223344556677", Body: b, Sig: []byte("x")})
		must(err)
		text = append(append(text, line...), '\n')
	}
	must(os.WriteFile(path, append(text, before...), 0o600))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Each file of testdata/script is one behaviour of the command line.
func TestScripts(t *testing.T) {
	recordings, err := filepath.Abs("../../testenv/recordings")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true, Setup: func(e *testscript.Env) error {
		e.Setenv("RECORDINGS", recordings)
		return nil
	}})
}
