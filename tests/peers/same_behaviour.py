#!/usr/bin/env python3
"""Compares two builds of isobar: what they answer, what backends see, what `/config` shows and what `check` says.

usage: same_behaviour.py OLD NEW

For changes of structure, which are to change nothing that can be seen. Each file of `examples/configs`, and `lb.toml`, is run with both;
its backends stand in as one server here that answers with the request that it was sent. Each valid and invalid file of `tests/config` is checked with both.
Exits with 1 when anything differs. Needs nothing but Python.
"""

import difflib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["www.example.com", "api.example.com", "a.example.com", "tools.internal", "other.test", "127.0.0.1"]
PATHS = ["/", "/users/1?x=y", "/orders", "/orders/7", "/v1/orders/7", "/reports/2024", "/reports/x", "/live", "/tools/a",
         "/.well-known/acme-challenge/t", "/a/../b", "/a%2Fb", "//users", "/admin", "/grpc.Service/Call"]
FIELDS = [[], ["x-canary: 1"], ["x-staff: let-me-in"], ["x-forwarded-for: 192.0.2.9", "x-forwarded-proto: https"],
          ["content-length: 3", "", "abc"], ["transfer-encoding: chunked", "", "3\r\nabc\r\n0\r\n\r\n"],
          ["connection: upgrade", "upgrade: websocket"], ["expect: 100-continue", "content-length: 3", "", "abc"]]
BAD = [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
       b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", b"TRACE / HTTP/1.1\r\nhost: a\r\n\r\n",
       b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", b"GET http://api.example.com/x HTTP/1.1\r\nhost: other\r\n\r\n",
       b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def whole_message(stream):
    """A head and its body, by length or in chunks; `None` at the end."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = stream.recv(65536)
        if not piece:
            return (head, b"") if head else None
        head += piece
    head, body = head.split(b"\r\n\r\n", 1)
    lower = head.lower()
    length = re.search(rb"\r\ncontent-length: *(\d+)", lower)
    chunked = b"transfer-encoding: chunked" in lower
    while (chunked and not body.endswith(b"0\r\n\r\n")) or (length and len(body) < int(length[1])):
        piece = stream.recv(65536)
        if not piece:
            break
        body += piece
    return head, body


def serve(stream):
    with stream:
        while (message := whole_message(stream)) is not None:
            head, body = message
            lines = head.decode("latin-1").split("\r\n")
            seen = json.dumps({"first": lines[0], "fields": sorted(lines[1:]), "body": body.decode("latin-1")}).encode()
            stream.sendall(b"HTTP/1.1 200 OK\r\nserver: echo\r\nx-powered-by: python\r\ncontent-length: %d\r\n\r\n" % len(seen) +
                           (b"" if head.startswith(b"HEAD") else seen))


def backend():
    listening = socket.create_server(("0.0.0.0", 0), backlog=128)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening.getsockname()[1]


def ask(port, request, head_only=False):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
        stream.sendall(request)
        try:
            head, body = whole_message(stream) if not head_only else (stream.recv(65536), b"")
        except TypeError:
            return "closed"
    text = re.sub(rb"(?i)\r\ndate: [^\r]*", b"", head).decode("latin-1")
    return text, body.decode("latin-1")


def requests():
    for host in HOSTS:
        for path in PATHS:
            for method in ["GET", "POST", "HEAD", "DELETE"]:
                yield method, f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
        for fields in FIELDS:
            head = "".join(f"{field}\r\n" for field in fields) if "" not in fields else "\r\n".join(fields)
            end = "" if "" in fields else "\r\n"
            yield "POST", f"POST /users HTTP/1.1\r\nhost: {host}\r\n{head}{end}".encode()
    for raw in BAD:
        yield "GET", raw


def run(binary, text, ports, admin):
    """What the answers are, and what `/config` is."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lb.toml")
        file.write_text(text)
        process = subprocess.Popen([binary, "run", "--config", file], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            for _ in range(400):
                try:
                    socket.create_connection(("127.0.0.1", ports[0]), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr.read().decode()
                    time.sleep(0.05)
            answers = [(raw, ask(port, raw, method == "HEAD")) for port in ports for method, raw in requests()]
            _, config = ask(admin, b"GET /config HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n" % admin)
            return answers, json.loads(config)["config"]
        finally:
            process.terminate()
            process.communicate(timeout=60)


def local(text, port):
    """The file with addresses of this machine; the ports of its listeners, and of the admin address."""
    ports = []

    def listener(found):
        ports.append(free_port())
        return f'address = "127.0.0.1:{ports[-1]}"'

    text = re.sub(r'(?m)^address = "(?:0\.0\.0\.0|127\.0\.0\.1|\[::\]):80\d\d"', listener, text)
    # Each keeps an address of its own; the server has all of them.
    known = {}
    text = re.sub(r'"[a-z0-9.-]+:9\d\d\d"', lambda it: f'"127.0.1.{known.setdefault(it[0], len(known) + 1)}:{port}"', text)
    admin = free_port()
    return text + f'\n[admin]\naddress = "127.0.0.1:{admin}"\n', ports, admin


def checked(binary, file):
    done = subprocess.run([binary, "check", "--config", file], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def main():
    old, new = sys.argv[1:]
    port = backend()
    different = 0

    def differ(what, before, after):
        nonlocal different
        different += 1
        print(f"DIFFERS {what}\n  old: {str(before)[:2000]}\n  new: {str(after)[:2000]}")

    compared = 0
    for file in sorted(ROOT.glob("examples/configs/*.toml")):
        text, ports, admin = local(file.read_text(), port)
        try:
            before, after = run(old, text, ports, admin), run(new, text, ports, admin)
        except AssertionError as error:
            differ(f"{file.name} does not start", error, "")
            continue
        for (raw, was), (_, is_now) in zip(before[0], after[0]):
            compared += 1
            if was != is_now:
                differ(f"{file.name} {raw!r}", was, is_now)
        lines = [json.dumps(it[1], indent=1).splitlines() for it in (before, after)]
        if lines[0] != lines[1]:
            differ(f"{file.name} /config", *("; ".join(difflib.unified_diff(*lines, n=1, lineterm="")), ""))
        print(f"{file.name}: {len(before[0])} requests at {len(ports)} listeners")
    files = sorted(ROOT.glob("tests/config/**/*.toml")) + [ROOT / "lb.toml"]
    for file in files:
        was, is_now = checked(old, file), checked(new, file)
        if was != is_now:
            differ(f"check {file.relative_to(ROOT)}", was, is_now)
    print(f"{compared} answers, {len(files)} files checked: {different} differ")
    sys.exit(different > 0)


main()
