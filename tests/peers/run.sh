#!/usr/bin/env bash
# Real clients in front of isobar and real servers behind it: runs every test_*.py here, or those that are named.
# usage: tests/peers/run.sh BINARY [NAME...]      NAME is that of a script without test_ and .py, such as curl
# Needs python3 with venv, and what the scripts run: curl, h2load, openssl, nginx, node, npm, chromium, apache2, php, puma with Rack, go,
# javac, mvn, git, svn with mod_dav_svn, cadaver, litmus, docker-registry, skopeo and a static busybox; docker and dockerd if they are there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "${1:?usage: run.sh BINARY [NAME...]}")
shift
[[ -x $binary ]] || { echo "no program: $binary" >&2; exit 2; }
names=("$@")
if ((${#names[@]} == 0)); then
  for script in "$here"/test_*.py; do
    script=${script##*/test_}
    names+=("${script%.py}")
  done
fi

# Made anew when the list of packages changes.
venv=${CARGO_TARGET_DIR:-$here/../../target}/peers-venv
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi

# The packages of node, likewise. None of them is let run anything at its installation.
modules=${CARGO_TARGET_DIR:-$here/../../target}/peers-node
if [[ " ${names[*]} " =~ " npm "|" socket_io "|" registry " ]] && ! cmp -s "$here/servers/package-lock.json" "$modules/installed.json"; then
  rm -rf "$modules"
  mkdir -p "$modules"
  cp "$here/servers/package.json" "$here/servers/package-lock.json" "$modules"
  npm ci --prefix "$modules" --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null
  cp "$here/servers/package-lock.json" "$modules/installed.json"
fi
NODE_PATH=$(realpath -m "$modules")/node_modules
export NODE_PATH

# What of the servers has to be compiled; made anew when a source changes.
built=${CARGO_TARGET_DIR:-$here/../../target}/peers-servers
sources=("$here/servers/paths.go" "$here/servers/java/Paths.java" "$here/servers/java/pom.xml")
if [[ " ${names[*]} " == *" paths "* ]] && ! cat "${sources[@]}" | cmp -s - "$built/sources"; then
  rm -rf "$built"
  mkdir -p "$built/java"
  go build -o "$built/paths-go" "${sources[0]}"
  # Quiet as it is, it would still reset the terminal's colours.
  mvn --quiet --batch-mode --file "${sources[2]}" dependency:copy-dependencies -DoutputDirectory="$(realpath "$built/java")" | sed 's/\x1b\[0m//g'
  javac -d "$built/java" -cp "$built/java/*" "${sources[1]}"
  cat "${sources[@]}" >"$built/sources"
fi

# Services that register by client libraries, likewise: one in Go, and one of Spring Boot with each of two starters.
registry=${CARGO_TARGET_DIR:-$here/../../target}/peers-registry
sources=("$here/registry/go/main.go" "$here/registry/go/go.mod" "$here/registry/spring/pom.xml" "$here/registry/spring/src/main/java/users/Users.java")
if [[ " ${names[*]} " == *" registry "* ]] && ! cat "${sources[@]}" | cmp -s - "$registry/sources"; then
  rm -rf "$registry"
  mkdir -p "$registry"
  registry=$(realpath "$registry")
  (cd "$here/registry/go" && go build -o "$registry/go-service" .)
  for starter in eureka consul; do
    cp -r "$here/registry/spring" "$registry/$starter"
    mvn --quiet --batch-mode --file "$registry/$starter/pom.xml" --activate-profiles "$starter" package | sed 's/\x1b\[0m//g'
    mv "$registry/$starter/target/users-1.jar" "$registry/users-$starter.jar"
    rm -rf "${registry:?}/$starter"
  done
  cat "${sources[@]}" >"$registry/sources"
fi

# And one of Go Micro.
micro=${CARGO_TARGET_DIR:-$here/../../target}/peers-go-micro
sources=("$here/go_micro/main.go" "$here/go_micro/go.mod")
if [[ " ${names[*]} " == *" go_micro "* ]] && ! cat "${sources[@]}" | cmp -s - "$micro/sources"; then
  rm -rf "$micro"
  mkdir -p "$micro"
  micro=$(realpath "$micro")
  (cd "$here/go_micro" && go build -o "$micro/service" .)
  cat "${sources[@]}" >"$micro/sources"
fi

failed=()
said=$(mktemp)
trap 'rm -f "$said"' EXIT
for name in "${names[@]}"; do
  echo "-- $name"
  begun=$SECONDS
  # A script that hangs has failed, and so has one that says nothing.
  code=0
  PYTHONDONTWRITEBYTECODE=1 timeout --kill-after=5 240 "$venv/bin/python" "$here/test_$name.py" "$binary" | tee "$said" || code=$?
  checks=$(grep -c '^ok  ' "$said" || true)
  if [[ $code != 0 || $checks == 0 ]]; then failed+=("$name"); fi
  echo "-- $name: $checks checks held, $((SECONDS - begun)) s"
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
