"""Reloads under a mixed load: HTTP/1.1, HTTP/2, WebSockets and streams of gRPC. Nothing fails; what outlives drain_limit is cut, and counted."""

import http.client
import http.server
import itertools
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
from websockets.sync.client import connect
from websockets.sync.server import serve

from harness import Isobar, Work, check, done, eventually, in_thread

SECONDS = 20


class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.startswith("/slow"):
            time.sleep(0.4)
        data = self.path.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


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
        for message in socket:
            socket.send(message)

    echoes = [serve(echo, "127.0.0.1", 0) for _ in range(2)]
    for server in echoes:
        in_thread(server.serve_forever)
    sockets = [server.socket.getsockname()[1] for server in echoes]
    servers = [grpc_server() for _ in range(2)]
    calls = [port for _, port in servers]
    isobar = Isobar(work, keys(web, sockets, calls), head='drain_limit = "2s"\nshutdown_grace = "5s"\nworkers = 2')
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

    # What outlives drain_limit, and nothing else, is cut.
    isobar.write(keys(web, sockets, calls))
    time.sleep(2)
    cut_before = isobar.metric("isobar_listener_exchanges_cut_total")
    check("no reload has cut anything", cut_before == 0, cut_before)
    questions, going = queue.Queue(), queue.Queue()
    streams = [channels[0].stream_stream("/test.Echo/Both")(iter(it.get, None)) for it in (questions, going)]
    for it in (questions, going):
        it.put(b"a")
    first = [next(it) for it in streams]
    check("two streams, one at each backend", first == [b"a", b"a"])
    clients = [connect(f"ws://127.0.0.1:{isobar.plain}/ws", proxy=None) for _ in range(2)]
    for client in clients:
        client.send("a")
        client.recv(timeout=10)
    # Round robin: one of two each.
    isobar.write(keys(web, sockets[:1], calls[:1]))

    def alive(act):
        try:
            act()
            return True
        except Exception:
            return False

    def streams_alive():
        for it in (questions, going):
            it.put(b"b")
        return [alive(lambda it=it: next(it)) for it in streams]

    time.sleep(0.5)
    check("before the limit both go on", streams_alive() == [True, True])
    time.sleep(3.5)
    check("behind it one stream is left", sorted(streams_alive()) == [False, True])
    ended = [it for it in streams if it.done()]
    check("and the other was told UNAVAILABLE", [it.code() for it in ended] == [grpc.StatusCode.UNAVAILABLE], [it.code() for it in ended])

    def tunnel_alive(client):
        client.send("b")
        client.recv(timeout=5)

    check("and one tunnel", sorted(alive(lambda it=it: tunnel_alive(it)) for it in clients) == [False, True])
    cut = isobar.metric("isobar_listener_exchanges_cut_total")
    check("those that were cut are counted", cut == 2, cut)
    going.put(None), questions.put(None)
    for client in clients:
        client.close()
    for channel in channels:
        channel.close()
    isobar.stop()
    done(17)


main()
