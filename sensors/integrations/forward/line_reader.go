package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"stanch/sensors/integrations"
)

// line is one line, and the place behind it.
type line struct {
	text       []byte
	checkpoint checkpoint
	// tooLong: its text was thrown away.
	tooLong bool
}

// checkpoint is behind a line: in which file, and how far.
type checkpoint struct {
	fileID fileIdentity
	offset int64
}

// source gives lines one after the other, and is told up to where they are carried.
type source interface {
	// nextLine waits for a line. io.EOF is the end for good.
	nextLine(ctx context.Context) (line, error)
	commit(p checkpoint) error
}

// pipeReader reads a pipe.
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

// lineReader splits bytes into lines. A line without its end yet is kept until more comes.
type lineReader struct {
	input *bufio.Reader
	// consumedBytes counts the bytes up to the last line's end.
	consumedBytes int64
	// partialLine is a line without its end yet; skipping says that it is too long and its beginning was thrown away.
	partialLine  []byte
	pendingBytes int64 // bytes of part, with what was thrown away
	skipping     bool
	// joinedParts is what a container runtime has written in parts.
	joinedParts []byte
}

// next gives a line without its end; io.EOF says that there is none now.
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

// takeRemainder is the last line, when its end will not come any more.
func (r *lineReader) takeRemainder() []byte {
	text := r.partialLine
	r.consumedBytes += r.pendingBytes
	r.partialLine, r.pendingBytes, r.skipping = nil, 0, false
	return text
}

// assembleLine takes what a container runtime puts before a line away, and puts together what it has cut into parts. It tells
// whether there is a line to carry.
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

// parseContainerLogLine reads the form of container runtimes' log files: "2026-11-23T03:00:00.1Z stdout F {…}"; P is a part.
func parseContainerLogLine(text []byte) (rest []byte, partial, ok bool) {
	if len(text) == 0 || text[0] < '0' || text[0] > '9' {
		return nil, false, false
	}
	fields := bytes.SplitN(text, []byte(" "), 4)
	if len(fields) != 4 || string(fields[1]) != "stdout" && string(fields[1]) != "stderr" || len(fields[2]) == 0 || !bytes.Contains(fields[0], []byte("T")) {
		return nil, false, false
	}
	return fields[3], fields[2][0] == 'P', fields[2][0] == 'P' || fields[2][0] == 'F'
}
