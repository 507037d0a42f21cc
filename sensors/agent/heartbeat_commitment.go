package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/containermeta"
)

// A heartbeat is proved to the other sensors of the machine by a commitment: before the program is executed, the SHA-256
// of its nonce becomes a trusted extended attribute of the heartbeat's cgroup, which only root of the host can set. The
// program's name and its cgroup prove nothing.
const commitmentXattrPrefix = "trusted.stanch."

// maxPeerHeartbeats bounds the heartbeats of other sensors that are remembered, so that each nonce counts once.
const maxPeerHeartbeats = 256

// peerHeartbeat is a heartbeat of another sensor that was recognized.
type peerHeartbeat struct {
	commitment string
	pid        uint32
}

// publishCommitment publishes the commitment to a nonce at the heartbeat's cgroup, in place of this sensor's last one. A file
// system without extended attributes publishes nothing; other sensors then report the heartbeat.
func publishCommitment(dir, sensor, nonce string) error {
	sum := sha256.Sum256([]byte(nonce))
	if err := unix.Setxattr(dir, commitmentXattrPrefix+sensor, sum[:], 0); err != nil {
		return fmt.Errorf("publish the heartbeat's commitment: %w", err)
	}
	return nil
}

// hasCommitment reports whether a sensor of this machine committed itself to the nonce.
func hasCommitment(dir, nonce string) bool {
	names := make([]byte, 64<<10)
	n, err := unix.Listxattr(dir, names)
	if err != nil {
		return false
	}
	want := sha256.Sum256([]byte(nonce))
	value := make([]byte, len(want)+1)
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !strings.HasPrefix(name, commitmentXattrPrefix) {
			continue
		}
		if size, err := unix.Getxattr(dir, name, value); err == nil && slices.Equal(value[:size], want[:]) {
			return true
		}
	}
	return false
}

// isPeerHeartbeat reports whether an event in the heartbeat's cgroup is a proved heartbeat of another sensor, or its end. The
// caller holds the lock.
func (y *heartbeat) isPeerHeartbeat(e *sensors.Event) bool {
	switch args := e.Process.Args; {
	case e.Kind == sensors.KindExit && e.Process.PID != 0:
		return slices.ContainsFunc(y.peers, func(n peerHeartbeat) bool { return n.pid == e.Process.PID })
	case e.Kind != sensors.KindExec || len(args) != 2 || args[0] != heartbeatName || args[1] == "":
		return false
	}
	root, err := containermeta.FindCgroupRoot()
	if err != nil || !hasCommitment(filepath.Join(root, heartbeatName), e.Process.Args[1]) {
		return false
	}
	sum := sha256.Sum256([]byte(e.Process.Args[1]))
	commitment := hex.EncodeToString(sum[:])
	if slices.ContainsFunc(y.peers, func(n peerHeartbeat) bool { return n.commitment == commitment }) {
		return false
	}
	if y.peers = append(y.peers, peerHeartbeat{commitment: commitment, pid: e.Process.PID}); len(y.peers) > maxPeerHeartbeats {
		y.peers = y.peers[len(y.peers)-maxPeerHeartbeats:]
	}
	if len(y.peers) == 1 && y.log != nil {
		y.log.Warn("another Stanch sensor watches this machine: both report the same events; run one of them with --no-sensor")
	}
	return true
}
