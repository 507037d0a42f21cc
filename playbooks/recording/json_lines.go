package recording

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// EncodeLine returns a recording as one line of JSON with its newline, for files with many recordings. The SHA-256
// covers the newline.
func EncodeLine(r Recording) ([]byte, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	r.SHA256 = zeroHash
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		return nil, fmt.Errorf("write the recording: %w", err)
	}
	if b.Len() > MaxBytes {
		return nil, fmt.Errorf("the recording is %d bytes; the maximum is %d", b.Len(), MaxBytes)
	}
	sum := sha256.Sum256(b.Bytes())
	return bytes.Replace(b.Bytes(), []byte(zeroHash), []byte(hex.EncodeToString(sum[:])), 1), nil
}

// ReadLines calls each for every non-empty line of a file of recordings, with its newline; pass the line to Decode. It
// stops with an error at a line longer than MaxBytes, because the next line cannot be found.
func ReadLines(r io.Reader, each func(n int, line []byte) error) error {
	in := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		var line []byte
		for {
			part, err := in.ReadSlice('\n')
			line = append(line, part...)
			if len(line) > MaxBytes {
				return fmt.Errorf("line %d exceeds the maximum of %d bytes", n, MaxBytes)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("line %d: %w", n, err)
			}
			if len(bytes.TrimSpace(line)) > 0 {
				if failed := each(n, line); failed != nil {
					return failed
				}
			}
			if err != nil {
				return nil //nolint:nilerr // the end of the file
			}
			break
		}
	}
}
