package authority_test

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/authority"
)

// Nothing overwrites a key: processes that start at the same time agree on one.
func TestConcurrentStartsAgreeOnKeys(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	found := map[string]int{}
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			a, err := authority.OpenOrCreate(filepath.Join(dir, "keys"))
			if err != nil {
				t.Error(err)
				return
			}
			pki, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found[a.KeyID()]++
			found[string(pki.CACertPEM())]++
		})
	}
	all.Wait()
	require.Len(t, found, 2)
}
