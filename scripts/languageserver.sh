#!/usr/bin/env bash
# Installs the pinned YAML language server that the schema tests use. $1: the directory for it.
set -euo pipefail
dir=$1
version=2.0.0
[ "$(cat "$dir/version" 2>/dev/null)" = "$version" ] && exit 0
skip() {
	echo "install yaml-language-server $version: $1; the schema test of editors is skipped" >&2
	[ "${STANCH_NO_SKIP:-}" = 1 ] && exit 1
	exit 0
}
command -v npm >/dev/null || skip "npm is missing, install nodejs and npm"
echo "installing yaml-language-server $version into $dir"
mkdir -p "$dir"
npm install --prefix "$dir" --no-fund --no-audit --silent "yaml-language-server@$version" >/dev/null || skip "npm failed"
echo "$version" >"$dir/version"
