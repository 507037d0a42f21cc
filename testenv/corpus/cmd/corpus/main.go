// Command corpus writes recordings of synthetic incidents, for `stanch simulate` and its benchmarks.
//
// It refuses to write to a directory that is not empty.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"stanch/testenv/corpus"
)

func main() {
	var o corpus.Options
	flag.Uint64Var(&o.Seed, "seed", 1, "the same seed gives the same bytes")
	flag.IntVar(&o.Count, "count", 100, "how many recordings")
	flag.IntVar(&o.StormDetections, "storm", 0, "how many detections a storm has (1000)")
	kinds := flag.String("kinds", "", "only these kinds, with commas between; `help` lists them")
	out := flag.String("out", "", "the folder to write to; a name that ends in .jsonl is one file, a recording a line")
	flag.Parse()
	if *kinds == "help" {
		for _, k := range corpus.Kinds {
			fmt.Printf("%-14s %4d of 1000  %s\n", k.Name, k.PerMille, k.Doc)
		}
		return
	}
	if *kinds != "" {
		o.Kinds = strings.Split(*kinds, ",")
	}
	if err := writeCorpus(o, *out); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

func writeCorpus(o corpus.Options, out string) error {
	if out == "" {
		return fmt.Errorf("name a folder, or a file that ends in .jsonl: --out PATH")
	}
	var bytes int64
	var err error
	if strings.HasSuffix(out, ".jsonl") {
		bytes, err = corpus.WriteLines(o, out)
	} else {
		if entries, _ := os.ReadDir(out); len(entries) > 0 {
			return fmt.Errorf("%s is not empty; name another folder", out)
		}
		bytes, err = corpus.Write(o, out)
	}
	if err == nil {
		fmt.Printf("%d recordings, %.1f MB, in %s\n", o.Count, float64(bytes)/1e6, out)
	}
	return err
}
