// Package forward carries the lines that another sensor writes, into a file or a pipe, to Stanch's gateway.
//
// It refuses to look into them: what a line means the gateway decides. It refuses to run ahead: one batch is under way,
// and while the gateway is away nothing more is read, so that a pipe fills and a file waits. A line counts as carried
// when the gateway has answered for it, and never before; after a crash the last batch may be sent again, and is known
// by its ids.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"stanch/sensors/integrations"
)

// Options say what goes where. The zero values of the durations and bounds are sensible.
type Options struct {
	// Kind is the sensor's, as foreign.SourceKinds lists them.
	Kind string
	// To is the gateway's address: "https://stanch.example:8443".
	To string
	// TokenFile is read for each request: a token may be replaced while this runs.
	TokenFile string
	// CA is a file with the certificate authority; "" are the system's.
	CA string
	// Plaintext permits http to another machine.
	Plaintext bool

	// File is what is followed; "" reads Stdin to its end.
	File  string
	Stdin io.Reader `json:"-"`
	// State is where the place in File is kept; "" does not keep it.
	State string
	// Beginning: without a place that was kept, File is read from its beginning and not from its end.
	Beginning bool
	// Once ends at the end of File.
	Once bool

	// Logf is told what people should know: what was refused, that the gateway is away.
	Logf func(format string, args ...any) `json:"-"`

	// Poll is how often a file's end is looked at, Linger how long a batch waits for more lines.
	Poll, Linger time.Duration
	// BackoffMin and BackoffMax bound the wait between attempts.
	BackoffMin, BackoffMax time.Duration
}

// Summary is what was carried.
type Summary struct {
	Lines     int // that the gateway answered for
	Accepted  int
	Telemetry int
	Health    int
	Refused   int
	Batches   int
	Retries   int
}

func (s Summary) String() string {
	return fmt.Sprintf("%d lines: %d alerts accepted, %d telemetry, %d about health, %d refused", s.Lines, s.Accepted, s.Telemetry, s.Health, s.Refused)
}

// The bounds of a batch: below those of one request to the gateway.
const (
	maxBatchLines = 500
	maxBatchBytes = 1 << 20
	// maxReadAheadLines are the lines that are read while a batch is under way.
	maxReadAheadLines = 32
	// shutdownGrace is how long the last batch is tried when it is told to end.
	shutdownGrace = 5 * time.Second
)

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.Poll, 250*time.Millisecond)
	set(&o.Linger, 500*time.Millisecond)
	set(&o.BackoffMin, 500*time.Millisecond)
	set(&o.BackoffMax, 30*time.Second)
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	return o
}

// endpointURL is the door of a kind at the gateway's address.
func (o Options) endpointURL() (string, error) {
	if integrations.DecoderForKind(o.Kind) == nil {
		return "", fmt.Errorf("there is no sensor %q; known here: %s", o.Kind, strings.Join(integrations.SourceKinds(), ", "))
	}
	u, err := url.Parse(o.To)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("%q is not the gateway's address, such as https://stanch.example:8443", o.To)
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && !o.Plaintext && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", fmt.Errorf("the token would go to %s in the clear: use https, or say --plaintext if nobody can listen on the way", u.Host)
	}
	door := "/v1/" + o.Kind
	if !strings.HasSuffix(u.Path, door) {
		u.Path = strings.TrimSuffix(u.Path, "/") + door
	}
	return u.String(), nil
}

// Run carries lines until the source ends or ctx does. What is returned with an error was carried before it.
func Run(ctx context.Context, o Options) (Summary, error) {
	o = o.withDefaults()
	target, err := o.endpointURL()
	if err != nil {
		return Summary{}, err
	}
	sender, err := newSender(o, target)
	if err != nil {
		return Summary{}, err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	lines, ended := make(chan line, maxReadAheadLines), make(chan error, 1)
	var in source = &pipeReader{input: o.Stdin}
	if o.File != "" {
		follower, err := openFollower(o)
		if err != nil {
			return Summary{}, err
		}
		in = follower
		defer func() {
			stop()
			for range lines { //nolint:revive // the file is closed when nobody reads it any more
			}
			follower.close()
		}()
	}
	go func() {
		defer close(lines)
		ended <- readLines(reading, in, lines)
	}()
	for {
		batch, more := collectBatch(ctx, lines, o.Linger)
		if len(batch) > 0 {
			if err := deliverBatch(ctx, sender, batch); err != nil {
				if o.File != "" && ctx.Err() != nil {
					return sender.summary, nil // it is read again: its place was not moved
				}
				return sender.summary, err
			}
			if err := in.commit(batch[len(batch)-1].checkpoint); err != nil {
				return sender.summary, err
			}
		}
		if ctx.Err() != nil {
			return sender.summary, nil
		}
		if !more {
			if err := <-ended; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
				return sender.summary, err
			}
			return sender.summary, nil
		}
	}
}

// deliverBatch sends a batch, and once more for a short while if it is told to end meanwhile: what came through a pipe comes
// only once, and what is in a file is read again.
func deliverBatch(ctx context.Context, s *sender, batch []line) error {
	err := s.send(ctx, batch)
	if err == nil || ctx.Err() == nil || s.File != "" {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := s.send(last, s.unsent); err != nil {
		return fmt.Errorf("%d lines were read and not carried: %w", len(s.unsent), err)
	}
	return nil
}

// collectBatch takes what is there, and waits a little for more once there is something.
func collectBatch(ctx context.Context, lines <-chan line, linger time.Duration) (batch []line, more bool) {
	size := 0
	var late <-chan time.Time
	for len(batch) < maxBatchLines && size < maxBatchBytes {
		select {
		case l, ok := <-lines:
			if !ok {
				return batch, false
			}
			batch, size = append(batch, l), size+len(l.text)
			if late == nil {
				timer := time.NewTimer(linger)
				defer timer.Stop()
				late = timer.C
			}
		case <-late:
			return batch, true
		case <-ctx.Done():
			for {
				select {
				case l, ok := <-lines:
					if ok {
						batch = append(batch, l)
						continue
					}
				default:
				}
				return batch, true
			}
		}
	}
	return batch, true
}

// readLines gives the lines of a source to whoever sends them; while nobody takes one, it reads no further.
func readLines(ctx context.Context, in source, out chan<- line) error {
	for {
		l, err := in.nextLine(ctx)
		if err != nil {
			return err
		}
		select {
		case out <- l:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fileExists tells whether there is a file yet.
func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
