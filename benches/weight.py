#!/usr/bin/env python3
"""What the parts of a binary weigh: code and data of symbols, by the crate or module that they are of, in KiB.

usage: benches/weight.py target/release/isobar

A generic function is counted where its name says it is from, so the figures of one crate may be a tenth off. Data without a symbol of its
own, and what the linker adds, is in none of them.
"""
import re
import subprocess
import sys

PARTS = [
    ("isobar itself, without the lines below", r"isobar::(?!discovery::|registry::|http_client)"),
    ("sources: the loop, the safety layer, files, HTTP, push", r"isobar::discovery::(?!consul|eureka|nacos|etcd|zookeeper|docker|dns|kubernetes|registry)"),
    ("`consul`", r"isobar::discovery::consul"),
    ("`eureka`, with quick-xml", r"isobar::discovery::eureka|isobar::eureka_xml|quick_xml"),
    ("`nacos`", r"isobar::discovery::nacos"),
    ("`etcd`", r"isobar::discovery::etcd"),
    ("`zookeeper`", r"isobar::discovery::zookeeper"),
    ("`docker`", r"isobar::discovery::docker"),
    ("`kubernetes` (a feature), with serde-saphyr", r"isobar::discovery::kubernetes|saphyr|granit|encoding_rs|annotate_snippets|arraydeque"),
    ("`dns` and names, with hickory", r"isobar::discovery::(dns|names)|hickory|moka"),
    ("the registry of isobar", r"isobar::registry|isobar::discovery::registry"),
    ("the HTTP client of sources, with hyper-util", r"isobar::http_client|hyper_util"),
    ("rustls, webpki", r"rustls|webpki"),
    ("certificates read: x509-parser", r"x509_parser|asn1_rs|oid_registry|der_parser|\btime::"),
    ("regex", r"regex|aho_corasick"),
    ("h2", r"\bh2::"),
    ("hyper", r"\bhyper::"),
    ("the command line: clap", r"\bclap|anstream|anstyle"),
    ("toml", r"\btoml|winnow"),
    ("JSON", r"serde_json"),
    ("logging: tracing-subscriber", r"tracing_subscriber|matchers|sharded_slab"),
]


def symbols(binary):
    listed = subprocess.run(["nm", "-S", "-C", "--defined-only", binary], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        parts = line.split(None, 3)
        if len(parts) == 4 and re.fullmatch("[0-9a-f]{16}", parts[1]) and parts[2] not in "bB":
            yield int(parts[1], 16), parts[3]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip().splitlines()[2])
    known = list(symbols(sys.argv[1]))
    rows = [(name, sum(size for size, symbol in known if re.search(pattern, symbol))) for name, pattern in PARTS]
    rows.append(("C: aws-lc above all", sum(size for size, symbol in known if "::" not in symbol)))
    print("| part | KiB |\n|---|--:|")
    for name, size in rows:
        print(f"| {name} | {size / 1024:.0f} |")
    print(f"| all symbols | {sum(size for size, _ in known) / 1024:.0f} |")


main()
