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

// A sensor proves its heartbeat to the other sensors of the machine with a commitment: before it executes the program,
// it stores the SHA-256 of the nonce in a trusted extended attribute of the heartbeat's cgroup, which only the host's
// root can set. The name of the program and its cgroup prove nothing.
const commitmentXattrPrefix = "trusted.stanch."

// maxPeerHeartbeats limits the remembered heartbeats of other sensors. They are remembered so that each nonce is
// accepted once.
const maxPeerHeartbeats = 256

// peerHeartbeat is an accepted heartbeat of another sensor.
type peerHeartbeat struct {
	commitment string
	pid        uint32
}

// publishCommitment stores the commitment to a nonce at the heartbeat's cgroup, replacing this sensor's previous one.
// It fails on a file system without extended attributes; other sensors then report the heartbeat as an event.
func publishCommitment(dir, sensor, nonce string) error {
	sum := sha256.Sum256([]byte(nonce))
	if err := unix.Setxattr(dir, commitmentXattrPrefix+sensor, sum[:], 0); err != nil {
		return fmt.Errorf("publish the heartbeat's commitment: %w", err)
	}
	return nil
}

// hasCommitment reports whether a sensor of this machine published a commitment to the nonce.
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

// isPeerHeartbeat reports whether an event in the heartbeat's cgroup is a verified heartbeat of another sensor, or its
// exit. The caller holds y.mu.
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
	if y.peers = append(y.peers, peerHeartbeat{
		commitment: commitment,
		pid:        e.Process.PID,
	}); len(y.peers) > maxPeerHeartbeats {
		y.peers = y.peers[len(y.peers)-maxPeerHeartbeats:]
	}
	if len(y.peers) == 1 && y.log != nil {
		y.log.Warn(
			"another Stanch sensor runs on this machine, so events are reported twice; run one of them with --no-sensor",
		)
	}
	return true
}
