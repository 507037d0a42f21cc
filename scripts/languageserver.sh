#!/usr/bin/env bash
# Puts the YAML language server that the tests drive, pinned, into a folder of its own. $1: the folder.
set -euo pipefail
dir=$1
version=2.0.0
[ "$(cat "$dir/version" 2>/dev/null)" = "$version" ] && exit 0
lacking() {
	echo "the YAML language server $version could not be installed ($1): the test of the editors' schema is skipped" >&2
	[ "${STANCH_NO_SKIP:-}" = 1 ] && exit 1
	exit 0
}
command -v npm >/dev/null || lacking "npm is missing: install nodejs and npm"
echo "installing yaml-language-server $version into $dir"
mkdir -p "$dir"
npm install --prefix "$dir" --no-fund --no-audit --silent "yaml-language-server@$version" >/dev/null || lacking "npm failed"
echo "$version" >"$dir/version"
