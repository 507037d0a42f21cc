package integrations

import (
	"strings"

	"stanch/sensors"
)

// tetragonArg is one argument of a hook. One of its fields is set.
type tetragonArg struct {
	Label  string `json:"label"`
	String scalar `json:"string_arg"`
	Int    scalar `json:"int_arg"`
	Uint   scalar `json:"uint_arg"`
	Size   scalar `json:"size_arg"`
	Long   scalar `json:"long_arg"`

	File *tetragonPath `json:"file_arg"`
	Path *tetragonPath `json:"path_arg"`
	Exec *tetragonPath `json:"linux_binprm_arg"`

	Sock     *tetragonSock `json:"sock_arg"`
	SKB      *tetragonSock `json:"skb_arg"`
	SockAddr *struct {
		Family string `json:"family"`
		Addr   string `json:"addr"`
		Port   scalar `json:"port"`
	} `json:"sockaddr_arg"`
	Module *struct {
		Name string `json:"name"`
	} `json:"module_arg"`
	BPF *struct {
		Type string `json:"ProgType"`
		Name string `json:"ProgName"`
	} `json:"bpf_attr_arg"`
	BPFProgram *struct {
		Type string `json:"ProgType"`
		Name string `json:"ProgName"`
	} `json:"bpf_prog_arg"`
	Capability *struct {
		Name string `json:"name"`
	} `json:"capability_arg"`
}

type tetragonPath struct {
	Mount string `json:"mount"`
	Path  string `json:"path"`
	Flags string `json:"flags"`
	// Permission is the mode of the file: "-rw-r--r--".
	Permission string `json:"permission"`
}

type tetragonSock struct {
	Family   string `json:"family"`
	Protocol string `json:"protocol"`
	Daddr    string `json:"daddr"`
	Dport    scalar `json:"dport"`
	Saddr    string `json:"saddr"`
	Sport    scalar `json:"sport"`
}

// permissionMaskWrite is MAY_WRITE in the second argument of security_file_permission.
const permissionMaskWrite = 2

// applyArguments fills in the event from the arguments of the hook. If the hook is unknown, the type of an argument
// determines the kind: a socket means a connection, a file means a file that was opened.
func (hook *tetragonHook) applyArguments(e *sensors.Event) {
	known := syscallKinds[e.Syscall.Name] != ""
	for i, a := range hook.Args {
		switch path := firstNonNil(a.File, a.Path, a.Exec); {
		case path != nil && e.File.Path == "":
			e.File.Path = path.Mount + path.Path
			if !known && e.Kind == sensors.KindExec && a.Exec == nil {
				e.Kind = sensors.KindFileOpen
			}
		case firstNonNil(a.Sock, a.SKB) != nil:
			s := firstNonNil(a.Sock, a.SKB)
			e.Network = sensors.Network{
				Protocol: strings.ToLower(strings.TrimPrefix(s.Protocol, "IPPROTO_")),
				Port:     s.Dport.port(),
			}
			e.Network.Address, e.Network.Family = parseAddress(s.Daddr)
			if e.Kind == sensors.KindListen {
				e.Network.Port = s.Sport.port()
			} else if !known {
				e.Kind = sensors.KindConnect
			}
		case a.SockAddr != nil:
			if strings.Contains(a.SockAddr.Family, "UNIX") {
				e.Kind, e.File.Path = sensors.KindUnixConnect, a.SockAddr.Addr
				continue
			}
			e.Network.Address, e.Network.Family = parseAddress(a.SockAddr.Addr)
			e.Network.Port = a.SockAddr.Port.port()
		case a.Module != nil:
			e.Syscall.Detail = a.Module.Name
		case a.BPF != nil || a.BPFProgram != nil:
			if a.BPF != nil {
				e.Syscall.Detail = strings.TrimSpace(a.BPF.Type + " " + a.BPF.Name)
			} else {
				e.Syscall.Detail = strings.TrimSpace(a.BPFProgram.Type + " " + a.BPFProgram.Name)
			}
		case a.Capability != nil:
			e.Syscall.Detail = a.Capability.Name
		case a.String != "" && e.File.Path == "" && strings.HasPrefix(string(a.String), "/") && e.Kind != sensors.KindConnect:
			e.File.Path, e.File.PathUnresolved = string(a.String), true
		case e.Kind == sensors.KindFileOpen && i == 1 && strings.HasSuffix(e.Syscall.Name, "file_permission"):
			e.File.OpenedForWrite = a.Int.uint64()&permissionMaskWrite != 0
		}
	}
	switch e.Kind {
	case sensors.KindExec:
		// For an exec, the file is the program that is about to run, while the process is still the one that called
		// exec.
		if e.File.Path != "" {
			e.Syscall.Detail = orDefault(e.Syscall.Detail, e.File.Path)
		}
		e.File = sensors.File{}
	case sensors.KindFileDelete, sensors.KindChmod:
		e.File.OpenedForWrite = true
	default:
	}
	if r := hook.Return; r != nil {
		e.Syscall.Failed = strings.HasPrefix(string(r.Int), "-") || strings.HasPrefix(string(r.Long), "-")
	}
}

// firstNonNil returns the first pointer that is not nil.
func firstNonNil[T any](all ...*T) *T {
	for _, p := range all {
		if p != nil {
			return p
		}
	}
	return nil
}
