package redact

import (
	"strings"
	"testing"
)

func TestSecretsInHeadersVariablesAndOptionsAreRedacted(t *testing.T) {
	for _, args := range [][]string{
		{"curl", "-su", "bob:hunter22", "http://x"},
		{"curl", "-sSu", "bob:hunter22", "http://x"},
		{"curl", "-H", "Authorization: Token hunter22", "http://x"},
		{"curl", "-H", "Cookie: sid=hunter22", "http://x"},
		{"env", "DBPASS=hunter22", "x"},
		{"sh", "-c", "DB_PWD=hunter22 ./x"},
		{"sh", "-c", "PASS=hunter22 ./x"},
		{"redis-cli", "-ahunter22"},
		{"redis-cli", "CONFIG", "SET", "requirepass", "hunter22"},
		{"mysqladmin", "-u", "root", "password", "hunter22"},
		{"net", "user", "bob", "hunter22", "/add"},
	} {
		if got := strings.Join(Args(args), " "); strings.Contains(got, "hunter22") {
			t.Errorf("%s", got)
		}
	}
}
