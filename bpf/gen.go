// Package bpf holds the kernel programs and their generated bindings: observe (what containers do) and lock (the
// egress lock). Their sources are in src; `go generate ./bpf` needs clang-16 and libbpf-dev, using them needs neither.
//
// It refuses to hold logic in Go and is imported by sensors/probe alone.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -go-package bpf -cc clang-16 -strip llvm-strip-16 -target amd64,arm64 -no-global-types -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" Observe src/observe.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -go-package bpf -cc clang-16 -strip llvm-strip-16 -target amd64,arm64 -no-global-types -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" Lock src/lock.bpf.c
