package main

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/config"
)

func TestSocketAccessNoteNamesPeopleWhoCannotConnect(t *testing.T) {
	root, alice := uint32(0), uint32(1000+uint32(os.Getuid()))
	cfg := &config.Config{People: []config.Person{
		{Name: "root", UID: &root},
		{Name: "alice", UID: &alice},
		{Name: "bob", KubernetesUser: "bob"},
	}}
	require.Equal(t, "only root can connect; alice cannot. Use --socket-group GROUP, or socket_group in stanch.yaml",
		socketAccessNote(cfg, ""))
	require.Equal(t, "members of the group stanch can connect", socketAccessNote(cfg, "stanch"))
	require.Empty(t, socketAccessNote(&config.Config{}, ""))
}

func TestDeniedSocketErrorNamesTheRemedy(t *testing.T) {
	err := explainSocketDenied("/var/lib/stanch/stanch.sock")
	for _, part := range []string{
		"permission denied", "run this as root", "stanch up --socket-group GROUP",
		"usermod -aG GROUP",
	} {
		require.ErrorContains(t, err, part)
	}
	require.False(t, errors.As(err, &usageError{}))
}
