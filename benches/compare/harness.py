"""What the measurements in this folder share: the origin, the proxies in front of it, and what the kernel says of them."""

import contextlib
import ctypes
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

# The proxy has a core of its own; whatever loads it and answers it shares another.
PROXY_CORE = 0
LOAD_CORE = 1


class Failed(Exception):
    """What makes the measurement worthless, in words for whoever started it."""


@dataclass
class Kind:
    """How a proxy is started in the foreground with one worker."""

    name: str
    config: str
    command: list[str]
    version: list[str]
    metrics: str = "/metrics"
    # In place of `command` where there may be only one process.
    single: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)


KINDS = {
    kind.name: kind
    for kind in [
        Kind("isobar", "isobar.toml", ["isobar", "--config", "@CONFIG@"], ["isobar", "--version"]),
        Kind(
            "nginx",
            "nginx.conf",
            ["nginx", "-p", "@DIR@", "-c", "@CONFIG@", "-e", "@DIR@/nginx.error", "-g", "daemon off;"],
            ["nginx", "-v"],
            single=["nginx", "-p", "@DIR@", "-c", "@CONFIG@", "-e", "@DIR@/nginx.error", "-g"]
            + ["daemon off; master_process off;"],
        ),
        Kind("haproxy", "haproxy.cfg", ["haproxy", "-db", "-f", "@CONFIG@"], ["haproxy", "-v"]),
        Kind(
            "envoy",
            "envoy.yaml",
            ["envoy", "-c", "@CONFIG@", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"],
            ["envoy", "--version"],
            metrics="/stats/prometheus",
        ),
        Kind(
            "caddy",
            "caddy.caddyfile",
            ["caddy", "run", "--config", "@CONFIG@", "--adapter", "caddyfile"],
            ["caddy", "version"],
            environment={"GOMAXPROCS": "1", "HOME": "@DIR@", "XDG_DATA_HOME": "@DIR@", "XDG_CONFIG_HOME": "@DIR@"},
        ),
    ]
}


@dataclass
class Proxy:
    """One that runs."""

    kind: Kind
    program: str
    process: subprocess.Popen
    port: int
    metrics: int
    # Where it speaks TLS, if it was asked to.
    tls: int
    # Where it speaks HTTP/2 with who begins with it (RFC 9113 §3.3).
    h2c: int

    @property
    def name(self) -> str:
        return self.kind.name

    def url(self, path: str, tls: bool = False, h2c: bool = False) -> str:
        if tls:
            return f"https://127.0.0.1:{self.tls}{path}"
        return f"http://127.0.0.1:{self.h2c if h2c else self.port}{path}"

    def processes(self) -> list[int]:
        """It and its children: they are in a process group of their own."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                    if int(fields[2]) == self.process.pid:
                        found.append(int(entry))
        return found

    def threads(self) -> dict[int, tuple[float, float]]:
        """Seconds that each thread has run so far, and that it was ready while something else ran in its place.

        By the scheduler's clock, which counts nanoseconds.
        """
        spent = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError):
                        ran, waited, *_ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
                        spent[int(thread)] = (int(ran) / 1e9, int(waited) / 1e9)
        return spent

    def cpu_seconds(self) -> float:
        return sum(ran for ran, _ in self.threads().values())

    def waited_seconds(self) -> float:
        return sum(waited for _, waited in self.threads().values())

    def resident_bytes(self) -> int:
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        return total


class Bench:
    """A temporary directory, the origin, and the proxies. Leaves nothing behind: use it as a context."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen] = []
        self.directory = Path(tempfile.mkdtemp(prefix="compare-"))
        # Workers that run as somebody else have to get at their files.
        self.directory.chmod(0o755)
        self.origins = (0, 0)
        self.certified = False

    def __enter__(self) -> "Bench":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        pin(os.getpid(), LOAD_CORE)
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self.children):
            self.stop(child)
        shutil.rmtree(self.directory, ignore_errors=True)

    def start_origin(self) -> None:
        if not shutil.which("cc"):
            raise Failed("there is no C compiler (cc) for the origin")
        program = self.directory / "origin"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "origin.c"], check=True)
        self.origins = (free_port(), free_port())
        child = self.spawn([str(program), *map(str, self.origins)], LOAD_CORE, "origin")
        for port in self.origins:
            wait_for(port, child, self.directory / "origin.log")

    def certify(self) -> None:
        """Makes a certificate, with which proxies that are started from now on speak TLS too."""
        if not shutil.which("openssl"):
            raise Failed("there is no openssl to make a certificate with")
        certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=bench"
        command += " -addext subjectAltName=DNS:bench.example,IP:127.0.0.1"
        subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
        (self.directory / "both.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
        for path in (key, self.directory / "both.pem"):
            path.chmod(0o644)
        self.certified = True

    def origin_requests(self) -> int:
        """How many requests have come through to the origin."""
        return int(get(self.origins[0], "/count").body)

    def start_proxy(
        self, kind: Kind, program: str, wrap: list[str] | None = None, connections: int = 10_000, patience: float = 10
    ) -> Proxy:
        """Starts it and waits until it answers; under the command `wrap` it is one process."""
        port, metrics, tls, h2c = (free_port() for _ in range(4))
        config = self.directory / kind.config
        words = {
            "@PORT@": port,
            "@METRICS@": metrics,
            "@TLS_PORT@": tls,
            "@H2C_PORT@": h2c,
            "@CERTIFICATE@": self.directory / "certificate.pem",
            "@KEY@": self.directory / "key.pem",
            "@BOTH@": self.directory / "both.pem",
            "@ORIGIN_A@": self.origins[0],
            "@ORIGIN_B@": self.origins[1],
            "@CONNECTIONS@": connections,
            "@DIR@": self.directory,
            "@CONFIG@": config,
        }

        def filled(text: str) -> str:
            for word, value in words.items():
                text = text.replace(word, str(value))
            return text

        text = (HERE / "configs" / kind.config).read_text()
        if self.certified:
            # Lines for TLS: within the file, or behind it.
            text = text.replace("#@TLS@ ", "")
            behind = HERE / "configs" / f"tls.{kind.config}"
            text += behind.read_text() if behind.exists() else ""
        config.write_text(filled(text))
        command = kind.single if wrap and kind.single else kind.command
        command = [*(wrap or []), program, *(filled(word) for word in command[1:])]
        environment = {name: filled(value) for name, value in kind.environment.items()}
        child = self.spawn(command, PROXY_CORE, kind.name, environment)
        wait_for(port, child, self.directory / f"{kind.name}.log", patience)
        if self.certified:
            wait_for(tls, child, self.directory / f"{kind.name}.log", patience)
        return Proxy(kind, program, child, port, metrics, tls, h2c)

    def spawn(
        self, command: list[str], core: int, name: str, environment: dict[str, str] | None = None
    ) -> subprocess.Popen:
        log = open(self.directory / f"{name}.log", "wb")
        child = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
            env={**os.environ, **(environment or {})},
        )
        self.children.append(child)
        return child

    def stop(self, child: subprocess.Popen) -> None:
        """Asks a child and its children to end, and sees to it."""
        if child in self.children:
            self.children.remove(child)
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def pin(pid: int, core: int) -> None:
    if len(os.sched_getaffinity(0)) < 2 and os.cpu_count() == 1:
        raise Failed("two cores are needed: one for the proxy, one for what loads it")
    os.sched_setaffinity(pid, {core})


def end_with_parent() -> None:
    """Should this program be killed, the kernel ends what it started (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, child: subprocess.Popen, log: Path, patience: float = 10) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise Failed(f"{log.stem} ended at its start:\n{log.read_text(errors='replace')}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise Failed(f"{log.stem} does not listen after {patience:.0f} s:\n{log.read_text(errors='replace')}")


@dataclass
class Answer:
    status: int
    body: bytes


def get(port: int, path: str, upload: int = 0, tls: bool = False) -> Answer:
    import http.client
    import ssl

    if tls:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST" if upload else "GET", path, body=b"u" * upload if upload else None)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def check(proxy: Proxy) -> None:
    """It does what it is measured at: forwards, says for whom, and counts."""
    head = get(proxy.port, "/head")
    text = head.body.decode("latin-1").lower()
    if not 200 <= head.status < 300:
        raise Failed(f"{proxy.name} answers {head.status}: {text[:500]}")
    # Envoy names the machine's own address in place of the loopback one.
    if not re.search(r"\r\nx-forwarded-for: [\d.]+\r\n", text):
        raise Failed(f"{proxy.name} does not say x-forwarded-for but\n{text}")
    if f"\r\nhost: 127.0.0.1:{proxy.port}\r\n" not in text:
        raise Failed(f"{proxy.name} does not pass the client's host on but\n{text}")
    metrics = get(proxy.metrics, proxy.kind.metrics)
    if not 200 <= metrics.status < 300:
        raise Failed(f"{proxy.name} answers {metrics.status} where its metrics should be")


def programs(only: list[str] | None, binary: str | None) -> dict[str, str]:
    """Where each proxy is; what is missing is told, and is a failure where it was asked for."""
    found = {}
    for name in only or KINDS:
        if name not in KINDS:
            raise Failed(f"{name} is not one of {', '.join(KINDS)}")
        path = binary if name == "isobar" else shutil.which(name)
        if path and Path(path).exists():
            found[name] = str(Path(path).resolve()) if name == "isobar" else path
        elif only or name == "isobar":
            raise Failed(f"{name} is not there" + (f": {path}" if path else ""))
        else:
            print(f"{name} is not installed and is left out", file=sys.stderr)
    return found


def version(kind: Kind, program: str) -> str:
    done = subprocess.run([program, *kind.version[1:]], capture_output=True, text=True, check=False)
    line = (done.stdout + done.stderr).strip().splitlines()[0]
    return line.removeprefix("nginx version: ")


def machine() -> str:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    control = "unknown"
    with contextlib.suppress(OSError):
        control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release}, TCP by {control}"


def main(run) -> None:
    """Runs a measurement; says in one line why it failed."""
    try:
        run()
    except Failed as failed:
        sys.exit(f"failed: {failed}")
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed: {failed}")
