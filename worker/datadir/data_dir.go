// Package datadir locks a data directory for one process, and refuses one that another version wrote.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"stanch/sensors/durablefile"
)

// Format is the version of the data directory's content: workflow histories, keys, archive and state files. A
// change that an older or newer Stanch cannot read increments it.
const Format = 2

// dataFormatFile contains Format as decimal text. Directories of the first format have no such file.
const dataFormatFile = "format"

// Lock locks the data directory dir for this process, and creates it if it is missing. It returns an error, and
// changes nothing, if another process uses the directory or its format differs.
func Lock(dir string) (unlock func(), err error) {
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := checkDataFormat(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := lockFileExclusive(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: another Stanch instance is using it; stop that instance, or start this one with a different --data", dir)
	}
	if err := recordDataFormat(filepath.Join(dir, dataFormatFile)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	var once sync.Once
	return func() { once.Do(func() { _ = f.Close() }) }, nil
}

// recordDataFormat creates the format file, which is durable before anything else in the directory: data without it
// counts as data of the first format.
func recordDataFormat(path string) error {
	err := durablefile.Create(path, []byte(strconv.Itoa(Format)+"\n"), 0o600)
	if errors.Is(err, fs.ErrExist) {
		err = durablefile.Sync(path)
	}
	return err //nolint:wrapcheck // the caller adds context
}

// checkDataFormat returns an error if a Stanch with another data format wrote dir. Data without a format file has the
// first format; keys alone have none, because `stanch cert authority` creates them before the first start.
func checkDataFormat(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, dataFormatFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "temporal")); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return dataFormatError(dir, 1)
	}
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	format, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return fmt.Errorf("read %s: invalid data format %q; restore the file from a backup, or start this Stanch instance with a different "+
			"--data", filepath.Join(dir, dataFormatFile), strings.TrimSpace(string(raw)))
	}
	if format != Format {
		return dataFormatError(dir, format)
	}
	return nil
}

func dataFormatError(dir string, format int) error {
	age := "an older"
	if format > Format {
		age = "a newer"
	}
	return fmt.Errorf(
		"open %s: data format %d was written by %s version of Stanch, and this version reads format %d; use --data with an empty directory, or run the version that wrote it",
		dir,
		format,
		age,
		Format,
	)
}
