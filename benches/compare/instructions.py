"""User-space instructions per proxied request, by callgrind; see README.md. Started by instructions.sh.

A run of few requests is taken from a run of many, so that the start and the end cancel out. Unlike times, the counts are the
same within about one in a hundred on a machine that does other things.
"""

import argparse
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

from harness import KINDS, LOAD_CORE, Bench, Failed, Kind, check, main, programs

FEW, MANY = 2_000, 10_000

# callgrind_annotate: "1,234 (5.6%)  file:function [object]".
LINE = re.compile(r"^\s*([\d,]+) (?:\([\d. ]+%\))?\s+(\S.*)$")
CRATE_OF_FILE = re.compile(r"/(?:registry/src/[^/]+|git/checkouts/[^/]+)/([A-Za-z0-9_-]+?)-\d[^/]*/")
STANDARD = {"core", "alloc", "std", "hashbrown", "__rustc", "compiler_builtins"}


def count(
    bench: Bench, kind: Kind, program: str, requests: int, streams: int, load: list[str]
) -> tuple[int, Path]:
    """Instructions of a whole life that serves so many requests, and where they went."""
    profile = bench.directory / f"{kind.name}.{requests}"
    wrap = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}"]
    proxy = bench.start_proxy(kind, program, wrap, patience=60)
    check(proxy)
    command = ["taskset", "-c", str(LOAD_CORE), "h2load", "-t1", "-c16", f"-n{requests}"]
    command += [f"-m{streams}" if streams else "--h1", *load, proxy.url("/128", h2c=streams > 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answered = re.search(r"(\d+) 2xx", done.stdout)
    if not answered or int(answered[1]) != requests:
        raise Failed(f"{kind.name} did not answer {requests} requests with 2xx:\n{done.stdout}{done.stderr}")
    proxy.process.send_signal(signal.SIGTERM)
    try:
        proxy.process.wait(30)
    except subprocess.TimeoutExpired:
        raise Failed(f"{kind.name} did not end within 30 s of SIGTERM") from None
    log = (bench.directory / f"{kind.name}.log").read_text(errors="replace")
    collected = re.findall(r"Collected : (\d+)", log)
    if not collected:
        raise Failed(f"callgrind does not say what it collected:\n{log}")
    return int(collected[-1]), profile


def functions(profile: Path) -> Counter:
    """Instructions by (file, function), without what they call."""
    command = ["callgrind_annotate", "--auto=no", "--threshold=100", "--inclusive=no", str(profile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Counter = Counter()
    for line in done.stdout.splitlines():
        matched = LINE.match(line)
        if not matched or "PROGRAM TOTALS" in line:
            continue
        place = re.sub(r" \[[^\]]*\]$", "", matched[2])
        file, _, function = place.partition(":")
        found[file, function] += int(matched[1].replace(",", ""))
    return found


def component(file: str, function: str) -> str:
    """The crate whose source it is; for the standard library, inlined everywhere, the crate that it works for."""
    in_registry = CRATE_OF_FILE.search(file)
    if in_registry and in_registry[1].replace("-", "_") not in STANDARD:
        return in_registry[1].replace("-", "_").replace("libmimalloc_sys", "mimalloc")
    names = [name for name in re.findall(r"(?<![\w:])([a-z_][a-z0-9_]*)::", function) if name not in STANDARD]
    if names:
        return names[0]
    if re.search(r"(^|/)(src|lib)/[\w/]+\.rs$", file) and "/rustc/" not in file and "/library/" not in file:
        return "isobar"
    if "/rustc/" in file or "/library/" in file or "::" in function:
        return "std"
    return "libc"


def breakdown(few: Path, many: Path, requests: int, shown: int) -> None:
    each = functions(many)
    each.subtract(functions(few))
    by_component: Counter = Counter()
    by_function: Counter = Counter()
    for (file, function), instructions in each.items():
        by_component[component(file, function)] += instructions
        by_function[component(file, function), re.sub(r"'\d+$", "", function)] += instructions
    print("\nisobar, instructions per request by crate (inlined code counts where it was written, that of the standard")
    print("library where it is used):\n")
    for name, instructions in by_component.most_common():
        if instructions / requests >= 5:
            print(f"{instructions / requests:8.0f}  {name}")
    print(f"\nand by function, the first {shown}:\n")
    for (name, function), instructions in by_function.most_common(shown):
        print(f"{instructions / requests:8.0f}  {name}: {function[:140]}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="instructions.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--binary", help="the isobar to measure; without it, cargo builds one")
    parser.add_argument("--all", action="store_true", help="nginx and HAProxy too, where they are installed")
    parser.add_argument("--streams", type=int, default=0, help="HTTP/2 with so many at a time (0: HTTP/1.1)")
    parser.add_argument("--functions", type=int, default=25, help="how many functions to list (25)")
    parser.add_argument("--profile", help="keep callgrind's file of the longer run under this name")
    parser.add_argument("load", nargs="*", help="after --: further arguments of h2load, such as -H 'accept: */*'")
    return parser.parse_args()


def run() -> None:
    flags = arguments()
    names = ["isobar", *(name for name in ("nginx", "haproxy") if flags.all and shutil.which(name))]
    found = programs(names, flags.binary)
    with Bench() as bench:
        bench.start_origin()
        profiles = {}
        for name, program in found.items():
            (few, first), (many, second) = (count(bench, KINDS[name], program, n, flags.streams, flags.load) for n in (FEW, MANY))
            profiles[name] = (first, second)
            print(f"{(many - few) / (MANY - FEW):8.0f}  {name}: user instructions per request", flush=True)
        breakdown(*profiles["isobar"], MANY - FEW, flags.functions)
        if flags.profile:
            shutil.copy(profiles["isobar"][1], flags.profile)
            print(f"\nthe profile is in {flags.profile}")


if __name__ == "__main__":
    main(run)
