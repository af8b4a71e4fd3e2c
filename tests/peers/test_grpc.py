#!/usr/bin/env python3
"""Real gRPC through isobar: grpcio in front, the binary in between, grpcio behind, in the clear and by TLS.

    python3 test_grpc.py BINARY

Needs the packages grpcio and grpcio-health-checking, and openssl for a certificate. Handlers take and give bytes, so that there is
nothing to generate. Prints a line for each check; exit code 0 only if all held.
"""

import contextlib
import os
import pathlib
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

PATIENCE = 20
SERVICE = "isobar.test.Echo"
failures = []


def check(name, held, seen=""):
    print(f"{'ok  ' if held else 'FAIL'} {name}" + ("" if held else f": {seen!r}"), flush=True)
    if not held:
        failures.append(name)


def eventually(condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Backend:
    """A grpcio server that remembers what it saw."""

    def __init__(self, name, credentials=None):
        self.name = name
        self.left = queue.Queue()
        self.cancelled = queue.Queue()
        self.release = threading.Event()
        self.calls = 0
        self.refuses, self.delay = None, 0
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers = {
            "Unary": unary(self.unary),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Both": stream(self.both),
            "Slow": unary(self.slow),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "Fail": unary(self.fail),
            "Refuse": unary(self.refuse),
        }
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.serving(True)
        where = "127.0.0.1:0"
        if credentials:
            self.port = self.server.add_secure_port(where, credentials)
        else:
            self.port = self.server.add_insecure_port(where)
        self.server.start()

    def serving(self, serving):
        states = health_pb2.HealthCheckResponse
        self.health.set(SERVICE, states.SERVING if serving else states.NOT_SERVING)

    def unary(self, request, context):
        self.left.put((context.time_remaining(),))
        context.send_initial_metadata((("x-backend", self.name),))
        sent = dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-seen", sent.get("x-meta", "")), ("x-seen-bin", sent.get("x-data-bin", b""))))
        return request[::-1]

    def down(self, request, context):
        for number in range(int(request)):
            yield b"%d" % number

    def up(self, requests, context):
        return b"+".join(requests)

    def both(self, requests, context):
        # The head first, before anything has come.
        context.send_initial_metadata(())
        for request in requests:
            yield b"<" + request + b">"

    def _watched(self, context):
        """An event for the end of the call. Asked for before anything is sent: grpcio does not go on with one that has ended."""
        ended = threading.Event()

        def end():
            self.cancelled.put(True)
            ended.set()

        if not context.add_callback(end):
            end()
        return ended

    def slow(self, request, context):
        self.left.put((context.time_remaining(),))
        # Longer than anybody waits to hear that it has ended.
        self._watched(context).wait(3 * PATIENCE)
        return b""

    def watch(self, request, context):
        self.left.put((context.time_remaining(),))
        if request == b"silent":
            # As long as the test wants, without a word.
            self.release.wait(PATIENCE)
            yield b"at last"
            return
        ended = self._watched(context)
        yield b"begun"
        ended.wait(3 * PATIENCE)

    def fail(self, request, context):
        context.abort(grpc.StatusCode[request.decode()], "so it is: 100 % t\u00e4glich")

    def refuse(self, request, context):
        self.calls += 1
        self.left.put((context.time_remaining(),))
        if self.refuses:
            time.sleep(self.delay)
            context.abort(grpc.StatusCode[self.refuses], "not here")
        return self.name.encode()


class Isobar:
    def __init__(self, binary, directory, name, text):
        self.config = directory / f"{name}.toml"
        self.config.write_text(text)
        self.log = open(directory / f"{name}.log", "w+b")
        self.access = directory / f"{name}.access"
        self.process = subprocess.Popen(
            [binary, "--config", str(self.config)], stdout=self.log, stderr=self.log, cwd=directory
        )

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def said(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")


def certificate(directory):
    """One for localhost that signs itself and is no authority."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-addext", "basicConstraints=critical,CA:FALSE"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    return key, cert


def configuration(port, admin, backends, secure, access):
    addresses = ", ".join(f'"localhost:{backend.port}"' for backend in backends)
    listener = '[listener.tls]\ncertificates = [{ certificate = "cert.pem", key = "key.pem" }]\n' if secure else ""
    tls = 'tls = { ca = "cert.pem" }' if secure else ""
    gone = free_port()
    return f"""
workers = 2
[admin]
address = "127.0.0.1:{admin}"
[access_log]
enabled = true
format = "json"
output = "{access}"
[[listener]]
address = "127.0.0.1:{port}"
max_body = "1MiB"
{listener}
[[route]]
path_prefix = "/{SERVICE}"
upstream = "echo"
# Streams that are silent must outlast these.
timeouts = {{ response_head = "300ms", body_idle = "300ms", grpc_timeout_max = "30s" }}
[[route]]
path_prefix = "/isobar.test.Gone"
upstream = "gone"
[upstream.echo]
backends = [{addresses}]
protocol = "http2"
{tls}
outlier_detection = {{ enabled = false }}
slow_start = {{ enabled = false }}
retries = {{ grpc_statuses = ["unavailable"] }}
[upstream.echo.health_check]
type = "grpc"
service = "{SERVICE}"
interval = "100ms"
interval_in_doubt = "50ms"
unhealthy_after = 1
healthy_after = 1
[upstream.gone]
backends = ["127.0.0.1:{gone}"]
protocol = "http2"
{tls}
"""


def failed(call):
    """The status that a call fails with, and its words."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


class Suite:
    def __init__(self, name, channel, backends, isobar):
        self.name, self.channel, self.backends, self.isobar = name, channel, backends, isobar
        method = lambda kind: lambda which, service=SERVICE: getattr(channel, kind)(f"/{service}/{which}")
        self.one, self.down = method("unary_unary"), method("unary_stream")
        self.up, self.both = method("stream_unary"), method("stream_stream")

    def check(self, name, held, seen=""):
        check(f"{self.name}: {name}", held, seen)

    def seen(self, which, timeout=PATIENCE):
        """What any of the backends puts into its queue of that name."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for backend in self.backends:
                with contextlib.suppress(queue.Empty):
                    return getattr(backend, which).get_nowait()
            time.sleep(0.005)
        return None

    def drain(self):
        for backend in self.backends:
            for which in (backend.left, backend.cancelled):
                while not which.empty():
                    which.get_nowait()

    def run(self):
        for part in (self.kinds, self.deadlines, self.cancellation, self.statuses, self.silence, self.retries, self.turning):
            self.drain()
            part()

    def kinds(self):
        metadata = (("x-meta", "text"), ("x-data-bin", b"\x00\xff\x01"))
        answer, call = self.one("Unary").with_call(b"abc", metadata=metadata, timeout=PATIENCE)
        self.check("unary", answer == b"cba", answer)
        head, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
        self.check("metadata in the head", head.get("x-backend") in ("a", "b"), head)
        told = (trailing.get("x-seen"), trailing.get("x-seen-bin"))
        self.check("metadata both ways, binary too", told == ("text", b"\x00\xff\x01"), told)
        large = os.urandom(900_000)
        answer = self.one("Unary")(large, timeout=PATIENCE)
        self.check("900 kB there and back", answer == large[::-1], len(answer))
        answers = list(self.down("Down")(b"1000", timeout=PATIENCE))
        self.check("server streaming", answers == [b"%d" % number for number in range(1000)], len(answers))
        answer = self.up("Up")(iter([b"a", b"b", b"c"]), timeout=PATIENCE)
        self.check("client streaming", answer == b"a+b+c", answer)
        requests = queue.Queue()
        call = self.both("Both")(iter(requests.get, None), timeout=PATIENCE)
        head = call.initial_metadata()
        self.check("the head while nothing was sent", head is not None, head)
        rounds = []
        for text in (b"one", b"two", b"three"):
            requests.put(text)
            rounds.append(next(call))
        self.check("bidirectional, message by message", rounds == [b"<one>", b"<two>", b"<three>"], rounds)
        requests.put(None)
        self.check("half-close ends it well", list(call) == [] and call.code() == grpc.StatusCode.OK, call.code())
        with futures.ThreadPoolExecutor(max_workers=32) as pool:
            asked = [b"%d" % number for number in range(400)]
            answers = list(pool.map(lambda text: self.one("Unary")(text, timeout=PATIENCE), asked))
        self.check("400 calls at a time", answers == [text[::-1] for text in asked])

    def deadlines(self):
        # grpcio rounds deadlines up by some hundredths when it sends them, so that "less" is told from two attempts of one call.
        a, b = self.backends
        a.refuses, a.delay = "UNAVAILABLE", 0.5
        for _ in range(2):
            self.one("Refuse")(b"x", timeout=15)
        a.refuses, a.delay = None, 0
        first, seconds = a.left.get(timeout=PATIENCE)[0], [b.left.get(timeout=PATIENCE)[0] for _ in range(2)]
        self.check("the backend is told the deadline", 10 < first < 15.75, first)
        less = first - min(seconds)
        self.check("the next attempt is told what is left", 0.4 < less < 5, (first, seconds))
        self.drain()
        self.one("Unary")(b"x", timeout=PATIENCE * 60)
        left = self.seen("left")
        self.check("the route shortens a deadline", left is not None and 20 < left[0] < 30, left)
        self.drain()
        self.one("Unary")(b"x")
        left = self.seen("left")
        # grpcio tells of no deadline as of one that is years away.
        self.check("no deadline is none", left is not None and (left[0] is None or left[0] > 3600 * 24), left)
        self.drain()
        code, _ = failed(lambda: self.one("Slow")(b"x", timeout=0.5))
        self.check("a deadline that passes", code == grpc.StatusCode.DEADLINE_EXCEEDED, code)
        self.check("its backend has an end too", self.seen("cancelled") is True)
        self.drain()
        call = self.down("Watch")(b"x", timeout=0.5)
        first = next(call)
        code, _ = failed(lambda: list(call))
        self.check("one that passes in a stream", (first, code) == (b"begun", grpc.StatusCode.DEADLINE_EXCEEDED), code)
        self.check("that backend has an end too", self.seen("cancelled") is True)

    def cancellation(self):
        call = self.one("Slow").future(b"x")
        working = self.seen("left") is not None and self.in_flight() == 1
        self.check("the backend works on it", working)
        call.cancel()
        self.check("a cancelled call ends at the backend", self.seen("cancelled") is True)
        call = self.down("Watch")(b"x")
        next(call)
        call.cancel()
        self.check("a cancelled stream ends at the backend", self.seen("cancelled") is True)
        self.check("nothing is left in flight", eventually(lambda: self.in_flight() == 0), self.in_flight())

    def in_flight(self):
        gauge = 'isobar_backend_requests_in_flight{upstream="echo"'
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metrics() if line.startswith(gauge))

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.isobar.admin}/metrics", timeout=PATIENCE) as page:
            return page.read().decode().splitlines()

    def statuses(self):
        for status in grpc.StatusCode:
            if status in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE):
                continue
            code, details = failed(lambda: self.one("Fail")(status.name.encode(), timeout=PATIENCE))
            told = (code, details) == (status, "so it is: 100 % t\u00e4glich")
            self.check(f"{status.name} passes with its words", told, (code, details))
        for service, method, status, words in [
            ("isobar.test.Nowhere", "M", grpc.StatusCode.UNIMPLEMENTED, "no route matches this request"),
            ("isobar.test.Gone", "M", grpc.StatusCode.UNAVAILABLE, "no connection to a backend could be made"),
        ]:
            told = failed(lambda: self.one(method, service)(b"x", timeout=PATIENCE))
            self.check(f"{status.name} of the proxy's own", told == (status, words), told)
        told = failed(lambda: self.one("Unary")(b"x" * (2 << 20), timeout=PATIENCE))
        self.check("a body that is too large", told[0] == grpc.StatusCode.RESOURCE_EXHAUSTED, told)
        counted = 'isobar_upstream_grpc_calls_total{upstream="echo",status="data_loss"} 1'
        self.check("the metrics count them", eventually(lambda: counted in self.metrics()))
        lines = lambda: self.isobar.access.read_text().splitlines()
        logged = lambda: sum('"grpc_status":15,' in line for line in lines()) == 1
        self.check("the access log has them", eventually(logged))

    def silence(self):
        # Silent for longer than response_head and body_idle, before and behind the head: as ten minutes are with usual timeouts.
        before = self.down("Watch")(b"silent")
        behind = self.down("Watch")(b"x")
        requests = queue.Queue()
        both = self.both("Both")(iter(requests.get, None))
        both.initial_metadata()
        next(behind)
        time.sleep(2)
        alive = not before.done() and not behind.done() and not both.done()
        self.check("silent streams are not cut by timeouts for bodies", alive)
        for backend in self.backends:
            backend.release.set()
        self.check("one goes on before its head", list(before) == [b"at last"], before.code())
        requests.put(b"still here")
        self.check("one goes on behind it", next(both) == b"<still here>")
        requests.put(None)
        self.check("and ends well", list(both) == [] and both.code() == grpc.StatusCode.OK, both.code())
        behind.cancel()
        for backend in self.backends:
            backend.release.clear()

    def retries(self):
        a, b = self.backends
        a.calls = b.calls = 0
        a.refuses = "UNAVAILABLE"
        names = [self.one("Refuse")(b"x", timeout=PATIENCE) for _ in range(20)]
        self.check("calls go elsewhere after a status that is named", names == [b"b"] * 20, names)
        self.check("both were asked", a.calls > 0 and b.calls == 20, (a.calls, b.calls))
        a.refuses = "ABORTED"
        told = [failed(lambda: self.one("Refuse")(b"x", timeout=PATIENCE))[0] for _ in range(10)]
        self.check("and not after others", grpc.StatusCode.ABORTED in told, told)
        a.refuses = b.refuses = "UNAVAILABLE"
        told = failed(lambda: self.one("Refuse")(b"x", timeout=PATIENCE))
        self.check("where all refuse, the last answer passes", told == (grpc.StatusCode.UNAVAILABLE, "not here"), told)
        a.refuses = b.refuses = None

    def turning(self):
        a, b = self.backends
        asked = lambda: {self.one("Refuse")(b"x", timeout=PATIENCE) for _ in range(10)}
        self.check("both serve", eventually(lambda: asked() == {b"a", b"b"}))
        a.serving(False)
        self.check("NOT_SERVING takes a backend out", eventually(lambda: asked() == {b"b"}))
        a.serving(True)
        self.check("SERVING brings it back", eventually(lambda: asked() == {b"a", b"b"}))


def run(binary, directory, secure):
    key = cert = None
    credentials = None
    if secure:
        key, cert = certificate(directory)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    backends = [Backend(name, credentials) for name in ("a", "b")]
    name, port, admin = "tls" if secure else "clear", free_port(), free_port()
    access = directory / f"{name}.access"
    isobar = Isobar(binary, directory, name, configuration(port, admin, backends, secure, access))
    isobar.admin = admin
    where = f"localhost:{port}"
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    if secure:
        channel = grpc.secure_channel(where, grpc.ssl_channel_credentials(cert.read_bytes()), options)
    else:
        channel = grpc.insecure_channel(where, options)
    before = len(failures)
    try:
        try:
            grpc.channel_ready_future(channel).result(PATIENCE)
            check(f"{name}: connected", True)
        except grpc.FutureTimeoutError:
            check(f"{name}: connected", False)
            return
        Suite(name, channel, backends, isobar).run()
    except Exception as error:  # A check that could not be made has not held.
        check(f"{name}: no exception", False, error)
    finally:
        channel.close()
        isobar.stop()
        check(f"{name}: isobar stops well", isobar.process.returncode == 0, isobar.process.returncode)
        for backend in backends:
            backend.server.stop(0).wait()
        if len(failures) > before:
            print(isobar.said()[-4000:], file=sys.stderr)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    binary = os.path.abspath(sys.argv[1])
    directory = pathlib.Path(tempfile.mkdtemp(prefix="isobar-grpc-"))
    try:
        for secure in (False, True):
            run(binary, directory, secure)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{len(failures)} failed" if failures else "all held", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
