package kube

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"stanch/worker/freeport"
)

func checkReachable(network, address string) error {
	conn, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// writeContainerdConfig configures a containerd that shares nothing with the host's: it has its own root, state, socket
// and network.
func (c *Cluster) writeContainerdConfig() error {
	if err := os.MkdirAll(c.filePath("cni"), 0o700); err != nil {
		return fmt.Errorf("make the CNI directory: %w", err)
	}
	if err := c.writeFile("cni/10-lab.conflist", `{
  "cniVersion": "0.4.0", "name": "`+c.NodeName+`",
  "plugins": [{
    "type": "bridge", "bridge": "`+c.Bridge+`", "isGateway": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "dataDir": "`+c.filePath("ipam")+`", "routes": [{"dst": "0.0.0.0/0"}],
      "ranges": [[{"subnet": "`+c.PodCIDR+`", "gateway": "`+c.NodeIP+`"}]]}
  }]
}`); err != nil {
		return err
	}
	// restrict_oom_score_adj: without CAP_SYS_RESOURCE runc dies with "can't get final child's PID from pipe".
	return c.writeFile("containerd.toml", `version = 2
root = "`+c.filePath("r")+`"
state = "`+c.filePath("s")+`"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "`+c.CRISocket+`"
[plugins."io.containerd.internal.v1.opt"]
  path = "`+c.filePath("opt")+`"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "`+PauseImage+`"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  Root = "`+c.filePath("runc")+`"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "`+c.filePath("cni")+`"
`)
}

// StaticPodDir returns the kubelet's directory for static pods. A test writes a manifest there and removes it.
func (c *State) StaticPodDir() string { return c.filePath("static") }

// writeKubeletConfig configures a kubelet that works on cgroup v1 and v2, evicts nothing and authorizes everyone: the
// lab is only for tests and listens on its own bridge.
func (c *Cluster) writeKubeletConfig() error {
	if err := os.MkdirAll(c.StaticPodDir(), 0o700); err != nil {
		return fmt.Errorf("make the directory of static pods: %w", err)
	}
	port, err := freeport.Find(c.NodeIP, 1)
	if err != nil {
		return err
	}
	c.KubeletPort = port[0]
	dns := ""
	if c.Services {
		dns = "clusterDNS: [" + c.dnsIP() + "]\nclusterDomain: " + ClusterDomain + "\n"
	}
	config := strings.NewReplacer("PORT", fmt.Sprint(port[0]), "NODEIP", c.NodeIP, "SOCKET", c.CRISocket, "DIR", c.Dir,
		"CGROUP", c.CgroupRoot).Replace(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: NODEIP
port: PORT
readOnlyPort: 0
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://SOCKET
cgroupDriver: cgroupfs
cgroupRoot: CGROUP
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
oomScoreAdj: 0
podLogsDir: DIR/pods
staticPodPath: DIR/static
fileCheckFrequency: 1s
volumePluginDir: DIR/volume-plugins
resolvConf: ""
registerNode: true
maxPods: 100
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
syncFrequency: 10s
nodeStatusUpdateFrequency: 5s
serializeImagePulls: false
shutdownGracePeriod: 0s
`) + dns
	return c.writeFile("kubelet.yaml", config)
}
