#!/usr/bin/env bash
# Puts Consul under DIR (by default target/registries) and prints its path; does nothing if it is there.
#
# It is the last version with an open-source licence that Debian has packaged, from its release 11. The package is unpacked beside the system
# and not installed: that release gets no more security updates, so it belongs on loopback, in tests.
set -euo pipefail
dir=${1:-target/registries}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [[ -x $dir/consul ]]; then
  echo "$dir/consul"
  exit
fi
# The mirror that this machine uses anyway.
# shellcheck disable=SC2016 # apt's own variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -E '/debian/?$' | head -1 || true)
[[ -n $mirror ]] || { echo 'apt knows no mirror of Debian' >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/state/lists/partial "$work"/cache/archives/partial "$work/empty"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >"$work/sources.list"
apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/empty" -o "Dir::Etc::preferencesparts=$work/empty"
  -o "Dir::State=$work/state" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
cd "$work"
"${apt[@]}" update >&2
"${apt[@]}" download consul >&2
dpkg-deb -x consul_*.deb files
install -m 755 files/usr/bin/consul "$dir/consul"
echo "$dir/consul"
