"""Attacks an isobar beside well-behaved clients and tells what these saw of it. Started by run.sh."""

import argparse
import datetime
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import attacks

HERE = os.path.dirname(os.path.abspath(__file__))
PROXY_CORE, LOAD_CORE = 0, 1
CLIENTS, RATE = 100, 20
# The clients' own beginning, a hundred connections at once, tells nothing of the attack.
UNCOUNTED_SECONDS = 1
BASELINE_SECONDS, ATTACK_SECONDS = 10, 20
# A few lines tell of an attack. Some for each second are a part of it: they fill disks, and who writes them waits.
MOST_LINES = ATTACK_SECONDS

CONFIG = """\
workers = 1
admin = {{ address = "127.0.0.1:{admin}" }}
[[listener]]
address = "127.0.0.1:{plain}"
max_connections = 20000
[[listener]]
name = "tls"
address = "127.0.0.1:{tls}"
tls = {{ certificates = [{{ certificate = "{work}/cert.pem", key = "{work}/key.pem" }}] }}
[[listener]]
name = "limited"
address = "127.0.0.1:{limited}"
[listener.tls]
certificates = [{{ certificate = "{work}/cert.pem", key = "{work}/key.pem" }}]
# Above what the hundred well-behaved do who begin together from one address; the attacker has another.
handshakes_per_second_per_address = 200
[[route]]
upstream = "origin"
# A twelfth of the default, so that what is slow is caught within the twenty seconds.
timeouts = {{ body_idle = "5s" }}
[upstream.origin]
backends = ["127.0.0.1:{origin}"]
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def until(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def pinned(core, command, **options):
    return subprocess.Popen(["taskset", "-c", str(core), *command], **options)


def preferred(command, **options):
    """On the attacker's core, and running before it: a kernel that preempts lazily would have them wait for its tick, 4 ms."""
    return pinned(LOAD_CORE, ["chrt", "--fifo", "1", *command], **options)


class Isobar:
    """One process for each attack, so that its memory tells of that one."""

    def __init__(self, binary, work, origin):
        self.plain, self.tls, self.limited, self.admin = free_ports(4)
        config = os.path.join(work, "lb.toml")
        with open(config, "w") as file:
            file.write(CONFIG.format(work=work, origin=origin, plain=self.plain, tls=self.tls, limited=self.limited, admin=self.admin))
        self.log = open(os.path.join(work, "log"), "w")
        self.process = pinned(PROXY_CORE, [binary, "--config", config], stdout=self.log, stderr=self.log)
        until(lambda: listens(self.plain) and listens(self.tls), "isobar listens")

    def lines(self):
        """How many it has logged."""
        with open(self.log.name, "rb") as log:
            return sum(1 for _ in log)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def memory(self, field):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Clients:
    """A hundred clients that ask at their own pace, half by HTTP/1.1 and half by HTTP/2."""

    def __init__(self, work, url, seconds):
        self.logs = [os.path.join(work, f"clients-{n}") for n in range(2)]
        self.processes, self.statuses = [], {}
        for log, protocol in zip(self.logs, (["--h1"], [])):
            if os.path.exists(log):
                os.unlink(log)
            command = ["h2load", *protocol, "-t1", f"-c{CLIENTS // 2}", "-m1", f"--rps={RATE}", f"-D{UNCOUNTED_SECONDS + seconds}", f"--log-file={log}"]
            out = open(log + ".out", "w")
            self.processes.append(preferred([*command, f"{url}/128"], stdout=out, stderr=out))

    def wait(self):
        """How many requests there were, how many failed, and the 99th percentile of the times in milliseconds."""
        times, failed = [], 0
        for process, log in zip(self.processes, self.logs):
            process.wait(60)
            with open(log) as lines:
                first = None
                for line in lines:
                    began, status, micros = line.split()[:3]
                    first = first or int(began)
                    if int(began) < first + UNCOUNTED_SECONDS * 1_000_000 and status == "200":
                        continue
                    if status == "200":
                        times.append(int(micros))
                    else:
                        failed += 1
                        self.statuses[status] = self.statuses.get(status, 0) + 1
            # A client that was turned away has no line in the log.
            with open(log + ".out") as out:
                told = next((line for line in out if line.startswith("requests:")), "")
            counts = {word: int(number) for number, word in (part.split() for part in told[9:].replace(" total", " total,").split(",") if len(part.split()) == 2)}
            failed = max(failed, counts.get("failed", 0) + counts.get("errored", 0) + counts.get("timeout", 0))
        if failed:
            print(f"failed: {failed}, by status {self.statuses}", file=sys.stderr)
        times.sort()
        at = lambda share: times[min(len(times) - 1, int(len(times) * share))] / 1000 if times else float("nan")
        return len(times), failed, at(0.99)


# What may tell of an attack, by the beginning of its name.
TELLING = [
    "isobar_listener_http2_floods_total",
    "isobar_listener_requests_rejected_total",
    "isobar_listener_connections_refused_total",
    "isobar_listener_http2_resets_total",
    "isobar_tls_handshake_failures_total",
    "isobar_tls_handshakes_total",
    "isobar_listener_slow",
    "isobar_listener_connections_limited_total",
]


def caught(before, after):
    told = []
    for name, value in after.items():
        more = value - before.get(name, 0)
        if more > 0 and any(name.startswith(start) for start in TELLING):
            short = name.removeprefix("isobar_").replace('listener="127.0.0.1:', "").replace("_total", "")
            labels = [part.split("=")[1].strip('"}') for part in short.partition("{")[2].split(",") if "=" in part and "listener" not in part]
            told.append(f"`{short.partition('{')[0]}` {' '.join(labels)} {more:.0f}".replace("  ", " "))
    return ", ".join(told[:4]) or "–"


def one(name, binary, work, origin):
    isobar = Isobar(binary, work, origin)
    try:
        secure = name.startswith("handshakes")
        port = isobar.limited if name.endswith(", limited") else isobar.tls if secure else isobar.plain
        url = f"http{'s' * secure}://127.0.0.1:{port}"
        _, failed_before, usual = Clients(work, url, BASELINE_SECONDS).wait()
        before, memory, lines = isobar.metrics(), isobar.memory("VmRSS"), isobar.lines()
        running = attacks.Running(name, port, LOAD_CORE)
        # What holds something is there before the others come: while it begins, it is a thousand requests like any others.
        time.sleep(2 if name in attacks.HOLDING else 0.5)
        cpu, began = isobar.cpu(), time.monotonic()
        served, failed, attacked = Clients(work, url, ATTACK_SECONDS).wait()
        busy = (isobar.cpu() - cpu) / (time.monotonic() - began)
        after = isobar.metrics()
        made, sent = running.stop()
        if isobar.process.poll() is not None:
            sys.exit(f"{name}: isobar is gone")
        return {
            "attack": name,
            "connections": made,
            "MB sent": f"{sent / 1e6:.0f}",
            "requests": served,
            "errors": failed_before + failed,
            "p99 before": f"{usual:.2f} ms",
            "p99": f"{attacked:.2f} ms",
            "ratio": f"{attacked / usual:.2f}",
            "CPU": f"{busy:.0%}",
            "MiB before": f"{memory:.0f}",
            "MiB at most": f"{isobar.memory('VmHWM'):.0f}",
            "log lines": isobar.lines() - lines,
            "seen in": caught(before, after),
        }
    finally:
        isobar.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--only", help="names of attacks, with semicolons between")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    names = [name.strip() for name in options.only.split(";")] if options.only else list(attacks.ALL)
    work = tempfile.mkdtemp(prefix="isobar-attacks-")
    origin_binary = os.path.join(work, "origin")
    subprocess.run(["cc", "-O2", "-o", origin_binary, os.path.join(HERE, "../compare/origin.c")], check=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9", "-subj", "/CN=t",
         "-addext", "subjectAltName=DNS:test.example,IP:127.0.0.1", "-keyout", f"{work}/key.pem", "-out", f"{work}/cert.pem"],
        check=True, capture_output=True,
    )
    (port,) = free_ports(1)
    origin = preferred([origin_binary, str(port)])
    until(lambda: listens(port), "the origin listens")
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        rows = []
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows.append(one(name, os.path.abspath(options.binary), work, port))
            print(rows[-1], file=sys.stderr, flush=True)
    finally:
        origin.kill()
        shutil.rmtree(work, ignore_errors=True)
    processor = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    print(f"{datetime.date.today()}, {processor}, {os.cpu_count()} cores, Linux {platform.release()}; {ATTACK_SECONDS} s each\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "|".join("---" if it in ("attack", "seen in") else "--:" for it in columns) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")
    bad = [row["attack"] for row in rows if row["errors"] or float(row["ratio"]) > 2 or row["log lines"] > MOST_LINES]
    if bad:
        print(f"\nnot held: {', '.join(bad)}")
        sys.exit(1)


main()
