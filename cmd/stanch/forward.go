package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"stanch/sensors/duration"
	"stanch/sensors/integrations"
	"stanch/sensors/integrations/forward"
)

func forwardCommand() *cobra.Command {
	o := forward.Options{}
	c := &cobra.Command{
		Use: "forward --from KIND --to URL --token-file FILE [FILE|-]", Short: "Carry what another sensor writes to Stanch's gateway",
		Long: `Carries the lines of a file or a pipe to a Stanch that listens for other sensors (stanch up --listen, stanch worker
--listen), whose configuration names the source and its token:

  foreign:
    - { name: tetragon, kind: tetragon, token_file: /etc/stanch/tetragon.token }

A file is followed as it grows and through its rotations; with --state it is read on where reading ended. While the
gateway is away nothing more is read, and nothing is lost as long as the file or the pipe keeps it. A line counts when the
gateway has answered for it; what was refused is told on the standard error.

The sensors are ` + strings.Join(integrations.SourceKinds(), ", ") + `. Falco needs this only where its http_output cannot be used: it posts to
http://falco:TOKEN@HOST:PORT/v1/falco, with the token as the password.`,
		Example: `  kubectl logs -n kube-system -f ds/tetragon -c export-stdout | stanch forward --from tetragon --to https://stanch:8443 --token-file t -
  stanch forward --from tetragon --to https://stanch:8443 --ca ca.crt --token-file t --state /var/lib/stanch/tetragon.state /var/run/cilium/tetragon/tetragon.log
  stanch forward --from tracee --to http://127.0.0.1:8443 --token-file t --once events.json
  karmor logs --json | stanch forward --from kubearmor --to https://stanch:8443 --token-file t -`,
		Args: validateArgs(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, given []string) error {
			if len(given) == 1 && given[0] != "-" {
				o.File = given[0]
			}
			switch {
			case o.Kind == "" || o.To == "" || o.TokenFile == "":
				return usageError{errors.New("--from, --to and --token-file are needed; see `stanch forward --help`")}
			case integrations.DecoderForKind(o.Kind) == nil:
				return usageError{fmt.Errorf("--from is one of %s, not %q", strings.Join(integrations.SourceKinds(), ", "), o.Kind)}
			case o.File == "" && (o.State != "" || o.Beginning || o.Once):
				return usageError{errors.New("--state, --from-start and --once are for a file; a pipe is read from where it is to its end")}
			}
			if o.File == "" {
				o.Stdin = c.InOrStdin()
				if f, ok := o.Stdin.(*os.File); ok && len(given) == 0 && isTerminalFile(f) {
					return usageError{errors.New("name a file, or pipe the lines in; see `stanch forward --help`")}
				}
			}
			o.Logf = linePrinter(c.ErrOrStderr())
			done, err := forward.Run(c.Context(), o)
			o.Logf("%s", done)
			return err //nolint:wrapcheck // it says what and where
		},
	}
	f := c.Flags()
	f.StringVar(&o.Kind, "from", "", "the sensor: "+strings.Join(integrations.SourceKinds(), ", "))
	f.StringVar(&o.To, "to", "", "the gateway's address, https://HOST:PORT")
	f.StringVar(&o.TokenFile, "token-file", "", "a file with the source's token")
	f.StringVar(&o.CA, "ca", "", "a file with the certificate authority of the gateway (default: the system's)")
	f.BoolVar(&o.Plaintext, "plaintext", false, "permit http to another machine: the token can be read on the way")
	f.StringVar(&o.State, "state", "", "a file that keeps the place up to which FILE was carried")
	f.BoolVar(&o.Beginning, "from-start", false, "without a place that was kept: read FILE from its beginning, and not from its end")
	f.BoolVar(&o.Once, "once", false, "read FILE from its beginning to its end, and end")
	f.Var(duration.NewFlag(&o.Linger, 0), "linger", "how long a batch waits for more lines (default 500ms)")
	return c
}

// linePrinter prints what people should know, a line each.
func linePrinter(w io.Writer) func(string, ...any) {
	return func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, "stanch forward: "+format+"\n", args...)
	}
}

// isTerminalFile tells whether somebody would have to type the lines.
func isTerminalFile(f *os.File) bool {
	s, err := f.Stat()
	return err == nil && s.Mode()&os.ModeCharDevice != 0
}
