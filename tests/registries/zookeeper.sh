#!/usr/bin/env bash
# Puts ZooKeeper under DIR (by default target/registries) and prints where its libraries are; does nothing if they are there. Needs Maven.
set -euo pipefail
dir=${1:-target/registries}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)/zookeeper
if [[ ! -d $dir ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cat >"$work/pom.xml" <<'END'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>isobar</groupId>
  <artifactId>registries</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.zookeeper</groupId>
      <artifactId>zookeeper</artifactId>
      <version>3.9.3</version>
    </dependency>
    <dependency>
      <groupId>io.dropwizard.metrics</groupId>
      <artifactId>metrics-core</artifactId>
      <version>4.1.12.1</version>
    </dependency>
    <dependency>
      <groupId>org.xerial.snappy</groupId>
      <artifactId>snappy-java</artifactId>
      <version>1.1.10.5</version>
    </dependency>
  </dependencies>
</project>
END
  (cd "$work" && mvn -B -q dependency:copy-dependencies -DoutputDirectory="$work/jars" >&2)
  mv "$work/jars" "$dir"
fi
echo "$dir"
