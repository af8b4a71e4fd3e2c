"""grpcio in front of isobar and grpcio behind it: all four kinds of call, deadlines, cancellation, statuses, retries, health.

usage: test_grpc.py BINARY
"""

import os
import queue
import signal
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

BINARY = os.path.abspath(sys.argv[1])
SERVICE = "test.Echo"
FAILED = []


def check(name, good, seen=""):
    print(f"{'ok  ' if good else 'FAIL'} {name}{'' if good else f': {seen!r}'}", flush=True)
    if not good:
        FAILED.append(name)


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


class Backend:
    """A server that does what the method's name says, with messages that are bytes."""

    def __init__(self, name, credentials=None):
        self.name = name
        self.left = []
        self.cancelled = threading.Event()
        self.calls = 0
        self.metadata = {}
        self.refuses = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Trickle": grpc.unary_stream_rpc_method_handler(self.trickle),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.serving(True)
        if credentials:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        else:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def serving(self, well):
        status = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
        self.health.set("", status)
        self.health.set(SERVICE, status)

    def note(self, context):
        self.calls += 1
        self.left.append(context.time_remaining())
        self.metadata = dict(context.invocation_metadata())

    def unary(self, request, context):
        self.note(context)
        context.set_trailing_metadata((("x-backend", self.name), ("x-bin", b"\x00\xff")))
        return request

    def refuse(self, request, context):
        self.note(context)
        if self.refuses > 0:
            self.refuses -= 1
            time.sleep(float(request or 0))
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now: 100%")
        return self.name.encode()

    def hang(self, request, context):
        self.note(context)
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(20)
        return b""

    def down(self, request, context):
        self.note(context)
        for n in range(int(request)):
            yield b"%d" % n

    def trickle(self, request, context):
        self.note(context)
        context.add_callback(self.cancelled.set)
        yield b"first"
        self.cancelled.wait(float(request))
        yield b"last"

    def up(self, requests, context):
        self.note(context)
        return b"%d" % sum(len(request) for request in requests)

    def both(self, requests, context):
        self.note(context)
        for request in requests:
            yield request[::-1]


class Isobar:
    def __init__(self, work, keys):
        self.port, self.admin = free_port(), free_port()
        path = os.path.join(work, f"lb-{self.port}.toml")
        with open(path, "w") as file:
            file.write(f'admin = {{ address = "127.0.0.1:{self.admin}" }}\n[[listener]]\naddress = "127.0.0.1:{self.port}"\n{keys}')
        self.log = open(os.path.join(work, f"log-{self.port}"), "w+")
        self.process = subprocess.Popen([BINARY, "--config", path], stdout=self.log, stderr=self.log)
        if not eventually(self.answers):
            self.log.seek(0)
            sys.exit(f"isobar does not start: {self.log.read()}")

    def answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        except OSError:
            return False

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as response:
            return response.read().decode().splitlines()

    def metric(self, start):
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metrics() if line.startswith(start))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


def call_error(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    return None


def kinds(channel, way):
    """All four kinds of call."""
    unary = channel.unary_unary(f"/{SERVICE}/Unary")
    answer, call = unary.with_call(b"hello", metadata=(("x-from", "client"),))
    trailing = dict(call.trailing_metadata())
    check(f"{way}: unary", answer == b"hello" and trailing.get("x-backend") is not None, (answer, trailing))
    large = os.urandom(3_000_000)
    check(f"{way}: a message of 3 MB", unary(large) == large)
    many = list(channel.unary_stream(f"/{SERVICE}/Down")(b"2000"))
    check(f"{way}: server streaming", many == [b"%d" % n for n in range(2000)], len(many))
    total = channel.stream_unary(f"/{SERVICE}/Up")(iter([b"x" * 1000] * 500))
    check(f"{way}: client streaming", total == b"500000", total)
    # One message at a time: each answer comes before the next question.
    questions = queue.Queue()
    answers = channel.stream_stream(f"/{SERVICE}/Both")(iter(questions.get, None))
    seen = []
    for n in range(100):
        questions.put(b"%03d" % n)
        seen.append(next(answers))
    questions.put(None)
    rest = list(answers)
    check(f"{way}: bidirectional streaming", seen == [(b"%03d" % n)[::-1] for n in range(100)] and rest == [], seen[:3])
    error = call_error(lambda: channel.unary_unary("/test.Echo/Nowhere")(b""))
    check(f"{way}: a method that is not there", error and error.code() == grpc.StatusCode.UNIMPLEMENTED, error)
    with futures.ThreadPoolExecutor(32) as pool:
        well = sum(pool.map(lambda n: unary(b"%d" % n) == b"%d" % n, range(2000)))
    check(f"{way}: 2000 calls by 32 threads", well == 2000, well)


def deadlines(channel, backend, isobar):
    backend.left.clear()
    channel.unary_unary(f"/{SERVICE}/Unary")(b"", timeout=5)
    left = backend.left[-1]
    # grpcio rounds up.
    check("the backend is told what is left of the time", left is not None and 4 < left < 5.1, left)
    channel.unary_unary(f"/{SERVICE}/Unary")(b"")
    # grpcio says so where there is none.
    check("and nothing where the client has set none", backend.left[-1] is None or backend.left[-1] > 1e6, backend.left[-1])
    backend.cancelled.clear()
    began = time.monotonic()
    error = call_error(lambda: channel.unary_unary(f"/{SERVICE}/Hang")(b"", timeout=0.5))
    took = time.monotonic() - began
    check("a deadline ends the call", error and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and took < 2, (error, took))
    check("and the backend is told", backend.cancelled.wait(3))
    check("and the lease comes back", eventually(lambda: isobar.metric("isobar_backend_requests_in_flight") == 0))


def cancellation(channel, backend, isobar):
    backend.cancelled.clear()
    call = channel.unary_stream(f"/{SERVICE}/Trickle")(b"15")
    check("a message comes as soon as it is sent", next(call) == b"first")
    call.cancel()
    check("the backend sees the client cancel", backend.cancelled.wait(3))
    check("the lease comes back", eventually(lambda: isobar.metric("isobar_backend_requests_in_flight") == 0))


def main():
    work = tempfile.mkdtemp(prefix="isobar-grpc-")
    backend = Backend("a")
    address = f"127.0.0.1:{backend.port}"
    route = '[[route]]\nupstream = "u"\n'

    # In the clear. Bodies of HTTP may pause for 1 s; messages of calls for longer.
    isobar = Isobar(work, f'{route}timeouts = {{ response_head = "1s", body_idle = "1s" }}\n'
                          f'[upstream.u]\nbackends = ["{address}"]\nprotocol = "http2"\n')
    with grpc.insecure_channel(f"127.0.0.1:{isobar.port}") as channel:
        kinds(channel, "h2c")
        check("the client's metadata reaches the backend", backend.metadata.get("user-agent", "").startswith("grpc-python"), backend.metadata)
        deadlines(channel, backend, isobar)
        cancellation(channel, backend, isobar)
        backend.cancelled.clear()
        slow = list(channel.unary_stream(f"/{SERVICE}/Trickle")(b"3"))
        check("a stream may be silent for longer than a body", slow == [b"first", b"last"], slow)
        backend.cancelled.clear()
        threading.Timer(3, backend.cancelled.set).start()
        answer = channel.unary_unary(f"/{SERVICE}/Hang")(b"", timeout=10)
        check("with a deadline, response_head does not count", answer == b"", answer)
        check("calls are counted by their status",
              isobar.metric('isobar_upstream_grpc_calls_total{upstream="u",status="ok"}') > 2000
              and isobar.metric('isobar_upstream_grpc_calls_total{upstream="u",status="unimplemented"}') == 1,
              [line for line in isobar.metrics() if "grpc" in line])
    isobar.stop()

    # Errors of the proxy.
    isobar = Isobar(work, '[[route]]\npath_prefix = "/dead"\nupstream = "dead"\n[[route]]\npath_prefix = "/slow"\n'
                          'replace_prefix = "/test.Echo"\nupstream = "slow"\ntimeouts = { grpc_idle = "500ms" }\n'
                          '[[route]]\npath_prefix = "/late"\nreplace_prefix = "/test.Echo"\nupstream = "slow"\ntimeouts = { exchange = "500ms" }\n'
                          f'[upstream.dead]\nbackends = ["127.0.0.1:{free_port()}"]\nprotocol = "http2"\n'
                          f'[upstream.slow]\nbackends = ["{address}"]\nprotocol = "http2"\n')
    with grpc.insecure_channel(f"127.0.0.1:{isobar.port}") as channel:
        for what, method, code in [
            ("no route", "/nowhere/X", grpc.StatusCode.UNIMPLEMENTED),
            ("no connection", "/dead/X", grpc.StatusCode.UNAVAILABLE),
            ("a response that is late", "/slow/Hang", grpc.StatusCode.UNAVAILABLE),
            ("an exchange that is too long", "/late/Hang", grpc.StatusCode.DEADLINE_EXCEEDED),
        ]:
            backend.cancelled.clear()
            error = call_error(lambda method=method: channel.unary_unary(method)(b""))
            told = (error.code(), error.details()) if error else None
            check(f"{what} is {code.name}", error and error.code() == code and error.details(), told)
        backend.cancelled.clear()
        call = channel.unary_stream("/late/Trickle")(b"5")
        first = next(call)
        error = call_error(lambda: next(call))
        check("a stream that is too long ends in DEADLINE_EXCEEDED",
              first == b"first" and error and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error)
    isobar.stop()
    backend.cancelled.set()

    # Health checks and retries, two backends.
    other = Backend("b")
    pair = f'backends = ["{address}", "127.0.0.1:{other.port}"]'
    isobar = Isobar(work, f'{route}[upstream.u]\n{pair}\nprotocol = "http2"\nretries = {{ grpc_statuses = ["unavailable"] }}\n'
                          f'health_check = {{ type = "grpc", service = "{SERVICE}", interval = "200ms", interval_in_doubt = "100ms" }}\n')
    ready = lambda: isobar.metric("isobar_backend_ready")
    with grpc.insecure_channel(f"127.0.0.1:{isobar.port}") as channel:
        unary = channel.unary_unary(f"/{SERVICE}/Unary")
        check("both are healthy", eventually(lambda: ready() == 2))
        other.serving(False)
        check("who says that it does not serve leaves", eventually(lambda: ready() == 1))
        before = other.calls
        for _ in range(20):
            unary(b"")
        check("and gets no calls", other.calls == before, other.calls - before)
        other.serving(True)
        check("and comes back", eventually(lambda: ready() == 2))
        backend.refuses = other.refuses = 0
        backend.refuses = 1
        refuse = channel.unary_unary(f"/{SERVICE}/Refuse")
        seen = {refuse(b"") for _ in range(4)}
        check("UNAVAILABLE is tried again where a key says so", backend.refuses == 0 and seen <= {b"a", b"b"}, seen)
        check("and counted", isobar.metric('isobar_upstream_retries_total{upstream="u",cause="status"}') == 1)
        backend.refuses, backend.left, other.left = 1, [], []
        for _ in range(4):
            refuse(b"1.5", timeout=10)
        least = min(backend.left + other.left)
        check("the second attempt is told of less time", backend.refuses == 0 and 7 < least < 8.6, least)
        backend.refuses = other.refuses = 1
        error = call_error(lambda: refuse(b""))
        check("the last answer stands, with its words",
              error and error.code() == grpc.StatusCode.UNAVAILABLE and error.details() == "not now: 100%", error)
        backend.server.stop(0).wait()
        well = sum(unary(b"x") == b"x" for _ in range(50))
        check("a backend that goes is not noticed", well == 50, well)
    isobar.stop()

    # By TLS on both sides.
    key, certificate = os.path.join(work, "key.pem"), os.path.join(work, "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9", "-subj", "/CN=t",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
                    "-keyout", key, "-out", certificate], check=True, capture_output=True)
    pem = open(certificate, "rb").read()
    secure = Backend("s", grpc.ssl_server_credentials([(open(key, "rb").read(), pem)]))
    isobar = Isobar(work, f'tls = {{ certificates = [{{ certificate = "{certificate}", key = "{key}" }}] }}\n{route}'
                          f'[upstream.u]\nbackends = ["127.0.0.1:{secure.port}"]\nprotocol = "auto"\ntls = {{ ca = "{certificate}" }}\n'
                          'health_check = { type = "grpc", interval = "200ms" }\n')
    with grpc.secure_channel(f"127.0.0.1:{isobar.port}", grpc.ssl_channel_credentials(pem)) as channel:
        kinds(channel, "tls")
        check("tls: healthy", eventually(lambda: isobar.metric("isobar_backend_ready") == 1))
    isobar.stop()
    for server in (other.server, secure.server):
        server.stop(0)
    print(f"{len(FAILED)} failed: {FAILED}" if FAILED else "all held", flush=True)
    # Threads of handlers may still wait.
    os._exit(1 if FAILED else 0)


main()
