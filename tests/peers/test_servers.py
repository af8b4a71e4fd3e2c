"""Real servers behind: nginx, Node (http, http2) and hypercorn, each by all protocols that it speaks, in the clear and by TLS.

usage: test_servers.py BINARY
"""

import asyncio
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys

import websockets
from websockets.asyncio.client import connect

from harness import Isobar, Work, check, done, free_port

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = Work()
CERT, KEY = WORK.certificate, WORK.key
LARGE = b"".join(bytes([n]) * 1_000_000 for n in reversed(range(10)))
UPLOAD = os.urandom(8_000_000)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def nginx():
    """Static files, and uploads that it keeps: told in x-file."""
    ports = {name: free_port() for name in ("http", "https", "h2c", "h2", "sink")}
    files, bodies = WORK.at("files"), WORK.at("bodies")
    for path in (files, bodies):
        os.mkdir(path)
        os.chmod(path, 0o777)
    for name, data in (("hello", b"hello"), ("large", LARGE)):
        WORK.file(f"files/{name}", data)
    tls = f"ssl_certificate {CERT}; ssl_certificate_key {KEY};"
    listeners = "\n".join(
        f"server {{ listen 127.0.0.1:{ports[name]} {flags}; {tls if 'ssl' in flags else ''} include {WORK.path}/site.conf; }}"
        for name, flags in (("http", ""), ("https", "ssl"), ("h2c", "http2"), ("h2", "ssl http2")))
    WORK.file("site.conf", f"""
root {files};
client_max_body_size 50m;
location = /refuse {{ return 403 no; }}
location = /up {{
  client_body_in_file_only on;
  client_body_temp_path {bodies};
  proxy_pass http://127.0.0.1:{ports['sink']};
  proxy_pass_request_body off;
  proxy_set_header content-length "";
  proxy_set_header x-file $request_body_file;
  proxy_set_header x-spoken $server_protocol;
}}
""")
    WORK.file("nginx.conf", f"""
daemon off; master_process off; pid {WORK.path}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {bodies}; proxy_temp_path {bodies}; fastcgi_temp_path {bodies}; uwsgi_temp_path {bodies}; scgi_temp_path {bodies};
  {listeners}
  server {{
    listen 127.0.0.1:{ports['sink']};
    location / {{ default_type application/json; return 200 '{{"file": "$http_x_file", "version": "$http_x_spoken", "method": "$request_method"}}'; }}
  }}
}}
""")
    WORK.start("nginx", ["nginx", "-c", WORK.at("nginx.conf"), "-e", WORK.at("nginx-early.log")], *ports.values())
    return ports


def node():
    ports = {name: free_port() for name in ("http", "https", "h2c", "h2")}
    WORK.start("node", ["node", os.path.join(HERE, "servers", "node.js"), KEY, CERT, *map(str, ports.values())], *ports.values())
    return ports


def hypercorn():
    # One port for HTTP/1.1 and HTTP/2 by prior knowledge, one for both by TLS.
    clear, tls = free_port(), free_port()
    WORK.start("hypercorn", [sys.executable, "-m", "hypercorn", "--insecure-bind", f"127.0.0.1:{clear}", "--bind", f"127.0.0.1:{tls}",
                             "--certfile", CERT, "--keyfile", KEY, "--graceful-timeout", "1", "asgi:app"],
               clear, tls, cwd=os.path.join(HERE, "servers"))
    return {"http": clear, "https": tls, "h2c": clear, "h2": tls}


SERVERS = {"nginx": nginx(), "node": node(), "hypercorn": hypercorn()}
# Each way to a server: the key of its port, whether by TLS, the protocol in lb.toml, and what the server must say that it was spoken to by.
WAYS = [
    ("http1", "http", False, "1.1"), ("auto", "http", False, "1.1"), ("http2", "h2c", False, "2"),
    ("http1", "https", True, "1.1"), ("auto", "h2", True, "2"), ("http2", "h2", True, "2"),
]
UPSTREAMS = []
KEYS = []
for server, ports in SERVERS.items():
    for protocol, port, tls, spoken in WAYS:
        name = f"{server}-{protocol}{'-tls' if tls else ''}"
        UPSTREAMS.append((name, server, spoken, protocol, tls))
        KEYS.append(f'[[route]]\npath_prefix = "/{name}"\nstrip_prefix = true\nupstream = "{name}"\n[upstream.{name}]\n'
                    f'backends = ["127.0.0.1:{ports[port]}"]\nprotocol = "{protocol}"\n' + (f'tls = {{ ca = "{CERT}" }}\n' if tls else ""))
LIMITS = 'max_body = "50MiB"'
ISOBAR = Isobar(WORK, "".join(KEYS), plain=LIMITS, secure=LIMITS)
CLIENTS = {"h1": (["--http1.1"], ISOBAR.http), "h2": (["--http2"], ISOBAR.https)}


def curl(client, path, *arguments, stdin=None):
    """The body, the status, and all heads and trailers as curl saw them."""
    flags, site = CLIENTS[client]
    head = WORK.at("head")
    run = subprocess.run(["curl", "-sS", "--cacert", CERT, "--max-time", "30", *flags, "-D", head, *arguments, site + path],
                         input=stdin, capture_output=True, timeout=60)
    with open(head, encoding="latin-1") as file:
        heads = file.read().lower()
    statuses = [int(status) for status in re.findall(r"^http/[0-9.]+ (\d+)", heads, re.M)]
    return run.stdout, statuses, heads + run.stderr.decode()


def uploaded(server, told):
    """What the server says of an upload: its hash, and the protocol."""
    got = json.loads(told)
    version = {"HTTP/1.1": "1.1", "HTTP/2.0": "2", "2.0": "2"}.get(got["version"], got["version"])
    if server != "nginx":
        return got["hash"], version
    with open(got["file"], "rb") as file:
        body = file.read()
    os.remove(got["file"])
    return digest(body), version


def ask(name, server, spoken, client):
    way = f"{client} to {name}"
    body, statuses, told = curl(client, f"/{name}/hello")
    check(f"{way}: GET", body == b"hello" and statuses == [200], (body, told))
    body, statuses, told = curl(client, f"/{name}/hello", "-I")
    check(f"{way}: HEAD", statuses == [200] and body.count(b"\r\n\r\n") == 1 and body.endswith(b"\r\n\r\n"), (body, told))
    body, statuses, told = curl(client, f"/{name}/large")
    check(f"{way}: 10 MB come whole", digest(body) == digest(LARGE), (len(body), told))
    body, statuses, told = curl(client, f"/{name}/up", "--data-binary", "@-", "-H", "content-type: text/plain", "-H", "expect:", stdin=b"a small body")
    check(f"{way}: POST, and the protocol is as it should be", statuses == [200] and uploaded(server, body) == (digest(b"a small body"), spoken),
          (body, told))
    body, statuses, told = curl(client, f"/{name}/up", "--data-binary", "@-", "-H", "expect:", stdin=UPLOAD)
    check(f"{way}: 8 MB there", statuses == [200] and uploaded(server, body)[0] == digest(UPLOAD), (body[:500], told))
    body, statuses, told = curl(client, f"/{name}/up", "-T", "-", stdin=UPLOAD)
    check(f"{way}: 8 MB of unknown length there", statuses[-1:] == [200] and uploaded(server, body)[0] == digest(UPLOAD), (body[:500], told))
    body, statuses, told = curl(client, f"/{name}/up", "--data-binary", "@-", "-H", "expect: 100-continue", "--expect100-timeout", "20", stdin=UPLOAD)
    check(f"{way}: 100-continue", statuses == [100, 200] and uploaded(server, body)[0] == digest(UPLOAD), (body[:500], statuses, told))
    body, statuses, told = curl(client, f"/{name}/refuse")
    check(f"{way}: an error of the server's is passed on", statuses == [403] and body == b"no", (body, told))
    # nginx has neither early hints nor trailers, and hypercorn has both by HTTP/2 alone.
    if server == "nginx" or (server == "hypercorn" and spoken != "2"):
        return
    body, statuses, told = curl(client, f"/{name}/hints")
    check(f"{way}: early hints", statuses == [103, 200] and "link: </style.css>; rel=preload; as=style" in told and body == b"with hints", (body, told))
    body, statuses, told = curl(client, f"/{name}/trailers", "-H", "te: trailers", *(["-H", "connection: te"] if client == "h1" else []))
    check(f"{way}: trailers", body == b"hello" and "\nx-sum: 5d41402a" in told, (body, told))


def stream(name):
    """The first part of a response comes while the server has not said the last."""
    first = http.client.HTTPConnection("127.0.0.1", ISOBAR.plain, timeout=20)
    first.request("GET", f"/{name}/wait")
    response = first.getresponse()
    line = response.readline()
    other = http.client.HTTPConnection("127.0.0.1", ISOBAR.plain, timeout=20)
    other.request("GET", f"/{name}/release")
    count = other.getresponse().read()
    check(f"{name}: a part comes as soon as it is sent", (line, count, response.read()) == (b"first\n", b"1", b"last\n"), (line, count))
    first.close()
    other.close()


def many(name):
    flags, site = CLIENTS["h2"]
    before = ISOBAR.metric(f'isobar_backend_connects_total{{upstream="{name}"')
    run = subprocess.run(["curl", "-sS", "--cacert", CERT, "--max-time", "60", *flags, "-Z", "--parallel-max", "64", "-o", "/dev/null",
                          "-w", "%{http_code} %{size_download}\n", f"{site}/{name}/hello?[1-200]"],
                         capture_output=True, timeout=90)
    lines = run.stdout.decode().split("\n")[:-1]
    return lines, run, ISOBAR.metric(f'isobar_backend_connects_total{{upstream="{name}"') - before


async def websocket(name, protocol):
    trust = {"ssl": ssl.create_default_context(cafile=CERT)}
    try:
        async with connect(f"wss://localhost:{ISOBAR.tls}/{name}/socket", max_size=None, proxy=None, **trust) as socket:
            large = os.urandom(2_000_000)
            await socket.send("text: ü")
            text = await socket.recv()
            await socket.send(large)
            data = await socket.recv()
            await socket.send("close")
            try:
                await socket.recv()
            except websockets.ConnectionClosed:
                pass
            check(f"{name}: a WebSocket", (text, data == large, socket.close_code, socket.close_reason) == ("text: ü", True, 4001, "as asked"),
                  (text, len(data), socket.close_code))
    except websockets.InvalidStatus as error:
        # By HTTP/2 alone there is no way for it: docs/backends.md.
        check(f"{name}: a WebSocket is refused as documented", protocol == "http2" and error.response.status_code == 501, error)


for name, server, spoken, protocol, tls in UPSTREAMS:
    for client in CLIENTS:
        ask(name, server, spoken, client)
    if server != "nginx":
        stream(name)
    lines, run, connects = many(name)
    check(f"{name}: 200 in parallel", lines == ["200 5"] * 200, (lines[:3], run.stderr[-500:]))
    if spoken == "2":
        # Streams share connections: a few for each worker.
        check(f"{name}: over few connections", connects <= 16, connects)
    if server == "hypercorn":
        asyncio.run(websocket(name, protocol))
    check(f"{name}: no attempt broke", ISOBAR.metric(f'isobar_backend_broken_total{{upstream="{name}"') == 0)

ISOBAR.stop()
done(390)
