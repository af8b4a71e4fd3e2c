#!/usr/bin/env bash
# Builds a Eureka server of Spring Cloud Netflix under DIR (by default target/registries) and prints the path of its jar; does nothing if it is
# there. Needs a JDK 17 and Maven: about a minute, and 60 MB.
set -euo pipefail
dir=${1:-target/registries}
sources=$(cd "$(dirname "$0")/eureka" && pwd)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [[ ! -f $dir/eureka.jar ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cp -r "$sources/." "$work"
  mvn --quiet --batch-mode --file "$work/pom.xml" package >&2
  install -m 644 "$work/target/eureka-1.jar" "$dir/eureka.jar"
fi
echo "$dir/eureka.jar"
