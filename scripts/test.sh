#!/usr/bin/env bash
# Runs every test against one lab that all packages share. $1: the lab's state file.
set -euo pipefail
lab=$1
mkdir -p "$(dirname "$lab")"
go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
# What needs neither the kernel's programs nor the node: packages of it run side by side.
shared='^stanch/(testenv|activities/(kube|aws)|sensors/(probe|snapshot|agent|containermeta))(/|$)'
all=$(go list ./...)
# shellcheck disable=SC2046,SC2086 # package paths have no blanks
go test -p 2 -count 1 -timeout 20m $(grep -Ev "$shared" <<<"$all")
echo "starting the lab's Kubernetes node"
go run ./testenv/kube/cmd/labnode up --state "$lab"
trap 'go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true' EXIT
export STANCH_LAB=$lab STANCH_BIN=$PWD/bin
# One package at a time where they share the kernel, the node and the machine's two cores.
# shellcheck disable=SC2046,SC2086
go test -p 1 -count 1 -timeout 40m $(grep -E "$shared" <<<"$all")
