#!/usr/bin/env bash
# Checks the module files, format, vet, lint (with the import direction), words, and that generated code is up to date.
# tools/go.mod and tools/chart/go.mod pin the tools.
set -euo pipefail
cd "$(dirname "$0")/.."
tool() { go tool -modfile=tools/go.mod "$@"; }
print_step() { echo "== $*"; }
print_step "go mod tidy"
for module in . tools tools/chart; do
	(cd $module && go mod tidy -diff) || { echo "$module/go.mod or go.sum is not tidy; run go mod tidy in $module"; exit 1; }
done
print_step gofumpt
bad=$(tool gofumpt -l $(git ls-files '*.go' | grep -v -E '_bpfel\.go$|\.pb\.go$'))
[ -z "$bad" ] || { echo "files are not formatted; run go tool -modfile=tools/go.mod gofumpt -w FILES:"; echo "$bad"; exit 1; }
print_step go vet
go vet ./...
print_step golangci-lint
tool golangci-lint run ./...
print_step workflowcheck
tool workflowcheck -config .workflowcheck.yaml ./workflows/...
print_step "architecture, formats, help texts and replaced words"
go test -count 1 ./testenv/architecture ./testenv/formats ./testenv/clihelp ./testenv/words
if command -v clang-format-16 >/dev/null; then
	print_step clang-format
	clang-format-16 --dry-run --Werror bpf/src/*.[ch]
else
	echo "SKIPPED: format of bpf/src not compared: clang-format-16 is missing; run apt-get install clang-format-16"
fi
if command -v clang-16 >/dev/null; then
	print_step "generated kernel objects"
	before=$(git ls-files -s bpf | sha256sum; sha256sum bpf/*.o bpf/*_bpfel.go)
	go generate ./bpf
	after=$(git ls-files -s bpf | sha256sum; sha256sum bpf/*.o bpf/*_bpfel.go)
	[ "$before" = "$after" ] || { echo "bpf/ differs from its sources; run make generate and commit the result"; exit 1; }
else
	echo "SKIPPED: generated kernel objects not compared: clang-16 is missing; run apt-get install clang-16 llvm-16 libbpf-dev"
fi
echo "all checks passed"
