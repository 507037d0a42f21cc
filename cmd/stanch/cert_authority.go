package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
	"stanch/worker/authority"
	"stanch/worker/codec"
)

func writeKeySet(path string, set attestation.KeySet) error {
	raw, err := json.MarshalIndent(set, "", " ")
	if err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	if err := durablefile.Write(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	return nil
}

func createAuthority(dir string) error {
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	if _, err := authority.OpenOrCreate(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	if _, err := codec.Open(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	_, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	return err
}
