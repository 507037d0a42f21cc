#!/usr/bin/env bash
# The tests that get surer with time, for long: see `make soak`. $1: the lab's state file.
set -euo pipefail
lab=$1
mkdir -p "$(dirname "$lab")"
go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
go run ./testenv/kube/cmd/labnode up --state "$lab"
trap 'go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true' EXIT
export STANCH_LAB=$lab STANCH_BIN=$PWD/bin
go test -count 1 -timeout 30m -v -run 'BenignLoad' ./testenv/detections
go test -count 1 -timeout 30m -v -run 'WhileTheGatewayIsAway' ./worker/health
