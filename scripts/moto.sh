#!/usr/bin/env bash
# Puts the AWS emulator of the tests, pinned, into a virtual environment of its own. $1: its folder.
set -euo pipefail
dir=$1
version=5.2.1
has() { "$1" -c "import moto, flask, sys; sys.exit(moto.__version__ != '$version')" >/dev/null 2>&1; }
[ -x "$dir/bin/moto_server" ] && has "$dir/bin/python" && exit 0
# One that the machine has already will do.
command -v moto_server >/dev/null && has python3 && exit 0
echo "installing moto_server $version into $dir"
rm -rf "$dir"
python3 -m venv "$dir" || { echo "python3 with venv is missing: apt-get install python3-venv" >&2; exit 1; }
"$dir/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$version" || {
	rm -rf "$dir"
	echo "the tests need moto_server $version, and pip could not install it; where it is on the PATH already, that one is used" >&2
	exit 1
}
