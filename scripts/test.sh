#!/usr/bin/env bash
# Runs every test against one lab that all packages share, and lists the slowest. $1: the state file of the lab.
set -euo pipefail
lab=$1
mkdir -p "$(dirname "$lab")"
work=$(mktemp -d)
finish() {
	go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
	[ ! -s "$work/times" ] || "$work/testreport" -slowest 10 -times "$work/times"
	rm -rf "$work"
}
trap finish EXIT
go build -o "$work/testreport" ./testenv/testreport
# The output is that of `go test`; pipefail keeps its exit status. Without debug information, a test that has Temporal in it
# links in two thirds of the time.
run() {
	local phase=$1
	shift
	go test -json -count 1 -ldflags=-w "$@" | "$work/testreport" -phase "$phase" -times "$work/times"
}
go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
# Packages that need neither eBPF nor the Kubernetes node run in parallel.
shared='^stanch/(testenv|activities/(kube|aws)|sensors/(probe|snapshot|agent|containermeta))(/|$)'
all=$(go list ./...)
# shellcheck disable=SC2046,SC2086 # package paths have no blanks
run parallel -p 2 -timeout 20m $(grep -Ev "$shared" <<<"$all")
echo "starting the Kubernetes node of the lab"
go run ./testenv/kube/cmd/labnode up --state "$lab"
export STANCH_LAB=$lab STANCH_BIN=$PWD/bin STANCH_IMAGES=$PWD/dist/lab
# The others share the kernel, the node, and two cores: one package at a time.
# shellcheck disable=SC2046,SC2086
run shared -p 1 -timeout 40m $(grep -E "$shared" <<<"$all")
