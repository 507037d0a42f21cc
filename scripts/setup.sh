#!/usr/bin/env bash
# Installs the Debian packages that are named and missing. On another system it says what to install.
set -euo pipefail
missing=()
for p in "$@"; do
	dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p")
done
[ ${#missing[@]} = 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
	echo "the tests need these packages; install them as root: ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]}"
# RUNLEVEL=1: the servers among them are for the tests; none is to be started as the machine's own.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
