"""Reloads under a mixed load: HTTP/1.1, HTTP/2, WebSockets and streams of gRPC. Nothing fails; what outlives drain_limit is cut, and counted."""

import contextlib
import http.client
import http.server
import itertools
import logging
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

from harness import Isobar, Work, check, done, eventually, in_thread

SECONDS = 20
DRAIN_LIMIT = 2
# Lets the responses of the second part go on; and who has been asked for one whose head is held.
GO, HELD = threading.Event(), []
logging.getLogger("websockets").setLevel(logging.CRITICAL)


class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/head":
            # A response that does not begin before somebody lets it.
            HELD.append(self.server.server_port)
            GO.wait(60)
        if self.path == "/drip":
            return self.drip()
        if self.path.startswith("/slow"):
            time.sleep(0.4)
        data = self.path.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


    def drip(self):
        """A response whose end does not come before somebody lets it."""
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"6\r\nfirst\n\r\n")
        GO.wait(60)
        self.wfile.write(b"5\r\nlast\n\r\n0\r\n\r\n")


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_):
        """Those that are cut are meant to be."""


def grpc_server():
    def both(requests, _):
        for request in requests:
            yield request

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    handlers = {"Both": grpc.stream_stream_rpc_method_handler(both), "One": grpc.unary_unary_rpc_method_handler(lambda it, _: it)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


class Counts:
    def __init__(self):
        self.well, self.bad, self.lock = 0, [], threading.Lock()

    def count(self, good, seen=""):
        with self.lock:
            if good:
                self.well += 1
            else:
                self.bad.append(repr(seen)[:300])


def keys(backends, sockets, calls, generation=0, extra=""):
    """A file whose parts change with the generation: routes, weights, strategies, time-outs."""
    listed = lambda ports: ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    strategy = ["round_robin", "least_connections", "power_of_two"][generation % 3]
    return (
        f'[[route]]\npath_prefix = "/test.Echo"\nupstream = "calls"\n'
        f'[[route]]\npath_prefix = "/ws"\nupstream = "sockets"\n'
        f'[[route]]\npath_prefix = "/gen-{generation}"\nrespond = {{ status = 204 }}\n'
        f'[[route]]\nupstream = "web"\ntimeouts = {{ response_head = "{30 + generation % 5}s" }}\n'
        f'[upstream.web]\nstrategy = "{strategy}"\nbackends = [{listed(backends)}]\n{extra}\n'
        f'[upstream.sockets]\nconnect_timeout = "{2 + generation % 3}s"\nbackends = [{listed(sockets)}]\n'
        f'[upstream.calls]\nprotocol = "http2"\nconnect_timeout = "{2 + generation % 3}s"\nbackends = [{listed(calls)}]\n'
    )


def main():
    work = Work()
    web = [Server(("127.0.0.1", 0), Backend) for _ in range(3)]
    for server in web:
        in_thread(server.serve_forever)
    web = [server.server_port for server in web]

    def echo(socket):
        try:
            for message in socket:
                socket.send(message)
        except ConnectionClosed:
            # One is cut, as it should be.
            pass

    echoes = [serve(echo, "127.0.0.1", 0) for _ in range(2)]
    for server in echoes:
        in_thread(server.serve_forever)
    sockets = [server.socket.getsockname()[1] for server in echoes]
    servers = [grpc_server() for _ in range(2)]
    calls = [port for _, port in servers]
    isobar = Isobar(work, keys(web, sockets, calls), head=f'drain_limit = "{DRAIN_LIMIT}s"\nshutdown_grace = "5s"\nworkers = 2')
    stop = threading.Event()
    counts = {name: Counts() for name in ("http/1.1, kept", "http/1.1, new", "websocket", "grpc streams", "grpc unary")}

    def kept(connection):
        count = counts["http/1.1, kept"].count
        client = http.client.HTTPConnection("127.0.0.1", isobar.plain, timeout=20)
        for n in itertools.count():
            if stop.is_set():
                return
            path = f"/{'slow' if n % 20 == 0 else 'x'}/{connection}/{n}"
            try:
                client.request("GET", path)
                answer = client.getresponse()
                data = answer.read()
                count(answer.status == 200 and data == path.encode(), (answer.status, data))
            except (OSError, http.client.HTTPException) as error:
                count(False, error)
                client.close()

    def new(secure):
        count = counts["http/1.1, new"].count
        context = ssl.create_default_context(cafile=work.certificate)
        while not stop.is_set():
            try:
                kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
                options = {"context": context} if secure else {}
                client = kind("localhost" if secure else "127.0.0.1", isobar.tls if secure else isobar.plain, timeout=20, **options)
                client.request("GET", "/new")
                answer = client.getresponse()
                count(answer.status == 200 and answer.read() == b"/new", answer.status)
                client.close()
            except (OSError, http.client.HTTPException) as error:
                count(False, error)

    def tunnel(n):
        count = counts["websocket"].count
        with connect(f"ws://127.0.0.1:{isobar.plain}/ws", proxy=None) as client:
            for m in itertools.count():
                if stop.is_set():
                    return
                try:
                    client.send(f"{n}-{m}")
                    count(client.recv(timeout=20) == f"{n}-{m}")
                except Exception as error:
                    return count(False, error)
                time.sleep(0.01)

    channels = [grpc.insecure_channel(f"127.0.0.1:{isobar.plain}", options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]

    def stream(n):
        count, questions = counts["grpc streams"].count, queue.Queue()
        answers = channels[n % 4].stream_stream("/test.Echo/Both")(iter(questions.get, None))
        for m in itertools.count():
            if stop.is_set():
                return questions.put(None)
            try:
                questions.put(b"%d" % m)
                count(next(answers) == b"%d" % m)
            except Exception as error:
                return count(False, error)
            time.sleep(0.01)

    def unary(n):
        count, one = counts["grpc unary"].count, channels[n % 4].unary_unary("/test.Echo/One")
        while not stop.is_set():
            try:
                count(one(b"x", timeout=20) == b"x")
            except Exception as error:
                count(False, error)

    for n in range(4):
        in_thread(kept, n)
        in_thread(stream, n)
    for n in range(6):
        in_thread(tunnel, n)
    for secure in (False, True):
        in_thread(new, secure)
    for n in range(2):
        in_thread(unary, n)
    load = subprocess.Popen(["h2load", "-t1", "-c8", "-m8", f"-D{SECONDS}", "--rps=50", f"https://127.0.0.1:{isobar.tls}/h2"],
                            stdout=subprocess.PIPE, text=True)
    end, generation = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        generation += 1
        # One of three backends comes and goes; the sockets and streams have theirs all the time.
        isobar.write(keys(web[:2] + ([web[2]] if generation % 2 else []), sockets, calls, generation))
        time.sleep(0.3)
    told = load.communicate(timeout=60)[0]
    stop.set()
    time.sleep(1)
    for name, count in counts.items():
        check(f"{name}: {count.well} well", count.well > 100 and not count.bad, (len(count.bad), count.bad[:3]))
    line = next((line for line in told.splitlines() if line.startswith("requests:")), "")
    check(f"http/2 by tls: {line[10:].split(',')[0]}", " 0 failed, 0 errored, 0 timeout" in line and "requests: 0 " not in line, told)
    applied = isobar.metric("isobar_config_reloads_total") or generation
    check(f"{generation} files were written, {applied:.0f} reloads", applied >= 5 and isobar.metric("isobar_config_last_reload_successful") == 1)

    check("no reload has cut anything", isobar.metric("isobar_listener_exchanges_cut_total") == 0)
    outlive(work, isobar, web[:2], sockets, calls)
    for channel in channels:
        channel.close()
    isobar.stop()
    done(25)


def holds(act):
    try:
        act()
        return True
    except Exception:
        return False


def outlive(work, isobar, web, sockets, calls):
    """Of each kind two exchanges, one at each of two backends (by round robin). One backend of each is removed: what is there then is cut at
    drain_limit, counted, and nothing else is."""
    backends = lambda: isobar.metric("isobar_backend_weight")
    cut = lambda: isobar.metric("isobar_listener_exchanges_cut_total")
    isobar.write(keys(web, sockets, calls))
    check("two backends of each", eventually(lambda: backends() == 6 and isobar.metric("isobar_listener_requests_in_flight") == 0), isobar.metrics())

    questions = [queue.Queue() for _ in range(2)]
    channel = grpc.insecure_channel(f"127.0.0.1:{isobar.plain}", options=[("grpc.use_local_subchannel_pool", 1)])
    streams = [channel.stream_stream("/test.Echo/Both")(iter(it.get, None)) for it in questions]

    def ask(n):
        questions[n].put(b"a")
        return next(streams[n])

    def talk(client):
        client.send("a")
        client.recv(timeout=5)

    # By HTTP/1.1 and HTTP/2: responses that have begun, and two whose head is yet to come.
    flags = {"HTTP/1.1": ["--http1.1", f"{isobar.http}/drip"], "HTTP/2": ["--http2", "--cacert", work.certificate, f"{isobar.https}/drip"]}
    with contextlib.ExitStack() as stack:
        tunnels = [stack.enter_context(connect(f"ws://127.0.0.1:{isobar.plain}/ws", proxy=None)) for _ in range(2)]
        alive = lambda: [[holds(lambda n=n: ask(n)) for n in range(2)], [holds(lambda it=it: talk(it)) for it in tunnels]]
        check("streams and tunnels answer", alive() == [[True, True], [True, True]])
        drips = {}
        for way, arguments in flags.items():
            drips[way] = [subprocess.Popen(["curl", "-sSN", "--max-time", "60", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
            check(f"two responses by {way} have begun", [it.stdout.readline() for it in drips[way]] == [b"first\n"] * 2)
        heads = [subprocess.Popen(["curl", "-sS", "--max-time", "60", f"{isobar.http}/head"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for _ in range(2)]
        check("two requests wait for a response, one at each backend", eventually(lambda: sorted(HELD) == sorted(web)), HELD)

        began = time.monotonic()
        isobar.write(keys(web[:1], sockets[:1], calls[:1]))
        check("a backend of each is removed", eventually(lambda: backends() == 3), isobar.metrics())
        # Only if that did not take so long that nothing can be said.
        early = alive()
        if time.monotonic() - began < DRAIN_LIMIT:
            check("before the limit all go on", early == [[True, True], [True, True]] and cut() == 0, early)
        check("five are cut, one of each kind, and counted", eventually(lambda: cut() == 5, DRAIN_LIMIT + 10), cut())
        took = time.monotonic() - began
        check("at the limit, not before", took >= DRAIN_LIMIT, took)
        late = alive()
        check("one stream and one tunnel go on", list(map(sorted, late)) == [[False, True]] * 2, late)
        codes = [it.code() for it in streams if it.done()]
        check("the stream that was cut was told UNAVAILABLE", codes == [grpc.StatusCode.UNAVAILABLE], codes)
        GO.set()
        for way, two in drips.items():
            rests = sorted((it.communicate(timeout=30)[0], it.returncode == 0) for it in two)
            check(f"{way}: one response was cut, and seen to be cut; the other came whole", rests == [(b"", False), (b"last\n", True)], rests)
        rests = sorted((it.communicate(timeout=30)[0], it.returncode == 0) for it in heads)
        check("of those that waited for a head one was cut, and one came", rests == [(b"", False), (b"/head", True)], rests)
    for it in questions:
        it.put(None)
    check("and nothing else was cut", cut() == 5, cut())
    channel.close()


main()
