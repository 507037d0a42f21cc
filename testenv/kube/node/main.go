// Command node is every part of a one-node Kubernetes in one binary: the first argument says which part to be.
//
// It exists because the lab has no registry and no release archive to fetch: the parts are built from the
// module proxy, unchanged. It refuses to configure anything: flags and files come from stanch/testenv/kube.
// Its module stands apart from the product's, because the two need different versions of grpc and others.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if len(os.Args) < 2 {
		fail("no part given")
	}
	part := os.Args[1]
	os.Args = append([]string{part}, os.Args[2:]...)

	var command *cobra.Command
	switch part {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		command = scheduler.NewSchedulerCommand()
	case "kubelet":
		command = kubelet.NewKubeletCommand(context.Background())
	default:
		fail("unknown part " + part)
	}
	os.Exit(cli.Run(command))
}

func fail(why string) {
	fmt.Fprintf(os.Stderr, "node: %s; want one of etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet\n", why)
	os.Exit(2)
}
