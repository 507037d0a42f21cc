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
lacking() {
	rm -rf "$dir"
	echo "moto_server $version could not be installed ($1): the tests of AWS are skipped; one on the PATH is used too" >&2
	[ "${STANCH_NO_SKIP:-}" = 1 ] && exit 1
	exit 0
}
python3 -m venv "$dir" || lacking "python3 with venv is missing"
"$dir/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$version" || lacking "pip failed"
