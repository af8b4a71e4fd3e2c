#!/usr/bin/env bash
# Runs isobar beside nginx, HAProxy, Envoy and Caddy, those that are installed, and prints how they compare.
#
#   benches/compare/run.sh [--binary PATH] [--only isobar,nginx] [--rounds N] [--seconds N] [--markdown] ...; see --help
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
for tool in python3 cc taskset wrk; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]} > 0)); then
  echo "not installed: ${missing[*]} (Debian: python3, gcc, util-linux, wrk)" >&2
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
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/compare.py" "${binary[@]}" "$@"
