#!/usr/bin/env bash
# Installs the named Debian packages that are missing. On other systems it lists them.
set -euo pipefail
missing=()
for p in "$@"; do
	dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p")
done
[ ${#missing[@]} = 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
	echo "the tests require missing packages; install them as root: ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]}"
# RUNLEVEL=1: do not start the installed servers as services; only the tests use them.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
