#!/usr/bin/env bash
# Attacks isobar in every way that ../../docs/attacks.md lists, 20 s each, beside 100 well-behaved clients.
# usage: bash benches/attacks/run.sh [--only "NAME;NAME"]
# Needs: python3, openssl, a C compiler, nghttp2-client (h2load), chrt and root (SCHED_FIFO), 30 000 file descriptors. Takes twelve minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
[[ -n ${ISOBAR:-} ]] || cargo build --locked --release --bin isobar
PYTHONDONTWRITEBYTECODE=1 exec python3 benches/attacks/run.py "${ISOBAR:-target/release/isobar}" "$@"
