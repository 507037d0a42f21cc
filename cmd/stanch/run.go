package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func workerCommand(g *globals) *cobra.Command {
	return &cobra.Command{Use: "worker", Short: "Run the gateway and the worker against your own Temporal", RunE: func(*cobra.Command, []string) error { return errors.New("not yet") }}
}

func doctorCommand(g *globals) *cobra.Command {
	return &cobra.Command{Use: "doctor", RunE: func(*cobra.Command, []string) error { return errors.New("not yet") }}
}

func manifestsCommand(g *globals) *cobra.Command {
	return &cobra.Command{Use: "manifests", RunE: func(*cobra.Command, []string) error { return errors.New("not yet") }}
}

func certCommand(g *globals) *cobra.Command {
	return &cobra.Command{Use: "cert", RunE: func(*cobra.Command, []string) error { return errors.New("not yet") }}
}
