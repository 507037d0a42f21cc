// Command labnode builds, starts and stops the lab: a real one-node Kubernetes on this machine.
package main

import (
	"context"
	"fmt"
	"os"

	"stanch/testenv/kube"
)

func main() {
	if _, err := kube.Build(context.Background(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "labnode:", err)
		os.Exit(1)
	}
}
