"""Runs proxies side by side in interleaved rounds; see README.md. Started by run.sh."""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

from harness import HERE, KINDS, LOAD_CORE, Bench, Failed, Proxy, check, get, machine, main, programs, version


@dataclass
class Workload:
    key: str
    title: str
    connections: int = 64
    down: int = 128
    upload: int = 0
    browser: bool = False
    close: bool = False

    @property
    def path(self) -> str:
        return f"/{self.down}"

    def environment(self) -> dict[str, str]:
        return {
            "LOAD_METHOD": "POST" if self.upload else "GET",
            "LOAD_UPLOAD": str(self.upload),
            "LOAD_HEADERS": "browser" if self.browser else "",
            "LOAD_CLOSE": "1" if self.close else "",
        }


SMALL = Workload("small", "small GET")
WORKLOADS = [
    SMALL,
    Workload("headers", "small GET, 14 headers", browser=True),
    Workload("10k-down", "10 kB down", down=10_000),
    Workload("10k-up", "10 kB up", upload=10_000),
    # Fewer connections: what is half done when the clock stops is not counted.
    Workload("1m-down", "1 MB down", connections=16, down=1_000_000),
    Workload("1m-up", "1 MB up", connections=16, upload=1_000_000),
]
CLOSE = Workload("close", "small GET, a connection each", close=True)


@dataclass
class Run:
    """One load on one proxy."""

    requests: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    resident: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu / self.requests * 1e6

    @property
    def busy(self) -> float:
        return self.cpu / self.seconds


@dataclass
class Calls:
    """System calls in steady state, of so many requests."""

    requests: int
    by_name: dict[str, int] = field(default_factory=dict)

    def each(self, *names: str) -> float:
        return sum(self.by_name.get(name, 0) for name in names) / self.requests


DATA = "read readv recvfrom recvmsg recvmmsg write writev sendto sendmsg sendmmsg sendfile splice".split()
POLL = "epoll_wait epoll_pwait epoll_pwait2 poll ppoll select".split()


def load(proxy: Proxy, workload: Workload, seconds: int) -> tuple[dict, int]:
    """Loads it for so long; what wrk says, and the memory held while it ran."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout"]
    command += ["10s", "-s", str(HERE / "load.lua"), proxy.url(workload.path)]
    environment = {**os.environ, **workload.environment()}
    wrk = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    resident = 0
    try:
        time.sleep(seconds * 0.8)
        resident = proxy.resident_bytes()
        output = wrk.communicate(timeout=seconds + 30)[0]
    finally:
        wrk.kill()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(f"wrk says of {proxy.name}, {workload.title}:\n{output}")
    said = json.loads(lines[-1])
    if said["not_2xx"] or said["broken"] or said["timeouts"] or not said["requests"]:
        raise Failed(f"{proxy.name}, {workload.title}: not every request was answered well: {lines[-1]}")
    return said, resident


def measure(proxy: Proxy, workload: Workload, seconds: int) -> Run:
    before = proxy.cpu_seconds()
    said, resident = load(proxy, workload, seconds)
    cpu = proxy.cpu_seconds() - before
    return Run(said["requests"], said["microseconds"] / 1e6, cpu, said["p50"], said["p99"], resident)


def check_workload(proxy: Proxy, workload: Workload) -> None:
    answer = get(proxy.port, workload.path, workload.upload)
    if not 200 <= answer.status < 300 or len(answer.body) != workload.down:
        raise Failed(
            f"{proxy.name}, {workload.title}: answers {answer.status} with {len(answer.body)} bytes,"
            f" not 2xx with {workload.down}"
        )


def count_calls(bench: Bench, proxy: Proxy) -> Calls:
    """System calls in steady state: of a longer load less those of a shorter one, so that connecting cancels out.

    Of the threads that serve: what others do goes by the clock, and would seem frequent where tracing makes requests slow.
    """
    before = proxy.threads()
    load(proxy, SMALL, 1)
    spent = {thread: seconds - before.get(thread, 0) for thread, seconds in proxy.threads().items()}
    serving = [thread for thread, seconds in spent.items() if seconds > 0.05 * sum(spent.values())]
    short, long = (traced(bench, proxy, serving, seconds) for seconds in (1, 3))
    names = {name for calls in (short, long) for name in calls.by_name}
    by_name = {name: long.by_name.get(name, 0) - short.by_name.get(name, 0) for name in names}
    return Calls(long.requests - short.requests, by_name)


def traced(bench: Bench, proxy: Proxy, threads: list[int], seconds: int) -> Calls:
    output = bench.directory / "strace"
    output.unlink(missing_ok=True)
    command = ["strace", "-c", "-o", str(output), *(word for thread in threads for word in ("-p", str(thread)))]
    strace = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)
        if strace.poll() is not None:
            raise Failed(f"strace of {proxy.name}: {strace.stderr.read()}")
        before = bench.origin_requests()
        load(proxy, SMALL, seconds)
        time.sleep(0.3)
        requests = bench.origin_requests() - before - 1
        strace.send_signal(signal.SIGINT)
        strace.wait(20)
    finally:
        strace.kill()
    # "% time  seconds  usecs/call  calls  [errors]  syscall"
    calls = {}
    for line in output.read_text().splitlines():
        words = line.split()
        if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
            calls[words[-1]] = int(words[3])
    return Calls(requests, calls)


def table(rows: list[list[str]], markdown: bool) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: list[str], fill: str = " ") -> str:
        padded = [
            cell.ljust(width, fill) if column < 2 else cell.rjust(width, fill)
            for column, (cell, width) in enumerate(zip(cells, widths))
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded)

    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = [line(rows[0]), line(rule) if markdown else line([""] * len(rule), "-")]
    return "\n".join(lines + [line(row) for row in rows[1:]])


def micros(value: float) -> str:
    return f"{value / 1000:.1f} ms" if value >= 10_000 else f"{value:.0f} µs"


def median(values) -> float:
    return statistics.median(list(values))


def result_rows(workloads: list[Workload], proxies: list[str], runs: dict) -> list[list[str]]:
    head = "workload|proxy|requests/s|CPU µs|isobar's CPU|busy|p50|p99|isobar's p99|RSS MiB"
    rows = [head.split("|")]
    for workload in workloads:
        for name in proxies:
            mine, isobar = runs[workload.key, name], runs.get((workload.key, "isobar"))

            def ratio(of) -> str:
                """isobar's by this one's, round by round."""
                if not isobar:
                    return "–"
                return f"{median(of(a) / of(b) for a, b in zip(isobar, mine)):.2f}"

            rows.append(
                [
                    workload.title,
                    name,
                    f"{median(run.rate for run in mine):.0f}",
                    f"{median(run.cpu_us for run in mine):.1f}",
                    ratio(lambda run: run.cpu_us),
                    f"{median(run.busy for run in mine):.0%}",
                    micros(median(run.p50 for run in mine)),
                    micros(median(run.p99 for run in mine)),
                    ratio(lambda run: run.p99),
                    f"{max(run.resident for run in mine) / 2**20:.1f}",
                ]
            )
    return rows


def call_rows(calls: dict[str, Calls]) -> list[list[str]]:
    rows = [["calls per request", "most of them", "all", "data", "poll", "futex"]]
    for name, it in calls.items():
        most = sorted(it.by_name.items(), key=lambda item: -item[1])[:7]
        said = ", ".join(f"{call} {count / it.requests:.2f}" for call, count in most if count / it.requests >= 0.005)
        counts = [it.each(*it.by_name), it.each(*DATA), it.each(*POLL)]
        rows.append([name, said, *(f"{count:.2f}" for count in counts), f"{it.each('futex'):.4f}"])
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--binary", help="the isobar to measure; without it, cargo builds one")
    parser.add_argument("--only", help="proxies, by commas: isobar,nginx", type=lambda text: text.split(","))
    parser.add_argument("--workloads", help=f"by commas: {','.join(it.key for it in [*WORKLOADS, CLOSE])}")
    parser.add_argument("--connections-close", action="store_true", help="also a connection for each request")
    parser.add_argument("--rounds", type=int, default=3, help="how often each load is repeated (3)")
    parser.add_argument("--seconds", type=int, default=1, help="of one load on one proxy (1)")
    parser.add_argument("--no-calls", action="store_true", help="do not count system calls")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    return parser.parse_args()


def run() -> None:
    flags = arguments()
    found = programs(flags.only, flags.binary)
    wanted = flags.workloads.split(",") if flags.workloads else [it.key for it in WORKLOADS]
    if flags.connections_close:
        wanted.append(CLOSE.key)
    workloads = [it for it in [*WORKLOADS, CLOSE] if it.key in wanted]
    if len(workloads) < len(set(wanted)):
        raise Failed(f"no such workload among {', '.join(wanted)}")

    with Bench() as bench:
        bench.start_origin()
        proxies = [bench.start_proxy(KINDS[name], program) for name, program in found.items()]
        for proxy in proxies:
            check(proxy)
            for workload in workloads:
                check_workload(proxy, workload)
        total = len(workloads) * len(proxies) * flags.rounds * flags.seconds
        print(f"measuring for {total} s and a bit", file=sys.stderr)
        runs = {(workload.key, proxy.name): [] for workload in workloads for proxy in proxies}
        for turn in range(flags.rounds):
            for workload in workloads:
                # Nobody is always first.
                for at in range(len(proxies)):
                    proxy = proxies[(at + turn) % len(proxies)]
                    runs[workload.key, proxy.name].append(measure(proxy, workload, flags.seconds))
        calls = {}
        if not flags.no_calls:
            if shutil.which("strace"):
                calls = {proxy.name: count_calls(bench, proxy) for proxy in proxies}
            else:
                print("strace is not installed: system calls are not counted", file=sys.stderr)
        names = [proxy.name for proxy in proxies]
        versions = ", ".join(re.sub(r" (http|-).*", "", version(KINDS[name], found[name])) for name in names)
        print(f"{machine()}; {flags.rounds} rounds of {flags.seconds} s; {versions}\n")
        print(table(result_rows(workloads, names, runs), flags.markdown))
        if calls:
            print("\n" + table(call_rows(calls), flags.markdown))


if __name__ == "__main__":
    main(run)
