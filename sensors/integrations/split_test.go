package integrations_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/integrations"
)

func TestSplitRecordsAcceptsObjectArrayAndLines(t *testing.T) {
	for body, want := range map[string][]string{
		`{"a":1}`:                  {`1 {"a":1}`},
		"{\n \"a\": 1\n}\n":        {"1 {\n \"a\": 1\n}"},
		"\ufeff{\"a\":1}":          {`1 {"a":1}`},
		"{\"a\":1}\n\n{\"a\":2}\n": {`1 {"a":1}`, `3 {"a":2}`},
		"{\"a\":1}\nnonsense\r\n{": {`1 {"a":1}`, `2 nonsense`, `3 {`},
		`[{"a":1}, {"a":2}]`:       {`1 {"a":1}`, `2 {"a":2}`},
		`[]`:                       nil,
		`{`:                        {`1 {`},
	} {
		records, err := integrations.SplitRecords([]byte(body), 3)
		require.NoError(t, err, body)
		var got []string
		for _, r := range records {
			got = append(got, string(rune('0'+r.Line))+" "+string(r.Raw))
		}
		require.Equal(t, want, got, body)
	}
	for body, want := range map[string]string{
		"":                             "the body is empty",
		" \n ":                         "the body is empty",
		"[":                            "EOF",
		`[{"a":1}`:                     "the array is not closed",
		`[{"a":1},]`:                   "element 2",
		`[{}] {}`:                      "unexpected data after the array",
		"{}\n{}\n{}\n{}":               "more than 3 lines",
		"[{},{},{},{}]":                "more than 3 elements",
		"[" + nestedJSON(20_000) + "]": "element 1",
	} {
		_, err := integrations.SplitRecords([]byte(body), 3)
		require.ErrorContains(t, err, want, body[:min(len(body), 50)])
	}
}

func nestedJSON(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

func FuzzSplit(f *testing.F) {
	f.Add([]byte("{\"a\":1}\n{\"a\":2}"))
	f.Add([]byte(`[{"a":1},{"a":2}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		records, err := integrations.SplitRecords(body, 10)
		if err != nil {
			return
		}
		last := 0
		for _, r := range records {
			if r.Line <= last || len(r.Raw) == 0 || len(r.Raw) > len(body) {
				t.Fatalf("%+v", records)
			}
			last = r.Line
		}
		if len(records) > 10 {
			t.Fatal("too many")
		}
	})
}

// Long values are truncated, marked as truncated, and cost no more than a normal alert.
func TestLongFieldsAreTruncated(t *testing.T) {
	long := strings.Repeat("ä", 20_000)
	d := decodeAlert(t, integrations.DecodeFalco, falcoAlert("Run shell untrusted", "syscall",
		`"evt.type":"execve","proc.cmdline":"sh -c `+long+` tail","proc.exepath":"/`+long+`","k8s.pod.labels":"a:`+long+
			`, b:ok"`))
	require.True(t, d.Event.Process.ArgsTruncated)
	require.Len(t, d.Event.Process.Args, 3)
	require.LessOrEqual(t, len(strings.Join(d.Event.Process.Args, "")), 8<<10)
	require.LessOrEqual(t, len(d.Event.Process.Exe), 4096)
	require.True(t, strings.HasSuffix(d.Event.Process.Exe, "ä…"), "characters are not split")
	require.Equal(t, map[string]string{"b": "ok"}, d.Event.Container.Pod.Labels)
}
