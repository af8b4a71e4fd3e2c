"""What the scripts beside this one share: checks, certificates, ports, and an isobar between a client and a server."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

BINARY = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else sys.exit(f"usage: {sys.argv[0]} BINARY")
FAILED = []


def check(name, good, seen=""):
    print(f"{'ok  ' if good else 'FAIL'} {name}{'' if good else f': {seen!r}'[:2000]}", flush=True)
    if not good:
        FAILED.append(name)


def done():
    """Ends the script, whatever threads are left."""
    print(f"{len(FAILED)} failed: {FAILED}" if FAILED else "all held", flush=True)
    os._exit(1 if FAILED else 0)


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def run(*command, **options):
    return subprocess.run(command, capture_output=True, timeout=60, **options)


class Work:
    """A directory of the script's own, with a certificate that vouches for itself."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="isobar-peers-")
        # nginx's worker is somebody else.
        os.chmod(self.path, 0o755)
        self.certificate, self.key = self.make_certificate("cert")

    def file(self, name, content):
        path = os.path.join(self.path, name)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return path

    def make_certificate(self, name):
        certificate, key = os.path.join(self.path, f"{name}.pem"), os.path.join(self.path, f"{name}.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=DNS:localhost,DNS:test.example,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
             "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )
        return certificate, key

    def start(self, name, command, *ports, **options):
        """A server that is there once it listens."""
        log = open(os.path.join(self.path, f"{name}.log"), "wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        if not eventually(lambda: all(map(listens, ports)), 30):
            process.kill()
            sys.exit(f"{name} does not start:\n{open(log.name).read()}")
        return process


class Isobar:
    """isobar with a listener in the clear and one that speaks TLS, and `keys` for what is behind them."""

    def __init__(self, work, keys, head="", plain="", secure=""):
        self.work, self.plain, self.tls, self.admin = work, free_port(), free_port(), free_port()
        self.head, self.listeners = head, (plain, secure)
        self.path = os.path.join(work.path, f"lb-{self.plain}.toml")
        self.write(keys)
        self.process = work.start(f"isobar-{self.plain}", [BINARY, "--config", self.path], self.plain, self.tls, self.admin)
        self.http, self.https = f"http://127.0.0.1:{self.plain}", f"https://localhost:{self.tls}"

    def text(self, keys):
        plain, secure = self.listeners
        return (
            f'{self.head}\nadmin = {{ address = "127.0.0.1:{self.admin}" }}\n'
            f'[[listener]]\nname = "plain"\naddress = "127.0.0.1:{self.plain}"\n{plain}\n'
            f'[[listener]]\nname = "tls"\naddress = "127.0.0.1:{self.tls}"\n{secure}\n'
            f'[listener.tls]\ncertificates = [{{ certificate = "{self.work.certificate}", key = "{self.work.key}" }}]\n{keys}\n'
        )

    def write(self, keys):
        """As an editor does it: a new file in the place of the old one."""
        with open(self.path + ".new", "w") as file:
            file.write(self.text(keys))
        os.rename(self.path + ".new", self.path)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as response:
            return response.read().decode().splitlines()

    def metric(self, start):
        """The sum of the series that begin so."""
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metrics() if line.startswith(start))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
