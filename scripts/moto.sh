#!/usr/bin/env bash
# Installs the pinned AWS emulator of the tests into its own virtual environment. $1: the directory for it.
set -euo pipefail
dir=$1
version=5.2.1
has() { "$1" -c "import moto, flask, sys; sys.exit(moto.__version__ != '$version')" >/dev/null 2>&1; }
[ -x "$dir/bin/moto_server" ] && has "$dir/bin/python" && exit 0
# An installed one of the same version is sufficient.
command -v moto_server >/dev/null && has python3 && exit 0
echo "installing moto_server $version into $dir"
rm -rf "$dir"
skip() {
	rm -rf "$dir"
	echo "install moto_server $version: $1; the AWS tests are skipped unless moto_server is on the PATH" >&2
	[ "${STANCH_NO_SKIP:-}" = 1 ] && exit 1
	exit 0
}
python3 -m venv "$dir" || skip "python3 with venv is missing"
"$dir/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$version" || skip "pip failed"
