package harness

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// AppendBenchRecord appends a benchmark's results to the file in $STANCH_BENCH_OUT, one JSON object per line. Without
// the variable it does nothing.
func AppendBenchRecord(b *testing.B, line map[string]any) {
	b.Helper()
	path := os.Getenv("STANCH_BENCH_OUT")
	if path == "" {
		return
	}
	raw, err := json.Marshal(line)
	require.NoError(b, err)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(b, err)
	_, err = f.Write(append(raw, '\n'))
	require.NoError(b, err)
	require.NoError(b, f.Close())
}
