#!/usr/bin/env bash
# Format, vet, lint (with the import direction), generated code up to date. Tools are pinned in tools/go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
tool() { go tool -modfile=tools/go.mod "$@"; }
say() { echo "== $*"; }
say gofumpt
bad=$(tool gofumpt -l $(git ls-files '*.go' | grep -v -E '_bpfel\.go$|\.pb\.go$'))
[ -z "$bad" ] || { echo "not formatted (run: go tool -modfile=tools/go.mod gofumpt -w FILES):"; echo "$bad"; exit 1; }
say go vet
go vet ./...
say golangci-lint
tool golangci-lint run ./...
say workflowcheck
tool workflowcheck -config .workflowcheck.yaml ./workflows/...
say architecture
go test -count 1 ./testenv/architecture
if command -v clang-16 >/dev/null; then
	say "generated kernel objects"
	before=$(git ls-files -s bpf | sha256sum; sha256sum bpf/*.o bpf/*_bpfel.go)
	go generate ./bpf
	after=$(git ls-files -s bpf | sha256sum; sha256sum bpf/*.o bpf/*_bpfel.go)
	[ "$before" = "$after" ] || { echo "bpf/ is not what its sources generate: commit the result of make generate"; exit 1; }
else
	echo "SKIPPED: clang-16 is missing (apt-get install clang-16 llvm-16 libbpf-dev): generated kernel objects not compared"
fi
echo "all checks passed"
