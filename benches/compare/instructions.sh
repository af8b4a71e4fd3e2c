#!/usr/bin/env bash
# Counts the user-space instructions that a proxied request costs, and says in which crates they are spent.
#
#   benches/compare/instructions.sh [--binary PATH] [--all] [--profile FILE] ...; see --help
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
for tool in python3 cc taskset valgrind callgrind_annotate h2load; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]} > 0)); then
  echo "not installed: ${missing[*]} (Debian: python3, gcc, util-linux, valgrind, nghttp2-client)" >&2
  exit 1
fi

binary=()
case " $* " in
  *" --binary "* | *" --binary="* | *" --help "* | *" -h "*) ;;
  *)
    cargo build --release --manifest-path "$here/../../Cargo.toml"
    binary=(--binary "$here/../../target/release/isobar")
    ;;
esac
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/instructions.py" "${binary[@]}" "$@"
