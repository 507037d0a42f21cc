package kube

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// makeNetwork creates the pods' bridge before any pod needs it, because its address is the node's. It also gives the
// bridge the address of the Service `kubernetes`: the API server listens there, so that in-cluster clients reach it
// without a kube-proxy. The DNS server has an address of the same kind.
func (c *Cluster) makeNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a control socket: %w", err)
	}
	defer unix.Close(fd)
	if err := bridgeIoctl(fd, unix.SIOCBRADDBR, c.Bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make the bridge %s: %w", c.Bridge, err)
	}
	for _, a := range []struct{ alias, ip, mask string }{
		{c.Bridge, c.NodeIP, "255.255.255.0"},
		{c.Bridge + ":1", c.apiServerIP(), "255.255.255.255"},
		{c.Bridge + ":2", c.dnsIP(), "255.255.255.255"},
	} {
		if err := setInterfaceAddress(fd, unix.SIOCSIFADDR, a.alias, a.ip); err != nil {
			return fmt.Errorf("give %s the address %s: %w", a.alias, a.ip, err)
		}
		if err := setInterfaceAddress(fd, unix.SIOCSIFNETMASK, a.alias, a.mask); err != nil {
			return fmt.Errorf("give %s the mask %s: %w", a.alias, a.mask, err)
		}
	}
	return setInterfaceUp(fd, c.Bridge, true)
}

// removeNetwork removes the bridge. The pods' interfaces disappear with their network namespaces.
func (c *State) removeNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a control socket: %w", err)
	}
	defer unix.Close(fd)
	if _, err := net.InterfaceByName(c.Bridge); err != nil {
		return nil
	}
	if err := setInterfaceUp(fd, c.Bridge, false); err != nil {
		return err
	}
	if err := bridgeIoctl(fd, unix.SIOCBRDELBR, c.Bridge); err != nil {
		return fmt.Errorf("remove the bridge %s: %w", c.Bridge, err)
	}
	return nil
}

func (c *State) apiServerIP() string {
	u, err := url.Parse(c.APIServer)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func bridgeIoctl(fd int, request uint, name string) error {
	bytes, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request),
		uintptr(unsafe.Pointer(bytes))); errno != 0 {
		return errno
	}
	return nil
}

func setInterfaceAddress(fd int, request uint, name, ip string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := ifr.SetInet4Addr(net.ParseIP(ip).To4()); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, request, ifr)
}

func setInterfaceUp(fd int, name string, up bool) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("read the flags of %s: %w", name, err)
	}
	flags := ifr.Uint16() | unix.IFF_UP
	if !up {
		flags &^= unix.IFF_UP
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set the flags of %s: %w", name, err)
	}
	return nil
}

// The kubelet sets these sysctls, and CNI the last one. They are restored when the last lab stops.
var changedSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet",
}

func readSysctls() map[string]string {
	values := map[string]string{}
	for _, name := range changedSysctls {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil {
			values[name] = string(value)
		}
	}
	return values
}

func restoreSysctls(values map[string]string) {
	for name, value := range values {
		if now, err := os.ReadFile("/proc/sys/" + name); err == nil && string(now) != value {
			_ = os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)
		}
	}
}
