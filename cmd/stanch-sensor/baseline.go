package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/sensors/agent"
	"stanch/sensors/baseline"
)

// baselineCommand returns `stanch-sensor baseline`, which reads the state directory of config.
func baselineCommand(setup *agent.Config) *cobra.Command {
	root := &cobra.Command{
		Use: "baseline", Short: "Manage this node's image baselines",
		Long: `List, export and import the baselines of this node: for each image, the programs that its
containers execute and the destinations that they connect to. After --learning-period any
other program or destination counts as new for a day. New behavior raises the confidence of
detections and triggers the rules unusual-program and unusual-egress.

Export and import move baselines to new nodes, so that the new nodes need no learning
period. The state directory of ` + "`stanch up`" + ` is DATA/node.`,
		Example: `  stanch-sensor baseline list --state /var/lib/stanch-sensor
  stanch-sensor baseline export > baselines.json
  stanch-sensor baseline import baselines.json`,
	}
	var output string
	list := &cobra.Command{
		Use: "list [DIGEST]", Short: "List images, or show the baseline of one",
		Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `List the images that this node has learned or, given the digest of one, its programs and
destinations.`,
		Example: `  stanch-sensor baseline list
  stanch-sensor baseline list sha256:9b2f0c4c6d1f7f3f6f2f4b8b2a1f0e9d8c7b6a5f4e3d2c1b0a9f8e7d6c5b4a39 -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := selectBaselines(setup.StateDir, args)
			if err != nil {
				return err
			}
			switch output {
			case "json":
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", " ")
				return encoder.Encode(images)
			case "text":
				return printBaselines(cmd.OutOrStdout(), images, len(args) == 1)
			}
			return usageError{fmt.Errorf("invalid --output %q; use text or json", output)}
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "text", "the output `FORMAT`: text or json")
	export := &cobra.Command{
		Use: "export", Short: "Write all baselines to standard output", Args: validateArgs(cobra.NoArgs),
		Long: `Write all baselines of this node to standard output, to import them on another node. A running
sensor stores them every minute.`,
		Example: "  stanch-sensor baseline export > baselines.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := readBaselines(setup.StateDir)
			if err != nil {
				return err
			}
			return b.Write(cmd.OutOrStdout())
		},
	}
	importCmd := &cobra.Command{
		Use: "import FILE|-", Short: "Import the baselines of another node", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Add the baselines of another node, from a file or from standard input. The sensor reads them
within a minute, or when it starts.`,
		Example: `  stanch-sensor baseline import baselines.json
  ssh other-node stanch-sensor baseline export | stanch-sensor baseline import -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("import baselines: %w", err)
				}
				defer func() { _ = f.Close() }()
				in = f
			}
			n, err := agent.QueueBaselineImport(setup.StateDir, in)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(),
				"queued %d images; the sensor imports them within a minute, or when it starts\n", n)
			return err
		},
	}
	root.AddCommand(list, export, importCmd)
	return root
}

// readBaselines reads the baselines of a state directory. It changes nothing: a damaged file is left to the sensor
// that owns it.
func readBaselines(stateDir string) (*baseline.Baselines, error) {
	name := agent.BaselinePath(stateDir)
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the baselines: %w; wait until the sensor stores them, or set --state", err)
	}
	defer func() { _ = f.Close() }()
	b := baseline.New(baseline.Options{MaxImages: 1 << 20})
	if _, err := b.Read(f); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// selectBaselines returns the baselines of all images, or of the one with the digest.
func selectBaselines(stateDir string, digest []string) ([]baseline.Image, error) {
	b, err := readBaselines(stateDir)
	if err != nil {
		return nil, err
	}
	images := b.Images()
	if len(digest) == 0 {
		return images, nil
	}
	for _, image := range images {
		if image.Digest == digest[0] {
			return []baseline.Image{image}, nil
		}
	}
	return nil, fmt.Errorf("unknown image %q; `stanch-sensor baseline list` lists the digests", digest[0])
}

// printBaselines prints a table of images; all adds the programs and destinations of each.
func printBaselines(w io.Writer, images []baseline.Image, all bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DIGEST\tIMAGE\tSINCE\tLAST\tCONTAINERS\tPROGRAMS\tDESTINATIONS")
	for _, image := range images {
		fmt.Fprintf(t, "%s\t%q\t%s\t%s\t%d\t%d\t%d\n", image.Digest, image.Name, image.FirstSeen.Format("2006-01-02"),
			image.LastSeen.Format("2006-01-02"),
			image.ContainerCount, len(image.Executables), len(image.Destinations))
		if !all {
			continue
		}
		for what, facts := range map[string]map[string]baseline.Observation{
			"executes":    image.Executables,
			"connects to": image.Destinations,
		} {
			for name, f := range facts {
				fmt.Fprintf(t, "\t%s %q\t%s\t%s\t%d times\n", what, name, f.FirstSeen.Format("2006-01-02"),
					f.LastSeen.Format("2006-01-02"), f.Count)
			}
		}
	}
	return t.Flush()
}
