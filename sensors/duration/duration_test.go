package duration_test

import (
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stanch/sensors/duration"
)

func TestParseAcceptsDaysAndWeeks(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "45s": 45 * time.Second, "1d": 24 * time.Hour, "1d12h": 36 * time.Hour, "2w": 14 * 24 * time.Hour,
		"1w1d1h1m1s": 193*time.Hour + time.Minute + time.Second,
		"1.5d":       36 * time.Hour, "1.5h": 90 * time.Minute, "250ms": 250 * time.Millisecond, "3650d": duration.Max,
		"10µs": 10 * time.Microsecond, ".5s": 500 * time.Millisecond,
	} {
		got, err := duration.Parse(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
}

func TestParseErrorNamesValidForms(t *testing.T) {
	for _, text := range []string{
		"", "1", "d", "1day", "-1h", "+1h", "1h ", " 1h", "1 h", "1.2.3h", "3651d", "522w",
		"99999999999999999999d", "9223372036854775807w", "1e3s", "1y", "1M", strings.Repeat("1h", 40),
	} {
		_, err := duration.Parse(text)
		require.ErrorIs(t, err, duration.ErrInvalid, text)
		assert.Regexp(t, "1d|3650d", err.Error(), "the error of %q names the remedy", text)
	}
}

func TestFormatIsCanonical(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "45s": 45 * time.Second, "2h": 2 * time.Hour, "1h30m": 90 * time.Minute, "1d": 24 * time.Hour,
		"1d12h": 36 * time.Hour, "14d": 2 * duration.Week,
		"1h5s": time.Hour + 5*time.Second, "250ms": 250 * time.Millisecond, "1m1.5s": time.Minute + 1500*time.Millisecond,
		"-1h30m": -90 * time.Minute,
	} {
		assert.Equal(t, want, duration.Format(d))
	}
	assert.NotPanics(t, func() { duration.Format(math.MinInt64) })
}

func TestFormatApproxRounds(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"12ms": 12345 * time.Microsecond, "1.2s": 1234 * time.Millisecond, "2m3s": 2*time.Minute + 3456*time.Millisecond,
		"0s": 3 * time.Microsecond,
	} {
		assert.Equal(t, want, duration.FormatApprox(d))
	}
}

func TestFlagAcceptsDaysAndShowsItsDefault(t *testing.T) {
	var d time.Duration
	f := duration.NewFlag(&d, 36*time.Hour)
	assert.Equal(t, "1d12h", f.String())
	require.NoError(t, f.Set("2w"))
	assert.Equal(t, duration.Max/3650*14, d)
	require.Error(t, f.Set("soon"))
	assert.Empty(t, duration.NewFlag(&d, 0).String(), "no default is shown")
}

// time.ParseDuration and the duration flags of pflag do not accept days.
func TestNoOtherPackageParsesDurations(t *testing.T) {
	own := regexp.MustCompile(`time\.ParseDuration\(|\.DurationVarP?\(`)
	read := 0
	require.NoError(t, filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testenv" || d.Name() == "duration" || strings.HasPrefix(d.Name(), ".") &&
			d.Name() != "../.." && len(d.Name()) > 2) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		read++
		assert.Empty(t, own.FindString(string(raw)), "%s: use package duration", path)
		return nil
	}))
	assert.Greater(t, read, 100, "the sources are elsewhere")
	source, err := os.ReadFile("duration.go")
	require.NoError(t, err)
	assert.Regexp(t, own, string(source), "this package is found by the same expression")
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"0", "1d12h", "2w", "1.5h", "250ms", "-1h", "99999999999999999999d", "1µs", "µ", "5.d",
		"3650d1ns",
	} {
		f.Add(text)
	}
	pattern := regexp.MustCompile(duration.Pattern)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := duration.Parse(text)
		if err != nil {
			require.ErrorIs(t, err, duration.ErrInvalid)
			return
		}
		require.True(t, pattern.MatchString(text), "the schema's pattern accepts %q", text)
		require.GreaterOrEqual(t, d, time.Duration(0))
		require.LessOrEqual(t, d, duration.Max)
		again, err := duration.Parse(duration.Format(d))
		require.NoError(t, err)
		require.Equal(t, d, again, "%q round trip", text)
		if whole, err := time.ParseDuration(text); err == nil {
			require.Equal(t, whole, d, "Go parses %q to the same value", text)
		}
	})
}
