// Package bpf contains the kernel programs and their generated bindings: observe, which reports what containers do, and
// lock, the egress lock. The sources are in src. `go generate ./bpf` requires clang-16 and libbpf-dev; using the
// generated bindings requires neither.
//
// The package refuses to contain logic in Go. Only sensors/probe imports it.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -go-package bpf -cc clang-16 -strip llvm-strip-16 -target amd64,arm64 -no-global-types -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" Observe src/observe.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -go-package bpf -cc clang-16 -strip llvm-strip-16 -target amd64,arm64 -no-global-types -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" Lock src/lock.bpf.c
