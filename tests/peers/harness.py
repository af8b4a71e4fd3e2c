"""What the scripts share: checks that are counted, certificates, free ports, and isobar itself with a configuration."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

BINARY = os.path.abspath(sys.argv[1])
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
    return bool(good)


def finish(least):
    """Ends the script. One that checked less than it should has failed too: it may have passed a part by."""
    check(f"at least {least} checks were made", len(MADE) >= least, len(MADE))
    sys.stdout.flush()
    stop_all()
    # Threads of servers may still wait.
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


def work_directory(name):
    """A directory that goes with the script; others may read it (nginx's worker is somebody else)."""
    path = tempfile.mkdtemp(prefix=f"isobar-{name}-")
    os.chmod(path, 0o755)
    DIRECTORIES.append(path)
    return path


def certificate(work, name="server"):
    """The paths of a certificate for localhost, 127.0.0.1 and test.example, and of its key."""
    cert, key = os.path.join(work, f"{name}.pem"), os.path.join(work, f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "60", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=DNS:localhost,DNS:test.example,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True)
    return cert, key




def start(command, log, port=None, **more):
    """A process that ends with the script, once it listens."""
    with open(log, "ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, **more)
    RUNNING.append(process)
    if port is not None and not eventually(lambda: listens(port) or process.poll() is not None, 20) or process.poll() is not None:
        with open(log, encoding="utf-8", errors="replace") as text:
            print(f"FAIL {command[0]} does not start: {text.read()[-2000:]}", flush=True)
        stop_all()
        os._exit(1)
    return process


def stop(process, seconds=20):
    """Ends a process as an operator would, and returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process in RUNNING:
        RUNNING.remove(process)
    return process.returncode


def stop_all():
    for process in list(RUNNING):
        stop(process, 3)
    while DIRECTORIES:
        shutil.rmtree(DIRECTORIES.pop(), ignore_errors=True)


# However the script ends, nothing is left behind.
atexit.register(stop_all)


class Isobar:
    """isobar with a configuration, of which the address of the admin endpoint is given here."""

    def __init__(self, work, config, port):
        self.path, self.admin = os.path.join(work, f"lb-{port}.toml"), free_port()
        self.log = os.path.join(work, f"isobar-{port}.log")
        self.write(config)
        self.process = start([BINARY, "--config", self.path], self.log, port)

    def write(self, config):
        """Writes the file anew, as a whole; isobar follows it."""
        with open(f"{self.path}.new", "w", encoding="utf-8") as file:
            file.write(f'admin = {{ address = "127.0.0.1:{self.admin}" }}\n{config}')
        os.replace(f"{self.path}.new", self.path)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as response:
            return response.read().decode().splitlines()

    def metric(self, begin):
        """The sum of the series that begin so."""
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metrics() if line.startswith(begin))

    def logged(self):
        with open(self.log, encoding="utf-8", errors="replace") as text:
            return text.read()

    def stop(self):
        """What every script ends with: nothing is left behind, nothing panicked, and the stop is clean."""
        check("no request is in flight at the end", eventually(lambda: self.metric("isobar_listener_requests_in_flight") == 0),
              [line for line in self.metrics() if "in_flight" in line])
        check("all leases came back", eventually(lambda: self.metric("isobar_backend_requests_in_flight") == 0))
        code = stop(self.process)
        check("isobar stops cleanly", code == 0, code)
        check("and never panicked", "panicked" not in self.logged(), self.logged()[-3000:])
