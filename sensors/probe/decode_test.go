package probe

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cilium/ebpf/btf"

	"stanch/bpf"
	"stanch/sensors"
)

// record makes a record as the kernel does.
func record(kind, flags uint16, exe, cwd, args, file string) []byte {
	b := make([]byte, eHead)
	binary.NativeEndian.PutUint16(b[offKind:], kind)
	binary.NativeEndian.PutUint16(b[offFlags:], flags)
	for at, s := range map[int]string{offExeLen: exe, offCwdLen: cwd, offArgsLen: args, offFileLen: file} {
		binary.NativeEndian.PutUint16(b[at:], uint16(len(s)))
	}
	copy(b[offComm:], "sh")
	copy(b[offTTY:], "pts0")
	b[offAncestors] = 1
	binary.NativeEndian.PutUint32(b[offAncestor:], 7)
	copy(b[offAncestor+4:], "parent")
	return append(b, exe+cwd+args+file...)
}

func TestDecode(t *testing.T) {
	d, err := decode(record(4, flagWrite, "sh\x00bin\x00", "tmp\x00", "sh\x00-c\x00\xff", "shadow\x00etc\x00"))
	if err != nil {
		t.Fatal(err)
	}
	p := d.event.Process
	if p.Exe != "/bin/sh" || p.Cwd != "/tmp" || strings.Join(p.Args, "|") != "sh|-c|\uFFFD" || p.TTY != "pts0" || p.Name != "sh" ||
		d.event.File.Path != "/etc/shadow" || !d.event.File.Write || len(p.Ancestors) != 1 || p.Ancestors[0].Name != "parent" {
		t.Errorf("%+v", d.event)
	}
}

func TestAMalformedRecordIsRefused(t *testing.T) {
	good := record(1, 0, "sh\x00", "", "", "")
	for name, change := range map[string]func(b []byte) []byte{
		"empty":         func([]byte) []byte { return nil },
		"short":         func(b []byte) []byte { return b[:eHead-1] },
		"huge":          func(b []byte) []byte { return append(b, make([]byte, 2*dataSize)...) },
		"kind":          func(b []byte) []byte { b[offKind] = 99; return b },
		"ancestors":     func(b []byte) []byte { b[offAncestors] = 200; return b },
		"path too long": func(b []byte) []byte { b[offExeLen+1] = 0xff; return b },
		"args too long": func(b []byte) []byte { b[offArgsLen] = 9; return b },
	} {
		if _, err := decode(change(append([]byte(nil), good...))); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(1, flagMemfd, "memfd:x\x00", "", "x\x00", ""))
	f.Add(record(3, flagIPv6, "a\x00b\x00", "c\x00", "", ""))
	f.Add(record(2, 0, "", "", "", ""))
	f.Add(record(4, 0, "a\x00", "", strings.Repeat("\x00", 3000), "b\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := decode(b)
		if err != nil {
			return
		}
		p := d.event.Process
		if len(p.Args) > maxArgs || len(p.Ancestors) > sensors.MaxAncestors || p.StdioSockets > 7 {
			t.Fatalf("out of bounds: %+v", p)
		}
		for _, s := range append([]string{p.Exe, p.Cwd, p.Name, p.TTY, d.event.File.Path}, p.Args...) {
			if !utf8.ValidString(s) || len(s) > 3*dataSize {
				t.Fatalf("%q", s)
			}
		}
	})
}

// TestLayout holds the offsets here against the types of the compiled object.
func TestLayout(t *testing.T) {
	spec, err := bpf.LoadObserve()
	if err != nil {
		t.Fatal(err)
	}
	var s *btf.Struct
	if err := spec.Types.TypeByName("event", &s); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{
		"kind": offKind, "flags": offFlags, "exe_len": offExeLen, "cwd_len": offCwdLen, "args_len": offArgsLen, "file_len": offFileLen,
		"stdio_sockets": offStdio, "ancestors": offAncestors, "port": offPort, "time": offTime, "cgroup": offCgroup, "start": offStart,
		"capabilities": offCapabilities, "inode": offInode, "device": offDevice, "pid": offPID, "ppid": offPPID, "uid": offUID, "euid": offEUID,
		"gid": offGID, "cpu": offCPU, "exit_code": offExitCode, "target": offTarget, "value": offValue, "ns_pid": offNSPID, "call": offCall, "detail_len": offDetailLen, "address": offAddress, "comm": offComm, "tty": offTTY,
		"ancestor": offAncestor, "data": eHead,
	}
	for _, m := range s.Members {
		if at, ok := want[m.Name]; ok {
			if int(m.Offset.Bytes()) != at {
				t.Errorf("%s is at %d in the kernel's record and at %d here", m.Name, m.Offset.Bytes(), at)
			}
			delete(want, m.Name)
		}
	}
	if len(want) != 0 {
		t.Errorf("not in the kernel's record: %v", want)
	}
	if int(s.Size) != eHead+dataSize {
		t.Errorf("%d bytes, want %d", s.Size, eHead+dataSize)
	}
}

func TestExitCode(t *testing.T) {
	for status, want := range map[uint32]int{0: 0, 7 << 8: 7, 9: 137, 0x80 | 11: 139} {
		if got := exitCode(status); got != want {
			t.Errorf("%#x: %d, want %d", status, got, want)
		}
	}
}

func TestTheClockFollowsTheWall(t *testing.T) {
	wall, boot := time.Unix(1000, 0), 10*time.Second
	c := clock{read: func() (time.Time, time.Duration) { return wall, boot }}
	if got := c.wall(uint64(9 * time.Second)); !got.Equal(time.Unix(999, 0)) {
		t.Errorf("%v", got)
	}
	wall, boot = time.Unix(5000, 0), 12*time.Second // somebody set the clock
	if got := c.wall(uint64(12 * time.Second)); !got.Equal(time.Unix(5000, 0)) {
		t.Errorf("%v", got)
	}
}

func TestSensitiveClass(t *testing.T) {
	for path, want := range map[string]string{
		"/run/secrets/kubernetes.io/serviceaccount/..2026_11_23_01_02_03.123/token": sensitiveToken,
		"/var/run/secrets/eks.amazonaws.com/serviceaccount/token":                   sensitiveToken,
		"/vault/..2026_11_23/token":                                                 sensitiveToken,
		"/home/me/token":                                                            "",
		"/etc/shadow":                                                               sensitiveShadow,
		"/tmp/shadow":                                                               "",
		"/root/.aws/credentials":                                                    sensitiveCloud,
		"/srv/credentials":                                                          "",
		"/root/.config/gcloud/application_default_credentials.json":                 sensitiveCloud,
		"/root/.azure/msal_token_cache.json":                                        sensitiveCloud,
	} {
		if got := sensitiveClass(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for name := range sensitiveNames {
		if len(name) >= 48 {
			t.Errorf("%q does not fit the kernel's key", name)
		}
	}
}
