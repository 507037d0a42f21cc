package main

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"stanch/activities/kube"
)

// connectCluster returns a client of the cluster of a kubeconfig, or of the one that this process runs in, and its
// name. The client is nil without a cluster.
func connectCluster(kubeconfig string) (kubernetes.Interface, string, error) {
	if kubeconfig == "none" {
		return nil, "none; protecting the containers on this host", nil
	}
	cfg, err := clusterConfig(kubeconfig)
	if err != nil {
		if kubeconfig == "" {
			return nil, "none (no kubeconfig); protecting the containers on this host", nil
		}
		return nil, "", fmt.Errorf("%w; use --kubeconfig none to run without a cluster", err)
	}
	c, err := kube.NewClient(cfg)
	if err != nil {
		return nil, "", err
	}
	return c, cfg.Host, nil
}

// clusterConfig returns the client configuration of a kubeconfig; with "" that of the cluster that this process runs
// in, else that of the default kubeconfig.
func clusterConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		if cfg, err := rest.InClusterConfig(); err == nil {
			return cfg, nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}
