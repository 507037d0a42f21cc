package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// labRegistryDir contains a state file for each lab of this machine, and the lock that serializes starts and stops.
const labRegistryDir = "/run/stanch-lab"

// maxLabs is the maximum number of concurrent labs on one machine. Each has a number below it.
const maxLabs = 64

// requiredPrograms are the programs that the lab starts, with their Debian packages.
var requiredPrograms = []struct{ file, from string }{
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"iptables", "iptables"},
	{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	{"/usr/lib/cni/host-local", "containernetworking-plugins"},
	{"busybox", "busybox-static"},
}

// MissingPrograms returns the prerequisites that this machine lacks, except for the node's binary. It is empty if none
// are missing.
func MissingPrograms() []string {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, n := range requiredPrograms {
		if _, err := lookPath(n.file); err != nil {
			missing = append(missing, n.file+" (apt-get install "+n.from+")")
		}
	}
	return missing
}

// lookPath also searches the sbin directories, which are not always on PATH.
func lookPath(file string) (string, error) {
	if path, err := exec.LookPath(file); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", file))
}

// claimNumber claims the first free lab number, and with it unique names and addresses.
func (c *Cluster) claimNumber() error {
	if err := os.MkdirAll(labRegistryDir, 0o755); err != nil {
		return fmt.Errorf("make the registry of labs: %w", err)
	}
	unlock, err := lockFile(labRegistryDir + "/lock")
	if err != nil {
		return err
	}
	defer unlock()
	for n := range maxLabs {
		pods, services := fmt.Sprintf("10.231.%d.", n), fmt.Sprintf("10.232.%d.", n)
		if _, err := os.Stat(statePath(strconv.Itoa(n))); err == nil || addressInUse(pods, services) {
			continue
		}
		dir, err := os.MkdirTemp("", fmt.Sprintf("stanch-lab%d-", n))
		if err != nil {
			return fmt.Errorf("make the lab's directory: %w", err)
		}
		owner, err := identifyProcess(os.Getpid())
		if err != nil {
			return err
		}
		c.State = State{
			ID: strconv.Itoa(n), Dir: dir, Detached: c.Detached, Owner: owner,
			NodeName: fmt.Sprintf("stanch-lab%d", n), NodeIP: pods + "1", PodCIDR: pods + "0/24",
			APIServer: "https://" + services + "1:443", Bridge: fmt.Sprintf("stanch-lab%d", n),
			CgroupRoot: fmt.Sprintf("/stanch-lab%d", n), Kubeconfig: dir + "/admin.kubeconfig", CRISocket: dir + "/c.sock",
		}
		if c.Sysctls, err = originalSysctls(); err != nil {
			return err
		}
		return c.save()
	}
	return fmt.Errorf("all %d labs of this machine are taken; see %s", maxLabs, labRegistryDir)
}

// originalSysctls returns the values from before the first lab, or the current ones if no other lab runs.
func originalSysctls() (map[string]string, error) {
	labs, err := otherLabs("")
	if err != nil || len(labs) == 0 {
		return readSysctls(), err
	}
	return labs[0].Sysctls, nil
}

// otherLabs returns the states of all labs of this machine except the one with this id.
func otherLabs(id string) ([]State, error) {
	paths, err := filepath.Glob(labRegistryDir + "/*.json")
	if err != nil {
		return nil, err
	}
	var labs []State
	for _, path := range paths {
		var s State
		if err := s.load(path); err == nil && s.ID != id {
			labs = append(labs, s)
		}
	}
	return labs, nil
}

// addressInUse reports whether an interface of this machine has an address with the prefix.
func addressInUse(prefixes ...string) bool {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		for _, p := range prefixes {
			if strings.HasPrefix(a.String(), p) {
				return true
			}
		}
	}
	return false
}

func statePath(id string) string { return labRegistryDir + "/" + id + ".json" }

// StateFile returns the path of the lab's state file, the value for STANCH_LAB.
func (c *State) StateFile() string { return statePath(c.ID) }

func (c *State) save() error {
	content, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the lab's state: %w", err)
	}
	partial := c.StateFile() + ".partial"
	if err := os.WriteFile(partial, content, 0o600); err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	return os.Rename(partial, c.StateFile())
}

func (c *State) load(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, c)
}

// StopOrphanedLabs stops every lab whose starter is gone, except for detached labs.
func StopOrphanedLabs() error {
	labs, err := otherLabs("")
	all := []error{err}
	for _, lab := range labs {
		if !lab.Detached && !lab.Owner.isAlive() {
			all = append(all, (&Cluster{State: lab}).Stop())
		}
	}
	return errors.Join(all...)
}

// processID identifies a process by values that are never reused together: its PID and its start time in ticks since
// boot.
type processID struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start"`
	Name       string `json:"name,omitempty"`
}

func identifyProcess(pid int) (processID, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processID{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	// The name, in parentheses, can contain anything; the start time is the 20th field after it.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return processID{}, fmt.Errorf("identify process %d: it has ended", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return processID{PID: pid, StartTicks: start}, err
}

func (p processID) isAlive() bool {
	now, err := identifyProcess(p.PID)
	return err == nil && now.StartTicks == p.StartTicks
}

// sendSignal sends a signal only if the process is still the same one.
func (p processID) sendSignal(s syscall.Signal) {
	if p.isAlive() {
		_ = syscall.Kill(p.PID, s)
	}
}
