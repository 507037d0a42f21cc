package powerloss_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // the driver of Temporal's SQLite plugin

	"stanch/testenv/powerloss"
	"stanch/worker/embeddedtemporal"
)

// openTemporalDatabase opens a database as Temporal does: with a write-ahead log that is synced at checkpoints only.
func openTemporalDatabase(t *testing.T, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "temporal.db")+
		"?_pragma=journal_mode(wal)&_pragma=synchronous(normal)")
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	return db
}

// A detection that was acknowledged is in a row that a power loss does not take.
func TestPersistedRowOfTemporalSurvivesPowerLoss(t *testing.T) {
	powerloss.Check(t, powerloss.Operation{
		MappedFiles: []string{"temporal.db-shm"},
		Prepare: func(t *testing.T, dir string) {
			db := openTemporalDatabase(t, dir)
			_, err := db.ExecContext(context.Background(), "CREATE TABLE executions (id TEXT)")
			require.NoError(t, err)
			require.NoError(t, db.Close())
		},
		Run: func(t *testing.T, dir string) { // the database stays open: closing it would sync it
			_, err := openTemporalDatabase(t, dir).ExecContext(context.Background(),
				"INSERT INTO executions VALUES ('incident')")
			require.NoError(t, err)
			require.NoError(t, embeddedtemporal.PersistDatabase(dir))
		},
		Read: func(t *testing.T, dir string) (string, error) {
			db := openTemporalDatabase(t, dir)
			defer func() { _ = db.Close() }()
			var n int
			err := db.QueryRowContext(context.Background(), "SELECT count(*) FROM executions").Scan(&n)
			return fmt.Sprintf("%d rows", n), err
		},
	})
}
