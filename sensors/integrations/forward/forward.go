// Package forward sends the lines that another sensor writes to a file or a pipe to the Stanch gateway.
//
// It refuses to interpret the lines, which is the gateway's task. It refuses to read ahead: one batch is sent at a
// time, and while the gateway is unavailable nothing more is read, so that a pipe blocks its writer and a file waits.
// A line counts as delivered only after the gateway has responded. After a crash the last batch may be sent again; the
// gateway recognizes it by the IDs.
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

// Options configures a forwarder. Zero durations mean the defaults.
type Options struct {
	// Kind is the source kind of the sensor; see integrations.SourceKinds.
	Kind string
	// To is the URL of the gateway: "https://stanch.example:8443".
	To string
	// TokenFile contains the bearer token. It is read for each request, so that the token can be replaced at any time.
	TokenFile string
	// CA is a file with the CA certificate of the gateway; "" means the system's CAs.
	CA string
	// Plaintext allows http to another machine.
	Plaintext bool

	// File is the file to follow; "" reads Stdin to its end.
	File  string
	Stdin io.Reader `json:"-"`
	// State is the file that stores the checkpoint in File; "" stores none.
	State string
	// Beginning reads File from its beginning, instead of its end, if there is no checkpoint.
	Beginning bool
	// Once stops at the end of File.
	Once bool

	// Logf logs messages for people, such as rejected lines and an unavailable gateway. Nil discards them.
	Logf func(format string, args ...any) `json:"-"`

	// Poll is how often the end of a file is checked (default 250 ms). Linger is how long a batch waits for more lines
	// (default 500 ms).
	Poll, Linger time.Duration
	// BackoffMin and BackoffMax limit the delay between attempts (default 500 ms and 30 s).
	BackoffMin, BackoffMax time.Duration
}

// Summary counts what was delivered. Accepted, Telemetry, Health and Refused count lines by the gateway's response.
type Summary struct {
	Lines     int // lines that the gateway responded to
	Accepted  int
	Telemetry int
	Health    int
	Refused   int
	Batches   int
	Retries   int
}

// String returns the summary as a sentence.
func (s Summary) String() string {
	return fmt.Sprintf("%d lines: %d alerts accepted, %d telemetry, %d about health, %d refused", s.Lines, s.Accepted,
		s.Telemetry, s.Health, s.Refused)
}

// The limits of a batch. They are below the limits of one request to the gateway.
const (
	maxBatchLines = 500
	maxBatchBytes = 1 << 20
	// maxReadAheadLines is how many lines are read while a batch is being sent.
	maxReadAheadLines = 32
	// shutdownGrace is how long the last batch is retried at shutdown.
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

// endpointURL returns the URL of the kind's endpoint at the gateway.
func (o Options) endpointURL() (string, error) {
	if integrations.DecoderForKind(o.Kind) == nil {
		return "", fmt.Errorf("unknown sensor %q; use one of: %s", o.Kind, strings.Join(integrations.SourceKinds(), ", "))
	}
	u, err := url.Parse(o.To)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" ||
		u.User != nil {
		return "", fmt.Errorf("invalid gateway URL %q; use the form https://stanch.example:8443", o.To)
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && !o.Plaintext && u.Hostname() != "localhost" &&
		(ip == nil || !ip.IsLoopback()) {
		return "",
			fmt.Errorf(
				"the token would be sent to %s unencrypted; use https, or --plaintext if nobody can intercept the connection",
				u.Host,
			)
	}
	path := "/v1/" + o.Kind
	if !strings.HasSuffix(u.Path, path) {
		u.Path = strings.TrimSuffix(u.Path, "/") + path
	}
	return u.String(), nil
}

// Run forwards lines until the source or ctx ends, which is not an error. It returns an error if the options are
// invalid, the source cannot be read, the gateway has never accepted a request and rejects this one for good, or lines
// from a pipe could not be delivered before the end. The summary is also valid together with an error.
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
			for range lines {
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
					return sender.summary, nil // the checkpoint was not moved, so the lines are read again
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

// deliverBatch sends a batch. If ctx ends in the meantime, it retries for a short time, because lines from a pipe
// cannot be read again. Lines from a file are read again instead.
func deliverBatch(ctx context.Context, s *sender, batch []line) error {
	err := s.send(ctx, batch)
	if err == nil || ctx.Err() == nil || s.File != "" {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := s.send(last, s.unsent); err != nil {
		return fmt.Errorf("%d lines were read but not delivered: %w", len(s.unsent), err)
	}
	return nil
}

// collectBatch collects the available lines, and waits up to linger for more after the first one.
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

// readLines sends the lines of a source to out. It reads no further while out is full.
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

// fileExists reports whether the file exists.
func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
