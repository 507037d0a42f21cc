package corpus

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"

	"stanch/playbooks/recording"
)

// maxFilesPerFolder is the maximum number of files in one directory.
const maxFilesPerFolder = 1000

// Write writes a corpus to a directory, one file per recording, and returns its size in bytes.
func Write(o Options, dir string) (bytes int64, err error) {
	all, err := Generate(o)
	if err != nil {
		return 0, err
	}
	for i, r := range all {
		raw, err := recording.Encode(r)
		if err != nil {
			return bytes, fmt.Errorf("recording %d: %w", i, err)
		}
		folder := filepath.Join(dir, fmt.Sprintf("%04d", i/maxFilesPerFolder))
		if i%maxFilesPerFolder == 0 {
			if err := os.MkdirAll(folder, 0o750); err != nil {
				return bytes, fmt.Errorf("write a corpus: %w", err)
			}
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%06d.json", i)), raw, 0o600); err != nil {
			return bytes, fmt.Errorf("write a corpus: %w", err)
		}
		bytes += int64(len(raw))
	}
	return bytes, nil
}

// WriteLines writes a corpus to one file, one recording per line.
func WriteLines(o Options, file string) (bytes int64, err error) {
	all, err := Generate(o)
	if err != nil {
		return 0, err
	}
	f, err := os.Create(file)
	if err != nil {
		return 0, fmt.Errorf("write a corpus: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	for i, r := range all {
		raw, err := recording.EncodeLine(r)
		if err == nil {
			_, err = w.Write(raw)
		}
		if err != nil {
			_ = f.Close()
			return bytes, fmt.Errorf("recording %d: %w", i, err)
		}
		bytes += int64(len(raw))
	}
	if err := w.Flush(); err != nil {
		_ = f.Close()
		return bytes, fmt.Errorf("write a corpus: %w", err)
	}
	if err := f.Close(); err != nil {
		return bytes, fmt.Errorf("write a corpus: %w", err)
	}
	return bytes, nil
}
