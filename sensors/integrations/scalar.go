package integrations

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// scalar is a JSON value that some versions encode as a string and others as a number: protobuf encodes 64-bit numbers
// as strings, and some encoders write wrappers as {"value":…}. It stores the text, and so every digit.
type scalar string

// UnmarshalJSON stores an empty value for JSON that is not a scalar, so that one malformed field does not invalidate
// the alert.
func (s *scalar) UnmarshalJSON(raw []byte) error {
	*s = ""
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil
	}
	switch raw[0] {
	case '"':
		var text string
		if json.Unmarshal(raw, &text) == nil && text != "<NA>" {
			*s = scalar(text)
		}
	case '{':
		var wrapper struct {
			Value scalar `json:"value"`
		}
		if json.Unmarshal(raw, &wrapper) == nil {
			*s = wrapper.Value
		}
	case '[', 'n':
	default:
		*s = scalar(raw)
	}
	return nil
}

// uint64 returns the number, which may be hexadecimal with 0x. It returns 0 for a value that is negative, too large or
// not a number.
func (s scalar) uint64() uint64 {
	text := strings.TrimSpace(string(s))
	base := 10
	if hex, ok := strings.CutPrefix(strings.ToLower(text), "0x"); ok {
		text, base = hex, 16
	}
	n, err := strconv.ParseUint(text, base, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s scalar) uint32() uint32 {
	if n := s.uint64(); n <= math.MaxUint32 {
		return uint32(n)
	}
	return 0
}

func (s scalar) port() uint16 {
	if n := s.uint64(); n <= math.MaxUint16 {
		return uint16(n)
	}
	return 0
}

func (s scalar) bool() bool { return strings.EqualFold(string(s), "true") || s == "1" }

// nanoseconds returns the time for a Unix time in nanoseconds, or the zero time.
func (s scalar) nanoseconds() time.Time {
	n := s.uint64()
	if n == 0 || n > math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, int64(n))
}

// timestamp is a time. It is zero for an invalid value.
type timestamp struct{ time.Time }

// UnmarshalJSON decodes RFC 3339, or protobuf's {"seconds":…,"nanos":…}. It ignores other values.
func (i *timestamp) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
			i.Time = t
		}
		return nil
	}
	var parts struct {
		Seconds scalar `json:"seconds"`
		Nanos   scalar `json:"nanos"`
	}
	if json.Unmarshal(raw, &parts) == nil && parts.Seconds.uint64() < 1<<40 {
		i.Time = time.Unix(int64(parts.Seconds.uint64()), int64(parts.Nanos.uint32()))
	}
	return nil
}

// parseAddress returns an IP address in canonical form and its family, or "" for an invalid address.
func parseAddress(s string) (ip, family string) {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return "", ""
	}
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a.String(), "ipv4"
	}
	return a.String(), "ipv6"
}
