"""What the scripts share: checks that are counted, a directory with a certificate, servers, and an isobar between them and their clients."""

import atexit
import os
import shutil
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
MADE = []
RUNNING = []
DIRECTORIES = []


def check(name, good, seen=""):
    """One thing that must hold, told in one line; what was seen is told where it does not."""
    print(f"{'ok  ' if good else 'FAIL'} {name}{'' if good else f': {str(seen)[:2000]}'}", flush=True)
    MADE.append(name)
    if not good:
        FAILED.append(name)


def done(least):
    """Ends the script, whatever threads are left. One that has checked less than it should has failed too: it passed a part by."""
    check(f"at least {least} checks were made", len(MADE) >= least, len(MADE))
    sys.stdout.flush()
    clean_up()
    os._exit(1 if FAILED else 0)


def eventually(condition, seconds=10.0):
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
    return subprocess.run(command, capture_output=True, timeout=90, **options)


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def stop(process, seconds=30):
    """Ends a process as an operator would, and returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def clean_up():
    while RUNNING:
        stop(RUNNING.pop(), 3)
    while DIRECTORIES:
        shutil.rmtree(DIRECTORIES.pop(), ignore_errors=True)


# However the script ends, nothing is left behind.
atexit.register(clean_up)


class Work:
    """A directory of the script's own, with a certificate that vouches for itself."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="isobar-peers-")
        DIRECTORIES.append(self.path)
        # nginx's worker is somebody else.
        os.chmod(self.path, 0o755)
        self.certificate, self.key = self.make_certificate("cert")

    def at(self, name):
        return os.path.join(self.path, name)

    def file(self, name, content):
        with open(self.at(name), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return self.at(name)

    def make_certificate(self, name):
        """A certificate for localhost, 127.0.0.1 and test.example, and its key."""
        certificate, key = self.at(f"{name}.pem"), self.at(f"{name}.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=DNS:localhost,DNS:test.example,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
             "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )
        return certificate, key

    def start(self, name, command, *ports, **options):
        """A process that is there once it listens, and goes with the script."""
        with open(self.at(f"{name}.log"), "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        RUNNING.append(process)
        if not eventually(lambda: process.poll() is not None or all(map(listens, ports)), 30) or process.poll() is not None:
            print(f"FAIL {name} starts: {self.log(name)}", flush=True)
            clean_up()
            os._exit(1)
        return process

    def log(self, name):
        with open(self.at(f"{name}.log"), encoding="utf-8", errors="replace") as log:
            return log.read()


class Isobar:
    """isobar with a listener in the clear and one that speaks TLS, and `keys` for what is behind them.

    `head` goes before all tables, `plain`, `secure` and `tls` are further keys of the listeners and of the table of TLS."""

    def __init__(self, work, keys, head="", plain="", secure="", tls="", tls_port=None):
        self.work, self.plain, self.tls, self.admin = work, free_port(), tls_port or free_port(), free_port()
        self.head, self.listeners = head, (plain, secure, tls)
        self.name = f"isobar-{self.plain}"
        self.path = work.at(f"lb-{self.plain}.toml")
        self.write(keys)
        self.process = work.start(self.name, [BINARY, "--config", self.path], self.plain, self.tls, self.admin)
        self.http, self.https = f"http://127.0.0.1:{self.plain}", f"https://localhost:{self.tls}"

    def text(self, keys):
        plain, secure, tls = self.listeners
        return (
            f'{self.head}\nadmin = {{ address = "127.0.0.1:{self.admin}" }}\n'
            f'[[listener]]\nname = "plain"\naddress = "127.0.0.1:{self.plain}"\n{plain}\n'
            f'[[listener]]\nname = "tls"\naddress = "127.0.0.1:{self.tls}"\n{secure}\n'
            f'[listener.tls]\ncertificates = [{{ certificate = "{self.work.certificate}", key = "{self.work.key}" }}]\n{tls}\n{keys}\n'
        )

    def write(self, keys):
        """As an editor does it: a new file in the place of the old one."""
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            file.write(self.text(keys))
        os.rename(self.path + ".new", self.path)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as response:
            return response.read().decode().splitlines()

    def metric(self, begin):
        """The sum of the series that begin so."""
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metrics() if line.startswith(begin))

    def stop(self):
        """What every script ends with: nothing is under way, no lease is left, nothing has panicked, and the exit code is 0."""
        check("at the end no request is in flight", eventually(lambda: self.metric("isobar_listener_requests_in_flight") == 0),
              [line for line in self.metrics() if "in_flight" in line])
        check("all leases came back", eventually(lambda: self.metric("isobar_backend_requests_in_flight") == 0),
              [line for line in self.metrics() if "in_flight" in line])
        code = stop(self.process)
        check("isobar stops cleanly and never panicked", code == 0 and "panicked" not in self.work.log(self.name), (code, self.work.log(self.name)[-2000:]))
