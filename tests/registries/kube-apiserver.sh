#!/usr/bin/env bash
# Builds kube-apiserver under DIR (by default target/registries) and prints its path; does nothing if it is there.
#
# It is made from the modules that Kubernetes publishes, with the current Go. It takes some thirteen minutes of processor time and 2 GB of
# Go's caches the first time. isobar's tests need no more of a cluster: they write what its controllers would.
set -euo pipefail
dir=${1:-target/registries}
release=1.37.2
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [[ ! -x $dir/kube-apiserver ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/server"
  cd "$work"
  cat >server/main.go <<'END'
// Starts kube-apiserver, as its own main package does.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
END
  kubernetes=$(GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@v$release" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
  {
    printf 'module apiserver\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$release"
    # What is in Kubernetes' own tree is published as modules of the same release.
    sed -n "s|^\t\(k8s.io/[^ ]*\) => ./staging/.*|\t\1 => \1 v0.${release#1.}|p" "$kubernetes"
    printf ')\n'
  } >go.mod
  go mod tidy >&2
  go build -trimpath -ldflags='-s -w' -o kube-apiserver ./server
  # Under its name only when it is whole.
  mv kube-apiserver "$dir/kube-apiserver"
fi
echo "$dir/kube-apiserver"
