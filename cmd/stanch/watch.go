package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// watchInterval is the polling interval of --watch.
const watchInterval = 2 * time.Second

// watchOutput prints the output of show whenever it changes, until the context of cmd ends. On a terminal it replaces
// the previous output. Errors after the first output are printed and retried.
func watchOutput(cmd *cobra.Command, show func(ctx context.Context, out io.Writer) error) error {
	out, before := cmd.OutOrStdout(), ""
	for first := true; ; first = false {
		var b bytes.Buffer
		err := show(cmd.Context(), &b)
		switch {
		case cmd.Context().Err() != nil:
			return nil //nolint:nilerr // interrupted
		case err != nil && first:
			return err
		case err != nil:
			logProgress("%v; retrying", err)
		case b.String() != before:
			if before = b.String(); isTerminal(out) {
				fmt.Fprint(out, "\x1b[H\x1b[2J")
			} else if !first {
				fmt.Fprintln(out)
			}
			fmt.Fprint(out, before)
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}
