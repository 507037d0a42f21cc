#!/usr/bin/env bash
# Starts Stanch on a data directory, runs one drill, and leaves it up. $1: the data directory.
set -euo pipefail
data=$1
mkdir -p "$data"
if [ "$(id -u)" != 0 ]; then
	echo "Stanch watches the kernel: run this as root (sudo make run)" >&2
	exit 1
fi
if pid=$(cat "$data/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null; then
	echo "Stanch is up already (pid $pid)"
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
echo "Stanch stays up; its log is $data/log. Look at:"
echo "  bin/stanch incidents --data $data"
echo "  bin/stanch audit INC-… --data $data        # with the incident's id from above"
echo "  bin/stanch leases --all --data $data"
echo "  bin/stanch drill reverse-shell --data $data"
echo "stop it with: make stop"
