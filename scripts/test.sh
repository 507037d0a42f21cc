#!/usr/bin/env bash
# Runs every test against one lab that all packages share. $1: the state file of the lab.
set -euo pipefail
lab=$1
mkdir -p "$(dirname "$lab")"
go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
# Packages that need neither eBPF nor the Kubernetes node run in parallel.
shared='^stanch/(testenv|activities/(kube|aws)|sensors/(probe|snapshot|agent|containermeta))(/|$)'
all=$(go list ./...)
# shellcheck disable=SC2046,SC2086 # package paths have no blanks
go test -p 2 -count 1 -timeout 20m $(grep -Ev "$shared" <<<"$all")
echo "starting the Kubernetes node of the lab"
go run ./testenv/kube/cmd/labnode up --state "$lab"
trap 'go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true' EXIT
export STANCH_LAB=$lab STANCH_BIN=$PWD/bin
# The others share the kernel, the node, and two cores: one package at a time.
# shellcheck disable=SC2046,SC2086
go test -p 1 -count 1 -timeout 40m $(grep -E "$shared" <<<"$all")
