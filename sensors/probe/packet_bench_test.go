package probe

import (
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"stanch/bpf"
)

// BenchmarkLockPacket measures the cost of the lock's programs for each packet, run by the kernel on the loopback
// interface. "no lock" and "another's lock" are packets of an unlocked pod; "denied" and "reply" are packets of a
// locked pod.
func BenchmarkLockPacket(b *testing.B) {
	newBenchCgroup(b)
	dir := "/sys/fs/bpf/stanch-bench-" + strconv.Itoa(os.Getpid())
	l, err := OpenEgressLock(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close(); _ = Cleanup(dir) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	c, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	there, here := listener.Addr().(*net.TCPAddr).Port, c.LocalAddr().(*net.TCPAddr).Port

	mac := []byte{2, 0, 0, 0, 0, 1}
	frame := ethernetFrame(mac, mac, 0x0800, ipv4Packet("127.0.0.1", "127.0.0.1", 6,
		tcpSegment(uint16(there), uint16(here), make([]byte, 100))))
	const times = 400 // fewer than exhaust the byte budget of a second
	run := func(name, program string, want uint32, prepare func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if prepare != nil {
					prepare(b)
				}
				got, spent, err := l.collection.Programs[program].Benchmark(frame, times, nil)
				if err != nil || got != want {
					b.Fatalf("%d, %v", got, err)
				}
				b.ReportMetric(float64(spent.Nanoseconds()), "ns/packet")
			}
		})
	}
	const next, drop = 0xffffffff, 2
	id := lockID("bench")
	put := func(b *testing.B, m string, k, v any) {
		if err := l.ebpfMap(m).Update(k, v, ebpf.UpdateAny); err != nil {
			b.Fatal(err)
		}
	}
	lock := func(b *testing.B) {
		end := uint64(sinceBoot() + time.Hour)
		put(b, bpf.LockMapLocks, id, lockRecord{Expiry: end, Flags: lockFlagNodeMACsOnly})
		put(b, bpf.LockMapCounts, id, packetCountsRecord{})
		put(b, bpf.LockMapLatestExpiry, uint32(0), end)
	}
	run("cgroup/no lock", bpf.LockProgLockEgress, 1, nil)
	run("cgroup/another's lock", bpf.LockProgLockEgress, 1, lock)
	run("veth in/another's lock", bpf.LockProgLockVethIngress, next, lock)
	run("veth out/another's lock", bpf.LockProgLockVethEgress, next, lock)
	hold := func(b *testing.B) {
		lock(b)
		put(b, bpf.LockMapLockedObjects, lockedObjectKey{ID: 1, Kind: objectVeth},
			lockedObjectValue{Lock: id, MAC: [6]byte(mac)})
	}
	run("veth in/denied", bpf.LockProgLockVethIngress, drop, hold)
	run("veth out/to the pod", bpf.LockProgLockVethEgress, next, hold)
	run("veth in/reply", bpf.LockProgLockVethIngress, next, func(b *testing.B) {
		hold(b)
		put(b, bpf.LockMapMacs, macKey{Lock: id, MAC: [6]byte(mac)}, uint8(1))
		end := make([]byte, 16)
		end[10], end[11], end[12], end[15] = 0xff, 0xff, 127, 1
		key := flowKey{
			Lock: id, Node: [16]byte(end), Pod: [16]byte(end), NodePort: swapBytes(uint16(here)),
			PodPort: swapBytes(uint16(there)),
		}
		put(b, bpf.LockMapFlows, key, flowValue{Seen: uint64(sinceBoot()), Second: uint64(sinceBoot())})
	})
}

type (
	flowKey struct {
		Lock              uint64
		Node, Pod         [16]byte
		NodePort, PodPort uint16
		_                 uint32
	}
	flowValue struct{ Seen, Second, Bytes uint64 }
)
