package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"stanch/sensors/integrations"
)

// line is one line with the checkpoint after it.
type line struct {
	text       []byte
	checkpoint checkpoint
	// tooLong reports whether the line was too long, so that its text was discarded.
	tooLong bool
}

// checkpoint is a position in a file.
type checkpoint struct {
	fileID fileIdentity
	offset int64
}

// source returns lines one by one, and records up to which checkpoint they were delivered.
type source interface {
	// nextLine waits for a line. It returns io.EOF at the final end.
	nextLine(ctx context.Context) (line, error)
	commit(p checkpoint) error
}

// pipeReader reads lines from a pipe.
type pipeReader struct {
	input io.Reader
	lines *lineReader
}

func (s *pipeReader) nextLine(context.Context) (line, error) {
	if s.lines == nil {
		s.lines = &lineReader{input: bufio.NewReaderSize(s.input, 64<<10)}
	}
	for {
		text, tooLong, err := s.lines.next()
		switch {
		case errors.Is(err, io.EOF) && len(s.lines.partialLine) > 0:
			text = s.lines.takeRemainder()
		case err != nil:
			return line{}, err
		}
		if l, ok := s.lines.assembleLine(text, tooLong); ok {
			return l, nil
		}
	}
}

func (s *pipeReader) commit(checkpoint) error { return nil }

// lineReader splits a stream into lines. It keeps an incomplete line until the rest arrives.
type lineReader struct {
	input *bufio.Reader
	// consumedBytes is the number of bytes up to the end of the last complete line.
	consumedBytes int64
	// partialLine is the incomplete line. skipping reports whether that is too long and its beginning was discarded.
	partialLine  []byte
	pendingBytes int64 // bytes of the incomplete line, including discarded ones
	skipping     bool
	// joinedParts is a line that a container runtime splits into several log lines.
	joinedParts []byte
}

// next returns the next line without its line break, or io.EOF if none is complete.
func (r *lineReader) next() (text []byte, tooLong bool, err error) {
	for {
		chunk, err := r.input.ReadSlice('\n')
		r.pendingBytes += int64(len(chunk))
		if len(r.partialLine)+len(chunk) > integrations.MaxRecordBytes+1 {
			r.partialLine, r.skipping = nil, true
		} else if !r.skipping {
			r.partialLine = append(r.partialLine, chunk...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		text, tooLong = bytes.TrimRight(r.partialLine, "\r\n"), r.skipping
		r.consumedBytes += r.pendingBytes
		r.partialLine, r.pendingBytes, r.skipping = nil, 0, false
		return text, tooLong, nil
	}
}

// takeRemainder returns the last, incomplete line.
func (r *lineReader) takeRemainder() []byte {
	text := r.partialLine
	r.consumedBytes += r.pendingBytes
	r.partialLine, r.pendingBytes, r.skipping = nil, 0, false
	return text
}

// assembleLine removes the prefix of a container runtime from a line, and joins lines that the runtime has split. It
// reports whether there is a line to deliver.
func (r *lineReader) assembleLine(text []byte, tooLong bool) (line, bool) {
	if rest, partial, ok := parseContainerLogLine(text); ok {
		if r.joinedParts = append(r.joinedParts, rest...); len(r.joinedParts) > integrations.MaxRecordBytes {
			tooLong, r.joinedParts = true, nil
		}
		if partial {
			return line{}, false
		}
		text, r.joinedParts = r.joinedParts, nil
	}
	if text = bytes.TrimSpace(text); len(text) == 0 && !tooLong {
		return line{}, false
	}
	return line{text: text, tooLong: tooLong}, true
}

// parseContainerLogLine parses the log format of container runtimes: "2026-11-23T03:00:00.1Z stdout F {…}". P marks a
// part of a line.
func parseContainerLogLine(text []byte) (rest []byte, partial, ok bool) {
	if len(text) == 0 || text[0] < '0' || text[0] > '9' {
		return nil, false, false
	}
	fields := bytes.SplitN(text, []byte(" "), 4)
	if len(fields) != 4 || string(fields[1]) != "stdout" && string(fields[1]) != "stderr" || len(fields[2]) == 0 ||
		!bytes.Contains(fields[0], []byte("T")) {
		return nil, false, false
	}
	return fields[3], fields[2][0] == 'P', fields[2][0] == 'P' || fields[2][0] == 'F'
}
