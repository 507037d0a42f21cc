package worker_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/worker"
	"stanch/worker/config"
)

// The library is checked against the real actions, as a worker does it.
func TestTheShippedLibraryIsValid(t *testing.T) {
	library, problems, err := worker.LoadLibrary(config.Default(), worker.Catalogue())
	require.NoError(t, err)
	for _, p := range problems {
		t.Error(p.String(), p.Hint)
	}
	require.Len(t, library.Programs(), 4)
}

func TestEvidenceOfThePodCountsForItsRole(t *testing.T) {
	load := func(steps string) (messages []string) {
		_, problems := playbooks.Load("p.yaml", []byte("playbook: p\ndescription: x\nmatch: { objective: credential-access }\nsteps:\n"+steps), worker.Catalogue())
		for _, p := range problems {
			messages = append(messages, p.Message)
		}
		return messages
	}
	const contain = "  - enrich: aws.identity\n    id: cloud\n  - contain: aws.key.disable\n    target: cloud.keys\n    for: 1h\n"
	require.Empty(t, load("  - evidence: process.snapshot\n"+contain))
	require.Equal(t, []string{"`aws.key.disable` comes before any evidence of its target"}, load(contain))
	require.Contains(t, load("  - evidence: process.snapshot\n  - enrich: aws.identity\n    id: cloud\n  - contain: aws.role.revoke-sessions\n    target: cloud.role\n    for: 12h\n"),
		"`aws.role.revoke-sessions` disrupts: it is allowed only inside of an approval")
}
