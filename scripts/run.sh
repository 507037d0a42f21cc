#!/usr/bin/env bash
# Starts Stanch on a data directory, runs one drill, and leaves Stanch running. $1: the data directory.
set -euo pipefail
data=$1
mkdir -p "$data"
if [ "$(id -u)" != 0 ]; then
	echo "start Stanch: root is required to load eBPF programs; run sudo make run" >&2
	exit 1
fi
if pid=$(cat "$data/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null; then
	echo "Stanch is already running (pid $pid)"
else
	setsid nohup bin/stanch up --data "$data" --listen 127.0.0.1:0 >"$data/log" 2>&1 </dev/null &
	echo $! >"$data/pid"
	for _ in $(seq 300); do
		grep -q "Stanch is up." "$data/log" 2>/dev/null && break
		kill -0 "$(cat "$data/pid")" 2>/dev/null || { cat "$data/log" >&2; exit 1; }
		sleep 0.1
	done
fi
sed -n '/Stanch is up/,/Next:/p' "$data/log" | grep -v Next: || true
bin/stanch drill cryptominer --data "$data"
echo
echo "Stanch keeps running; its log is $data/log. Try:"
echo "  bin/stanch incidents --data $data"
echo "  bin/stanch audit INC-… --data $data        # with the incident ID from above"
echo "  bin/stanch leases --all --data $data"
echo "  bin/stanch drill reverse-shell --data $data"
echo "Stop it with: make stop"
