#!/usr/bin/env bash
# Runs the tests whose significance grows with their duration: see `make soak`. $1: the state file of the lab.
set -euo pipefail
lab=$1
mkdir -p "$(dirname "$lab")"
go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
go run ./testenv/kube/cmd/labnode up --state "$lab"
trap 'go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true' EXIT
export STANCH_LAB=$lab STANCH_BIN=$PWD/bin
go test -count 1 -timeout 30m -v -run 'BenignLoad' ./testenv/detections
go test -count 1 -timeout 30m -v -run 'WhileTheGatewayIsAway' ./worker/health
