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

func baselineCommand(setup *agent.Config) *cobra.Command {
	root := &cobra.Command{
		Use: "baseline", Short: "What this node learnt of each image: programs and destinations", Args: cobra.NoArgs,
		Long: `What this node learnt of each image: which programs its containers execute, and
where they connect. After the time of learning (--learning-period) anything else is new for a
day, makes detections surer, and fires the rules unusual-program and unusual-egress.

` + "`stanch up`" + ` keeps its node's state in DATA/node.`,
		Example: `  stanch-sensor baseline list --state /var/lib/stanch-sensor
  stanch-sensor baseline export > baselines.json
  stanch-sensor baseline import baselines.json`,
	}
	var output string
	list := &cobra.Command{
		Use: "list", Short: "List the images, or show all of one", Args: cobra.MaximumNArgs(1),
		Example: "  stanch-sensor baseline list\n  stanch-sensor baseline list sha256:0123… -o json",
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
			return usageError{fmt.Errorf("-o is text or json, not %q", output)}
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	export := &cobra.Command{
		Use: "export", Short: "Write all that was learnt, as of a minute ago, to standard output", Args: cobra.NoArgs,
		Example: "  stanch-sensor baseline export > baselines.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := readBaselines(setup.StateDir)
			if err != nil {
				return err
			}
			return b.Write(cmd.OutOrStdout())
		},
	}
	take := &cobra.Command{
		Use: "import FILE|-", Short: "Add what another node learnt", Args: cobra.ExactArgs(1),
		Example: "  stanch-sensor baseline import baselines.json\n  ssh other stanch-sensor baseline export | stanch-sensor baseline import -",
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
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d images: the sensor takes them in within a minute, or when it starts\n", n)
			return err
		},
	}
	root.AddCommand(list, export, take)
	return root
}

// readBaselines reads the file and not more: a damaged one is left where it is, for the sensor that owns it.
func readBaselines(stateDir string) (*baseline.Baselines, error) {
	name := agent.BaselinePath(stateDir)
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("nothing was learnt yet, or --state is another folder: %w", err)
	}
	defer func() { _ = f.Close() }()
	b := baseline.New(baseline.Options{MaxImages: 1 << 20})
	if _, err := b.Read(f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

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
	return nil, fmt.Errorf("nothing was learnt of %q; `stanch-sensor baseline list` shows the digests", digest[0])
}

func printBaselines(w io.Writer, images []baseline.Image, all bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DIGEST\tIMAGE\tSINCE\tLAST\tCONTAINERS\tPROGRAMS\tDESTINATIONS")
	for _, image := range images {
		fmt.Fprintf(t, "%s\t%q\t%s\t%s\t%d\t%d\t%d\n", image.Digest, image.Name, image.FirstSeen.Format("2006-01-02"), image.LastSeen.Format("2006-01-02"),
			image.ContainerCount, len(image.Executables), len(image.Destinations))
		if !all {
			continue
		}
		for what, facts := range map[string]map[string]baseline.Observation{"executes": image.Executables, "connects to": image.Destinations} {
			for name, f := range facts {
				fmt.Fprintf(t, "\t%s %q\t%s\t%s\t%d times\n", what, name, f.FirstSeen.Format("2006-01-02"), f.LastSeen.Format("2006-01-02"), f.Count)
			}
		}
	}
	return t.Flush()
}
