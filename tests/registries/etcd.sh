#!/usr/bin/env bash
# Puts etcd under DIR (by default target/registries) and prints its path; does nothing if it is there.
#
# It is Debian's package, unpacked and not installed: nothing is started as a service.
set -euo pipefail
dir=${1:-target/registries}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [[ ! -x $dir/etcd ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  fetch() { apt-get -qq -o APT::Sandbox::User=root download etcd-server >&2; }
  # The lists of packages may be old, or not there yet.
  fetch || { apt-get -qq update >&2 && fetch; }
  dpkg-deb -x etcd-server_*.deb files
  install -m 755 files/usr/bin/etcd "$dir/etcd"
fi
echo "$dir/etcd"
