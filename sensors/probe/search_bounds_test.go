package probe

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// batch runs many commands of ip in the network namespace of an actor that made it as a user without rights.
func batch(t *testing.T, in *actor, commands string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--preserve-credentials", "--user", "--net", "--target", pidText(in), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestSearchFindsAPodsInterfaceWhateverItsOtherProcessesMake: a container without rights makes namespaces and opens files
// as it likes, and its first process need not be in the pod's network.
func TestSearchFindsAPodsInterfaceWhateverItsOtherProcessesMake(t *testing.T) {
	n := newLab(t)
	found := func(t *testing.T, others ...*actor) {
		t.Helper()
		wires, err := FindWires(pidsOf(append(others, n.pod)...)...)
		if len(wires) != 1 || wires[0].Index != n.wires[0].Index || wires[0].MAC != n.wires[0].MAC {
			t.Errorf("found %+v", wires)
		}
		if err == nil || len(err.Error()) > 4096 {
			t.Errorf("what was not looked at is to be named, in few words: %v", err)
		}
	}
	t.Run("many network namespaces", func(t *testing.T) {
		var others []*actor
		for range maxSpaces + 1 {
			others = append(others, hiddenActor(t, n.podDir))
		}
		found(t, others...)
	})
	t.Run("many open files", func(t *testing.T) {
		hidden := hiddenActor(t, n.podDir)
		for range maxHandles {
			if got := hidden.do(t, "hold", "/dev/null"); got != "sent" {
				t.Fatal(got)
			}
		}
		found(t, hidden)
	})
	t.Run("many interfaces", func(t *testing.T) {
		hidden := hiddenActor(t, n.podDir)
		var commands strings.Builder
		for i := range maxInterfaces + 100 {
			fmt.Fprintf(&commands, "link add d%d type bridge\n", i)
		}
		batch(t, hidden, commands.String())
		began := time.Now()
		found(t, hidden)
		if took := time.Since(began); took > searchTime+time.Second {
			t.Errorf("the search took %s", took)
		}
	})
}

func TestLockKnowsFewAddressesOfAPodThatHasMany(t *testing.T) {
	n := newLab(t)
	var commands strings.Builder
	for i := range 500 {
		fmt.Fprintf(&commands, "addr add fd77::%x/128 dev eth0 nodad\n", i)
	}
	cmd := exec.Command("nsenter", "--net="+nsOf(t, n.pod), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wires, err := FindWires(pidsOf(n.pod)...)
	if err != nil || len(wires) != 1 || len(wires[0].Addrs) != maxWireAddrs {
		t.Fatalf("%+v, %v", wires, err)
	}
	if wires[0].Addrs[0].String() != podIP {
		t.Errorf("the pod's own address is missing: %v", wires[0].Addrs)
	}
}
