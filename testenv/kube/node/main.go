// Command node is every component of a one-node Kubernetes in one binary; the first argument selects the component. It
// exists because the lab has no registry and no release archive: the components are built unchanged from the module
// proxy.
//
// It refuses to configure anything: flags and files come from stanch/testenv/kube. It is a separate module, because the
// product requires other versions of grpc and other modules.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coredns/coredns/coremain"
	// The plugins that the lab's Corefile uses.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
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
	case "coredns":
		coremain.Run()
		return
	case "kube-proxy":
		command = proxy.NewProxyCommand()
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
	fmt.Fprintf(
		os.Stderr,
		"node: %s; want one of etcd, coredns, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy\n",
		why,
	)
	os.Exit(2)
}
