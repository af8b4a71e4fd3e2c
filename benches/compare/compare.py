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
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    tls: bool = False
    # Streams at a time on each connection, by HTTP/2 with prior knowledge.
    streams: int = 0
    # Requests a second, however fast they are answered; 0 is as many as there can be.
    rate: int = 0

    @property
    def path(self) -> str:
        return f"/{self.down}"

    @property
    def by_h2load(self) -> bool:
        return self.streams > 0 or self.rate > 0

    @property
    def has_rate(self) -> bool:
        return not self.browser and not self.close

    def at(self, rate: int) -> "Workload":
        """The same at so many requests a second."""
        if not self.has_rate:
            raise Failed(f"{self.key} has no rate: h2load sends neither a browser's headers nor each request on a connection of its own")
        return replace(self, title=f"{self.title}, {rate}/s", rate=rate)

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
# TLS 1.3 with a P-256 certificate.
TLS = [
    Workload("tls", "small GET by TLS", tls=True),
    Workload("tls-1m-down", "1 MB down by TLS", connections=16, down=1_000_000, tls=True),
    # wrk takes up no session, so each is a full handshake.
    Workload("tls-handshake", "small GET, a handshake each", connections=16, close=True, tls=True),
]
H2C = [
    Workload("h2c", "small GET by HTTP/2, 8 streams", connections=16, streams=8),
    Workload("h2c-10k", "10 kB down by HTTP/2, 8 streams", connections=16, down=10_000, streams=8),
]
CLOSE = Workload("close", "small GET, a connection each", close=True)
CHOICE = [*WORKLOADS, *TLS, *H2C, CLOSE]


@dataclass
class Run:
    """One load on one proxy."""

    requests: int
    seconds: float
    cpu: float
    waited: float
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

    @property
    def disturbed(self) -> float:
        return self.waited / self.seconds


@dataclass
class Calls:
    """System calls in steady state, of so many requests."""

    requests: int
    by_name: dict[str, int] = field(default_factory=dict)

    def each(self, *names: str) -> float:
        return sum(self.by_name.get(name, 0) for name in names) / self.requests


# The share of the time in which something else may run while the proxy is ready.
DISTURBED_MAX = 0.05

DATA = "read readv recvfrom recvmsg recvmmsg write writev sendto sendmsg sendmmsg sendfile splice".split()
POLL = "epoll_wait epoll_pwait epoll_pwait2 poll ppoll select".split()


def load(bench: Bench, proxy: Proxy, workload: Workload, seconds: int) -> tuple[dict, int]:
    """Loads it for so long; what the load's program says, and the memory held while it ran."""
    log = bench.directory / "h2load"
    url = proxy.url(workload.path, workload.tls, workload.streams > 0)
    if workload.by_h2load:
        log.unlink(missing_ok=True)
        command = ["h2load", "-t1", f"-c{workload.connections}", f"-D{seconds}", f"--log-file={log}"]
        command += [f"-m{workload.streams}"] if workload.streams else ["--h1"]
        command += [f"--rps={workload.rate / workload.connections}"] if workload.rate else []
        if workload.upload:
            upload = bench.directory / "upload"
            upload.write_bytes(bytes(workload.upload))
            command += ["-d", str(upload)]
        command += [url]
    else:
        command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout", "10s"]
        command += ["-s", str(HERE / "load.lua"), url]
    command = ["taskset", "-c", str(LOAD_CORE), *command]
    environment = {**os.environ, **workload.environment()}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    resident = 0
    try:
        time.sleep(seconds * 0.8)
        resident = proxy.resident_bytes()
        output = running.communicate(timeout=seconds + 30)[0]
    finally:
        running.kill()
    said = said_by_h2load(output, log) if workload.by_h2load else said_by_wrk(output)
    if not said:
        raise Failed(f"{command[3]} says of {proxy.name}, {workload.title}:\n{output}")
    if said["not_2xx"] or said["broken"] or said["timeouts"] or not said["requests"]:
        raise Failed(f"{proxy.name}, {workload.title}: not every request was answered well: {said}")
    return said, resident


def said_by_wrk(output: str) -> dict | None:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def said_by_h2load(output: str, log: Path) -> dict | None:
    """The same, of h2load's summary and its lines of start, status and microseconds."""
    totals = re.search(r"requests: .* (\d+) failed, (\d+) errored, (\d+) timeout", output)
    finished = re.search(r"^finished in ([\d.]+)s", output, re.MULTILINE)
    if not totals or not finished:
        return None
    failed, errored, timeouts = map(int, totals.groups())
    answers = [line.split("\t") for line in log.read_text().splitlines()]
    times = sorted(int(taken) for _, _, taken in answers) or [0]
    return {
        "requests": len(answers),
        "microseconds": float(finished[1]) * 1e6,
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "not_2xx": sum(not status.startswith("2") for _, status, _ in answers),
        "broken": max(failed, errored),
        "timeouts": timeouts,
    }


def measure(bench: Bench, proxy: Proxy, workload: Workload, seconds: int) -> Run:
    cpu, waited = proxy.cpu_seconds(), proxy.waited_seconds()
    said, resident = load(bench, proxy, workload, seconds)
    cpu, waited = proxy.cpu_seconds() - cpu, proxy.waited_seconds() - waited
    if said["requests"] < 0.95 * workload.rate * seconds:
        raise Failed(f"{proxy.name}, {workload.title}: no more than {said['requests'] / seconds:.0f}/s were asked")
    return Run(said["requests"], said["microseconds"] / 1e6, cpu, waited, said["p50"], said["p99"], resident)


def measure_quietly(bench: Bench, proxy: Proxy, workload: Workload, seconds: int, patience: int) -> Run:
    """Repeats a load in which other programs ran on the proxy's core; gives back the least disturbed."""
    best = measure(bench, proxy, workload, seconds)
    for _ in range(patience):
        if best.disturbed <= DISTURBED_MAX:
            break
        time.sleep(1)
        best = min(best, measure(bench, proxy, workload, seconds), key=lambda run: run.disturbed)
    return best


def check_workload(proxy: Proxy, workload: Workload) -> None:
    if workload.streams:
        # Python's own client has no HTTP/2.
        command = ["curl", "-sS", "--http2-prior-knowledge", "--max-time", "10", "-w", "%{http_version} %{http_code} %{size_download}"]
        command += ["-o", "/dev/null", proxy.url(workload.path, h2c=True)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.stdout != f"2 200 {workload.down}":
            raise Failed(f"{proxy.name}, {workload.title}: answers {said.stdout or said.stderr}, not 2 200 {workload.down}")
        return
    answer = get(proxy.tls if workload.tls else proxy.port, workload.path, workload.upload, workload.tls)
    if not 200 <= answer.status < 300 or len(answer.body) != workload.down:
        raise Failed(
            f"{proxy.name}, {workload.title}: answers {answer.status} with {len(answer.body)} bytes,"
            f" not 2xx with {workload.down}"
        )


def count_calls(bench: Bench, proxy: Proxy, workload: Workload) -> Calls:
    """System calls in steady state: of a longer load less those of a shorter one, so that connecting cancels out.

    Of the threads that serve: what others do goes by the clock, and would seem frequent where tracing makes requests slow.
    """
    before = proxy.threads()
    load(bench, proxy, workload, 1)
    spent = {thread: ran - before.get(thread, (0, 0))[0] for thread, (ran, _) in proxy.threads().items()}
    serving = [thread for thread, seconds in spent.items() if seconds > 0.05 * sum(spent.values())]
    short, long = (traced(bench, proxy, workload, serving, seconds) for seconds in (1, 3))
    names = {name for calls in (short, long) for name in calls.by_name}
    by_name = {name: long.by_name.get(name, 0) - short.by_name.get(name, 0) for name in names}
    return Calls(long.requests - short.requests, by_name)


def traced(bench: Bench, proxy: Proxy, workload: Workload, threads: list[int], seconds: int) -> Calls:
    output = bench.directory / "strace"
    output.unlink(missing_ok=True)
    command = ["strace", "-c", "-o", str(output), *(word for thread in threads for word in ("-p", str(thread)))]
    strace = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)
        if strace.poll() is not None:
            raise Failed(f"strace of {proxy.name}: {strace.stderr.read()}")
        before = bench.origin_requests()
        load(bench, proxy, workload, seconds)
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
    words = [title in ("workload", "proxy", "calls per request", "most of them") for title in rows[0]]

    def line(cells: list[str]) -> str:
        columns = zip(cells, widths, words)
        padded = [cell.ljust(width) if word else cell.rjust(width) for cell, width, word in columns]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = ["-" * (width - 1) + ("-" if word or not markdown else ":") for width, word in zip(widths, words)]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])


def micros(value: float) -> str:
    return f"{value / 1000:.1f} ms" if value >= 10_000 else f"{value:.0f} µs"


def median(values) -> float:
    return statistics.median(list(values))


def least(runs: list[Run]) -> float:
    """The CPU time of a request in the best round: whatever else the machine does can only add to it."""
    return min(run.cpu_us for run in runs)


def result_rows(workloads: list[Workload], proxies: list[str], runs: dict) -> list[list[str]]:
    head = "workload|proxy|requests/s|CPU µs|isobar's|least|isobar's|busy|disturbed|p50|p99|isobar's|RSS MiB"
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
                    f"{least(mine):.1f}",
                    f"{least(isobar) / least(mine):.2f}" if isobar else "–",
                    f"{median(run.busy for run in mine):.0%}",
                    f"{median(run.disturbed for run in mine):.0%}",
                    micros(median(run.p50 for run in mine)),
                    micros(median(run.p99 for run in mine)),
                    ratio(lambda run: run.p99),
                    f"{max(run.resident for run in mine) / 2**20:.1f}",
                ]
            )
    return rows


def call_rows(calls: dict[tuple[str, str], Calls]) -> list[list[str]]:
    rows = [["calls per request", "proxy", "all", "data", "poll", "futex", "most of them"]]
    for (title, name), it in calls.items():
        most = sorted(it.by_name.items(), key=lambda item: -item[1])[:7]
        said = ", ".join(f"{call} {count / it.requests:.2f}" for call, count in most if count / it.requests >= 0.005)
        counts = [it.each(*it.by_name), it.each(*DATA), it.each(*POLL)]
        rows.append([title, name, *(f"{count:.2f}" for count in counts), f"{it.each('futex'):.4f}", said])
    return rows


def choose(keys: str) -> list[Workload]:
    known = {it.key: it for it in CHOICE}
    unknown = [key for key in keys.split(",") if key not in known]
    if unknown:
        raise Failed(f"no such workload: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[key] for key in keys.split(",")]


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--binary", help="the isobar to measure; without it, cargo builds one")
    parser.add_argument("--only", help="proxies, by commas: isobar,nginx", type=lambda text: text.split(","))
    parser.add_argument("--workloads", help=f"by commas: {','.join(it.key for it in CHOICE)}")
    parser.add_argument("--connections-close", action="store_true", help="also a connection for each request")
    parser.add_argument("--rounds", type=int, default=3, help="how often each load is repeated (3)")
    parser.add_argument("--rate", type=positive, help="requests a second, the same for all, by h2load; without it, as many as there can be")
    parser.add_argument("--restarts", type=positive, default=1, help="how often all are started anew for these rounds (1)")
    parser.add_argument("--seconds", type=int, default=1, help="of one load on one proxy (1)")
    parser.add_argument("--patience", type=int, default=0, help="repeat a disturbed load up to so often (0)")
    parser.add_argument("--calls", default="small", help="workloads whose system calls are counted (small), or none")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    return parser.parse_args()


def run() -> None:
    flags = arguments()
    found = programs(flags.only, flags.binary)
    workloads = choose(flags.workloads) if flags.workloads else WORKLOADS
    if flags.connections_close and CLOSE not in workloads:
        workloads = [*workloads, CLOSE]
    if flags.rate:
        if not flags.workloads:
            workloads = [workload for workload in workloads if workload.has_rate]
        workloads = [workload.at(flags.rate) for workload in workloads]
    for tool in ("curl", "h2load"):
        if any(workload.by_h2load for workload in workloads) and not shutil.which(tool):
            raise Failed(f"{tool} is not installed, which loads by HTTP/2 or at a rate need (Debian: curl, nghttp2-client)")
    traced_workloads = [] if flags.calls == "none" else choose(flags.calls)
    if traced_workloads and not shutil.which("strace"):
        print("strace is not installed: system calls are not counted", file=sys.stderr)
        traced_workloads = []

    total = len(workloads) * len(found) * flags.rounds * flags.restarts * flags.seconds
    print(f"measuring for {total} s and a bit", file=sys.stderr)
    runs = {(workload.key, name): [] for workload in workloads for name in found}
    for restart in range(flags.restarts):
        with Bench() as bench:
            bench.start_origin()
            if any(workload.tls for workload in workloads):
                bench.certify()
            proxies = [bench.start_proxy(KINDS[name], program) for name, program in found.items()]
            for proxy in proxies:
                check(proxy)
                for workload in workloads:
                    check_workload(proxy, workload)
            for turn in range(flags.rounds):
                for workload in workloads:
                    # Nobody is always first.
                    for at in range(len(proxies)):
                        proxy = proxies[(at + turn + restart) % len(proxies)]
                        runs[workload.key, proxy.name].append(
                            measure_quietly(bench, proxy, workload, flags.seconds, flags.patience)
                        )
            # Once: they do not differ from start to start.
            last = restart + 1 == flags.restarts
            calls = {
                (workload.title, proxy.name): count_calls(bench, proxy, workload)
                for workload in traced_workloads if last
                for proxy in proxies
            }
    names = list(found)
    versions = ", ".join(re.sub(r" (http|-).*", "", version(KINDS[name], found[name])) for name in names)
    restarted = f", {flags.restarts} times" if flags.restarts > 1 else ""
    print(f"{machine()}; {flags.rounds} rounds of {flags.seconds} s{restarted}; {versions}\n")
    print(table(result_rows(workloads, names, runs), flags.markdown))
    disturbed = median(run.disturbed for each in runs.values() for run in each)
    if disturbed > DISTURBED_MAX:
        print(f"\nOther programs held the proxies' core while these were ready: {disturbed:.0%} of the time.")
    if calls:
        print("\n" + table(call_rows(calls), flags.markdown))


if __name__ == "__main__":
    main(run)
