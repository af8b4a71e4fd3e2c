#!/usr/bin/env bash
# Real clients before isobar and real servers behind it: each test_*.py beside this, or those that are named.
# usage: bash tests/peers/run.sh BINARY [NAME...]
# Needs: python3 with venv, openssl, curl, nginx, node, chromium, nghttp2-client (h2load). The packages of requirements.txt go to target/peers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "$1")
shift
venv=${CARGO_TARGET_DIR:-$here/../../target}/peers
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi
scripts=("${@/#/$here/test_}")
scripts=("${scripts[@]/%/.py}")
(($#)) || scripts=("$here"/test_*.py)
failed=()
for script in "${scripts[@]}"; do
  echo "-- $(basename "$script" .py)"
  PYTHONDONTWRITEBYTECODE=1 timeout 240 "$venv/bin/python" "$script" "$binary" || failed+=("$(basename "$script")")
done
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2; exit 1; }
