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

// rawRecord returns a record in the kernel's layout.
func rawRecord(kind, flags uint16, exe, cwd, args, file string) []byte {
	b := make([]byte, eventHeaderSize)
	binary.NativeEndian.PutUint16(b[offsetKind:], kind)
	binary.NativeEndian.PutUint16(b[offsetFlags:], flags)
	for at, s := range map[int]string{offsetExeLen: exe, offsetCwdLen: cwd, offsetArgsLen: args, offsetFileLen: file} {
		binary.NativeEndian.PutUint16(b[at:], uint16(len(s)))
	}
	copy(b[offsetComm:], "sh")
	copy(b[offsetTTY:], "pts0")
	b[offsetAncestors] = 1
	binary.NativeEndian.PutUint32(b[offsetAncestor:], 7)
	copy(b[offsetAncestor+4:], "parent")
	return append(b, exe+cwd+args+file...)
}

func TestDecode(t *testing.T) {
	d, err := decodeRecord(rawRecord(4, flagOpenedForWrite, "sh\x00bin\x00", "tmp\x00", "sh\x00-c\x00\xff",
		"shadow\x00etc\x00"))
	if err != nil {
		t.Fatal(err)
	}
	p := d.event.Process
	if p.Exe != "/bin/sh" || p.Cwd != "/tmp" || strings.Join(p.Args, "|") != "sh|-c|\uFFFD" || p.TTY != "pts0" ||
		p.Name != "sh" ||
		d.event.File.Path != "/etc/shadow" || !d.event.File.OpenedForWrite || len(p.Ancestors) != 1 ||
		p.Ancestors[0].Name != "parent" {
		t.Errorf("%+v", d.event)
	}
}

func TestDecodeRejectsMalformedRecord(t *testing.T) {
	good := rawRecord(1, 0, "sh\x00", "", "", "")
	for name, change := range map[string]func(b []byte) []byte{
		"empty":         func([]byte) []byte { return nil },
		"short":         func(b []byte) []byte { return b[:eventHeaderSize-1] },
		"huge":          func(b []byte) []byte { return append(b, make([]byte, 2*maxEventDataBytes)...) },
		"kind":          func(b []byte) []byte { b[offsetKind] = 99; return b },
		"ancestors":     func(b []byte) []byte { b[offsetAncestors] = 200; return b },
		"path too long": func(b []byte) []byte { b[offsetExeLen+1] = 0xff; return b },
		"args too long": func(b []byte) []byte { b[offsetArgsLen] = 9; return b },
	} {
		if _, err := decodeRecord(change(append([]byte(nil), good...))); !errors.Is(err, errMalformedRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(rawRecord(1, flagMemfd, "memfd:x\x00", "", "x\x00", ""))
	f.Add(rawRecord(3, flagIPv6, "a\x00b\x00", "c\x00", "", ""))
	f.Add(rawRecord(2, 0, "", "", "", ""))
	f.Add(rawRecord(4, 0, "a\x00", "", strings.Repeat("\x00", 3000), "b\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := decodeRecord(b)
		if err != nil {
			return
		}
		p := d.event.Process
		if len(p.Args) > maxArgs || len(p.Ancestors) > sensors.MaxAncestors || p.StdioSockets > 7 {
			t.Fatalf("out of bounds: %+v", p)
		}
		for _, s := range append([]string{p.Exe, p.Cwd, p.Name, p.TTY, d.event.File.Path}, p.Args...) {
			if !utf8.ValidString(s) || len(s) > 3*maxEventDataBytes {
				t.Fatalf("%q", s)
			}
		}
	})
}

// TestLayout compares the offsets with the BTF types of the compiled object.
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
		"kind": offsetKind, "flags": offsetFlags, "exe_len": offsetExeLen, "cwd_len": offsetCwdLen, "args_len": offsetArgsLen,
		"file_len":      offsetFileLen,
		"stdio_sockets": offsetStdio, "ancestors": offsetAncestors, "port": offsetPort, "time": offsetTime,
		"cgroup": offsetCgroup, "start": offsetStart,
		"capabilities": offsetCapabilities, "inode": offsetInode, "device": offsetDevice, "pid": offsetPID,
		"ppid": offsetPPID, "uid": offsetUID, "euid": offsetEUID,
		"gid": offsetGID, "cpu": offsetCPU, "exit_code": offsetExitCode, "target": offsetTarget, "value": offsetValue,
		"ns_pid": offsetNSPID, "call": offsetCall, "detail_len": offsetDetailLen, "address": offsetAddress,
		"comm": offsetComm, "tty": offsetTTY,
		"ancestor": offsetAncestor, "data": eventHeaderSize,
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
	if int(s.Size) != eventHeaderSize+maxEventDataBytes {
		t.Errorf("%d bytes, want %d", s.Size, eventHeaderSize+maxEventDataBytes)
	}
}

func TestExitCode(t *testing.T) {
	for status, want := range map[uint32]int{0: 0, 7 << 8: 7, 9: 137, 0x80 | 11: 139} {
		if got := exitCode(status); got != want {
			t.Errorf("%#x: %d, want %d", status, got, want)
		}
	}
}

func TestBootClockFollowsTheWallClock(t *testing.T) {
	wall, boot := time.Unix(1000, 0), 10*time.Second
	c := bootClock{readClocks: func() (time.Time, time.Duration) { return wall, boot }}
	if got := c.toWallTime(uint64(9 * time.Second)); !got.Equal(time.Unix(999, 0)) {
		t.Errorf("%v", got)
	}
	wall, boot = time.Unix(5000, 0), 12*time.Second // the wall clock was set
	if got := c.toWallTime(uint64(12 * time.Second)); !got.Equal(time.Unix(5000, 0)) {
		t.Errorf("%v", got)
	}
}

func TestSensitiveClass(t *testing.T) {
	for path, want := range map[string]string{
		"/run/secrets/kubernetes.io/serviceaccount/..2026_11_23_01_02_03.123/token": sensitiveServiceAccountToken,
		"/var/run/secrets/eks.amazonaws.com/serviceaccount/token":                   sensitiveServiceAccountToken,
		"/vault/..2026_11_23/token":                                                 sensitiveServiceAccountToken,
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
