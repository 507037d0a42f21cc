// Package duration reads and writes durations the one way that Stanch uses everywhere: in YAML files, flags, requests
// and every text for people. It reads Go's units and, besides, days and weeks; it writes days, hours, minutes and
// seconds without parts that are zero.
//
// It refuses calendars: a day is 24 hours and a week is 7 days, also where a clock is changed in between.
package duration

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// Day is 24 hours.
	Day = 24 * time.Hour
	// Week is 7 days.
	Week = 7 * Day
	// Max bounds what Parse accepts.
	Max = 3650 * Day
	// maxTextBytes bounds the text that Parse reads.
	maxTextBytes = 64
)

// Pattern is the regular expression (ECMA 262 and RE2) of what Parse reads, for JSON schemas. It does not hold the bounds.
const Pattern = `^(0|(` + UnitPattern + `)+)$`

// UnitPattern is the regular expression of one number with its unit; a duration is one or more of them.
const UnitPattern = `([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d|w)`

var (
	// ErrInvalid is wrapped by every error of Parse.
	ErrInvalid = errors.New("invalid duration")
	errTooLong = fmt.Errorf("%w: longer than 3650d", ErrInvalid)
)

// Parse reads a duration such as "90s", "1h30m", "1d12h" or "2w": Go's units, and d and w. It is never negative and at
// most Max; zero needs no unit. Errors wrap ErrInvalid and name the forms that are allowed.
func Parse(text string) (time.Duration, error) {
	if text == "0" {
		return 0, nil
	}
	if text == "" || len(text) > maxTextBytes {
		return 0, invalidError(text)
	}
	var sum time.Duration
	for rest := text; rest != ""; {
		n := prefixLength(rest, func(c byte) bool { return c >= '0' && c <= '9' || c == '.' })
		u := prefixLength(rest[n:], func(c byte) bool { return c != '.' && (c < '0' || c > '9') })
		number, unit := rest[:n], rest[n:n+u]
		if n == 0 || u == 0 {
			return 0, invalidError(text)
		}
		rest = rest[n+u:]
		part, err := parsePart(number, unit)
		if err != nil {
			return 0, fmt.Errorf("%w %q: %w", ErrInvalid, text, err)
		}
		if sum += part; sum > Max { // each part is at most Max, so the sum cannot overflow
			return 0, fmt.Errorf("%w: %q", errTooLong, text)
		}
	}
	return sum, nil
}

func parsePart(number, unit string) (time.Duration, error) {
	times := time.Duration(1)
	switch unit {
	case "d":
		unit, times = "h", 24
	case "w":
		unit, times = "h", 7*24
	}
	d, err := time.ParseDuration(number + unit)
	if err != nil {
		return 0, errors.New("use units such as 90s, 15m, 2h, 1d or 2w")
	}
	if d > Max/times {
		return 0, errors.New("it is longer than 3650d")
	}
	return d * times, nil
}

func invalidError(text string) error {
	if len(text) > maxTextBytes {
		text = text[:maxTextBytes] + "…"
	}
	return fmt.Errorf("%w %q; use a form such as 90s, 15m, 2h, 1d12h or 2w", ErrInvalid, text)
}

// prefixLength is how many bytes from the start satisfy ok.
func prefixLength(s string, ok func(byte) bool) int {
	for i := range len(s) {
		if !ok(s[i]) {
			return i
		}
	}
	return len(s)
}

// Format writes a duration exactly and without parts that are zero: "45s", "1h30m", "2h", "1d", "14d12h". Below a
// second it writes Go's form ("250ms"). Parse reads what Format writes.
func Format(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	if d < 0 {
		b.WriteByte('-')
		if d = -d; d < 0 { // the smallest value has no positive counterpart
			d--
		}
	}
	for _, unit := range []struct {
		name string
		is   time.Duration
	}{{"d", Day}, {"h", time.Hour}, {"m", time.Minute}} {
		if n := d / unit.is; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + unit.name)
			d %= unit.is
		}
	}
	if d > 0 {
		b.WriteString(d.String())
	}
	return b.String()
}

// FormatApprox writes a measured duration as precisely as people need it: to the second from a minute on, to a tenth of a
// second from a second on, else to the millisecond.
func FormatApprox(d time.Duration) string {
	switch a := d.Abs(); {
	case a >= time.Minute:
		d = d.Round(time.Second)
	case a >= time.Second:
		d = d.Round(100 * time.Millisecond)
	default:
		d = d.Round(time.Millisecond)
	}
	return Format(d)
}

// Flag is a command line flag that Parse reads; it satisfies pflag.Value.
type Flag struct{ target *time.Duration }

// NewFlag sets a variable to its default and gives the flag that sets it: flags.Var(duration.NewFlag(&d, time.Hour), …).
func NewFlag(to *time.Duration, value time.Duration) Flag {
	*to = value
	return Flag{to}
}

// Set reads the flag's text.
func (f Flag) Set(text string) error {
	d, err := Parse(strings.TrimSpace(text))
	if err != nil {
		return err
	}
	*f.target = d
	return nil
}

// String is the flag's value; "" while it is zero, so that help names no default then.
func (f Flag) String() string {
	if f.target == nil || *f.target == 0 {
		return ""
	}
	return Format(*f.target)
}

// Type is what help calls the value.
func (Flag) Type() string { return "duration" }
