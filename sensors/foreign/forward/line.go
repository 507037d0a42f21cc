package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"stanch/sensors/foreign"
)

// line is one line, and the place behind it.
type line struct {
	text  []byte
	place place
	// tooLong: its text was thrown away.
	tooLong bool
}

// place is behind a line: in which file, and how far.
type place struct {
	file   identity
	offset int64
}

// source gives lines one after the other, and is told up to where they are carried.
type source interface {
	// next waits for a line. io.EOF is the end for good.
	next(ctx context.Context) (line, error)
	carried(p place) error
}

// stream reads a pipe.
type stream struct {
	from   io.Reader
	reader *lineReader
}

func (s *stream) next(context.Context) (line, error) {
	if s.reader == nil {
		s.reader = &lineReader{from: bufio.NewReaderSize(s.from, 64<<10)}
	}
	for {
		text, tooLong, err := s.reader.next()
		switch {
		case errors.Is(err, io.EOF) && len(s.reader.part) > 0:
			text = s.reader.rest()
		case err != nil:
			return line{}, err
		}
		if l, ok := s.reader.whole(text, tooLong); ok {
			return l, nil
		}
	}
}

func (s *stream) carried(place) error { return nil }

// lineReader splits bytes into lines. A line without its end yet is kept until more comes.
type lineReader struct {
	from *bufio.Reader
	// read counts the bytes up to the last line's end.
	read int64
	// part is a line without its end yet; skipping says that it is too long and its beginning was thrown away.
	part     []byte
	pending  int64 // bytes of part, with what was thrown away
	skipping bool
	// joined is what a container runtime has written in parts.
	joined []byte
}

// next gives a line without its end; io.EOF says that there is none now.
func (r *lineReader) next() (text []byte, tooLong bool, err error) {
	for {
		chunk, err := r.from.ReadSlice('\n')
		r.pending += int64(len(chunk))
		if len(r.part)+len(chunk) > foreign.MaxRecord+1 {
			r.part, r.skipping = nil, true
		} else if !r.skipping {
			r.part = append(r.part, chunk...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		text, tooLong = bytes.TrimRight(r.part, "\r\n"), r.skipping
		r.read += r.pending
		r.part, r.pending, r.skipping = nil, 0, false
		return text, tooLong, nil
	}
}

// rest is the last line, when its end will not come any more.
func (r *lineReader) rest() []byte {
	text := r.part
	r.read += r.pending
	r.part, r.pending, r.skipping = nil, 0, false
	return text
}

// whole takes what a container runtime puts before a line away, and puts together what it has cut into parts. It tells
// whether there is a line to carry.
func (r *lineReader) whole(text []byte, tooLong bool) (line, bool) {
	if rest, partial, ok := unwrap(text); ok {
		if r.joined = append(r.joined, rest...); len(r.joined) > foreign.MaxRecord {
			tooLong, r.joined = true, nil
		}
		if partial {
			return line{}, false
		}
		text, r.joined = r.joined, nil
	}
	if text = bytes.TrimSpace(text); len(text) == 0 && !tooLong {
		return line{}, false
	}
	return line{text: text, tooLong: tooLong}, true
}

// unwrap reads the form of container runtimes' log files: "2026-11-23T03:00:00.1Z stdout F {…}"; P is a part.
func unwrap(text []byte) (rest []byte, partial, ok bool) {
	if len(text) == 0 || text[0] < '0' || text[0] > '9' {
		return nil, false, false
	}
	fields := bytes.SplitN(text, []byte(" "), 4)
	if len(fields) != 4 || string(fields[1]) != "stdout" && string(fields[1]) != "stderr" || len(fields[2]) == 0 || !bytes.Contains(fields[0], []byte("T")) {
		return nil, false, false
	}
	return fields[3], fields[2][0] == 'P', fields[2][0] == 'P' || fields[2][0] == 'F'
}
