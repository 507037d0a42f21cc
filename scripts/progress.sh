#!/usr/bin/env bash
# Runs a long build and prints the elapsed time every ten seconds.
set -u
begin=$SECONDS
"$@" &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
	for _ in $(seq 20); do
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.5
	done
	kill -0 "$pid" 2>/dev/null && echo "  … $((SECONDS - begin)) s"
done
wait "$pid"
status=$?
[ "$status" = 0 ] && echo "  built in $((SECONDS - begin)) s"
exit "$status"
