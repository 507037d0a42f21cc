#!/usr/bin/env bash
# Runs the benchmarks and writes bench.json, one JSON object per line. $1: the state file of the lab. Environment (default):
# STANCH_BENCH_N: runs of each benchmark (30); STANCH_BENCH_PAIRS: pairs of each load with and without the sensor (3);
# STANCH_BENCH_CORPUS: number of simulated recordings (500; published figures use 10000).
set -euo pipefail
lab=$1
mkdir -p "$(dirname "$lab")"
go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true
go run ./testenv/kube/cmd/labnode up --state "$lab"
trap 'go run ./testenv/kube/cmd/labnode down --state "$lab" >/dev/null 2>&1 || true' EXIT
export STANCH_LAB=$lab STANCH_BIN=$PWD/bin STANCH_BENCH_OUT=$PWD/bench.json
: >"$STANCH_BENCH_OUT"
n=${STANCH_BENCH_N:-30}
go test -run '^$' -bench . -skip 'Simulate|Validate|StartAndStop|Sensor(Cost|Idle)|RingStorm|Recorded' -benchtime "${n}x" -timeout 60m ./testenv/bench
go test -run '^$' -bench StartAndStop -benchtime 10x -timeout 10m ./testenv/bench
# Neither needs more than a few runs: each is of hundreds of incidents, or of a thousand playbooks.
go test -run '^$' -bench Validate -benchtime 5x -timeout 10m ./testenv/bench
go test -run '^$' -bench Simulate -benchtime 1x -timeout 60m ./testenv/bench
# Each of these repeats itself: STANCH_BENCH_PAIRS pairs of a load with and without the sensor, storms of 40,000 events.
go test -run '^$' -bench 'Sensor(Cost|Idle)|RingStorm' -benchtime 1x -timeout 60m ./testenv/bench
go test -run '^$' -bench Recorded -benchtime 3s -timeout 10m ./testenv/bench
go test -run '^$' -bench . -benchtime 1s ./sensors/rules ./sensors/probe ./sensors/redact
cat "$STANCH_BENCH_OUT"
