// Package duration parses and formats durations in the one form that Stanch uses everywhere: in YAML files, flags,
// requests and all text for people. It parses the units of Go and also days and weeks. It formats days, hours, minutes
// and seconds, and omits parts that are zero.
//
// It refuses calendars: a day is always 24 hours and a week is 7 days, even across a daylight saving change.
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
	// Max is the longest duration that Parse accepts.
	Max = 3650 * Day
	// maxTextBytes is the longest text that Parse accepts, in bytes.
	maxTextBytes = 64
)

// Pattern is a regular expression (ECMA 262 and RE2) for the syntax that Parse accepts, for use in JSON schemas. It
// does not check the limits.
const Pattern = `^(0|(` + UnitPattern + `)+)$`

// UnitPattern is a regular expression for one number with its unit. A duration is one or more of them.
const UnitPattern = `([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d|w)`

var (
	// ErrInvalid is wrapped by every error of Parse.
	ErrInvalid = errors.New("invalid duration")
	errTooLong = fmt.Errorf("%w: longer than 3650d", ErrInvalid)
)

// Parse parses a duration such as "90s", "1h30m", "1d12h" or "2w". It accepts the units of Go as well as d and w. The
// result is between 0 and Max; "0" needs no unit. Every error wraps ErrInvalid and names the allowed forms.
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
		return 0, errors.New("longer than 3650d")
	}
	return d * times, nil
}

func invalidError(text string) error {
	if len(text) > maxTextBytes {
		text = text[:maxTextBytes] + "…"
	}
	return fmt.Errorf("%w %q; use a form such as 90s, 15m, 2h, 1d12h or 2w", ErrInvalid, text)
}

// prefixLength returns the number of leading bytes that satisfy ok.
func prefixLength(s string, ok func(byte) bool) int {
	for i := range len(s) {
		if !ok(s[i]) {
			return i
		}
	}
	return len(s)
}

// Format returns a duration exactly and without parts that are zero: "45s", "1h30m", "2h", "1d", "14d12h". Below a
// second it uses the form of Go ("250ms"). Zero is "0s". Parse accepts the result, unless it is negative or longer
// than Max.
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

// FormatApprox returns a measured duration with the precision that people need: seconds from a minute on, tenths of a
// second from a second on, milliseconds below.
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

// Flag is a command line flag with a duration. It implements pflag.Value.
type Flag struct{ target *time.Duration }

// NewFlag sets *to to the default value and returns the flag that sets it: flags.Var(duration.NewFlag(&d, time.Hour),
// …).
func NewFlag(to *time.Duration, value time.Duration) Flag {
	*to = value
	return Flag{to}
}

// Set parses text and sets the variable. The error wraps ErrInvalid.
func (f Flag) Set(text string) error {
	d, err := Parse(strings.TrimSpace(text))
	if err != nil {
		return err
	}
	*f.target = d
	return nil
}

// String returns the value of the flag, or "" if it is zero, so that the help text shows no default.
func (f Flag) String() string {
	if f.target == nil || *f.target == 0 {
		return ""
	}
	return Format(*f.target)
}

// Type returns the name of the value type in the help text.
func (Flag) Type() string { return "duration" }
