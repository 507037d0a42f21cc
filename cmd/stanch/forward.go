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
		Use:   "forward --from KIND --to URL --token-file FILE [FILE|-]",
		Short: "Forward the events of another sensor to Stanch",
		Long: `Forward lines from a file or pipe to a Stanch gateway that accepts events from other sensors
(--listen of stanch up or stanch worker). Use it for sensors that cannot post events
themselves. Stanch's configuration names the source and its token:

  sources:
    - { name: tetragon, kind: tetragon, token_file: /etc/stanch/tetragon.token }

A file is followed as it grows and rotates. With --state, forwarding resumes where it left
off. While the gateway is unreachable, reading pauses, so no line is lost as long as the
file or the pipe still holds it. Rejected lines are reported on standard error.

Supported sensors: ` + strings.Join(integrations.SourceKinds(), ", ") + `.
Falco needs forwarding only if it cannot use http_output to post to
http://falco:TOKEN@HOST:PORT/v1/falco, with the token as the password.`,
		Example: `  kubectl logs -n kube-system -f ds/tetragon -c export-stdout | stanch forward --from tetragon --to https://stanch:8443 --token-file t -
  stanch forward --from tetragon --to https://stanch:8443 --ca ca.crt --token-file t --state t.state /var/run/cilium/tetragon/tetragon.log
  stanch forward --from tracee --to http://127.0.0.1:8443 --token-file tracee.token --once events.json
  karmor logs --json | stanch forward --from kubearmor --to https://stanch:8443 --token-file kubearmor.token -`,
		Args: validateArgs(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			if len(files) == 1 && files[0] != "-" {
				o.File = files[0]
			}
			switch {
			case o.Kind == "" || o.To == "" || o.TokenFile == "":
				return usageError{errors.New("--from, --to and --token-file are required; see `stanch forward --help`")}
			case integrations.DecoderForKind(o.Kind) == nil:
				return usageError{fmt.Errorf("invalid --from %q; use %s", o.Kind, joinOr(integrations.SourceKinds()))}
			case o.File == "" && (o.State != "" || o.Beginning || o.Once):
				return usageError{errors.New("--state, --from-start and --once require a FILE; a pipe is read once " +
					"to its end")}
			}
			if o.File == "" {
				o.Stdin = c.InOrStdin()
				if f, ok := o.Stdin.(*os.File); ok && len(files) == 0 && isTerminalFile(f) {
					return usageError{errors.New("missing FILE; name a file, or pipe the lines to standard input")}
				}
			}
			o.Logf = linePrinter(c.ErrOrStderr())
			done, err := forward.Run(c.Context(), o)
			o.Logf("%s", done)
			return err //nolint:wrapcheck // it names the operation and the file
		},
	}
	f := c.Flags()
	f.StringVar(&o.Kind, "from", "", "the `KIND` of sensor: "+strings.Join(integrations.SourceKinds(), ", "))
	f.StringVar(&o.To, "to", "", "the `URL` of the gateway, https://HOST:PORT")
	f.StringVar(&o.TokenFile, "token-file", "", "a `FILE` with the token of the source")
	f.StringVar(&o.CA, "ca", "", "a `FILE` with the CA certificate of the gateway (default: the system's CAs)")
	f.BoolVar(&o.Plaintext, "plaintext", false, "allow http:// to another machine; the token is sent in clear text")
	f.StringVar(&o.State, "state", "", "a `FILE` that stores how far the input was forwarded")
	f.BoolVar(&o.Beginning, "from-start", false,
		"without a stored position, start at the beginning of the file instead of its end")
	f.BoolVar(&o.Once, "once", false, "read the file once from beginning to end, then exit")
	f.Var(duration.NewFlag(&o.Linger, 0), "linger",
		"how long to wait for more lines before sending a batch (default 500ms)")
	return c
}

// linePrinter returns a function that prints one line with a prefix to w.
func linePrinter(w io.Writer) func(string, ...any) {
	return func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, "stanch forward: "+format+"\n", args...)
	}
}

// isTerminalFile reports whether f is a terminal.
func isTerminalFile(f *os.File) bool {
	s, err := f.Stat()
	return err == nil && s.Mode()&os.ModeCharDevice != 0
}
