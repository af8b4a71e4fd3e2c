"""curl in front: HTTP/1.1, HTTP/2 by TLS and in the clear, TLS 1.2 and 1.3; what it can do with each of them.

usage: test_curl.py BINARY
"""

import gzip
import hashlib
import http.server
import json
import os
import re
import subprocess
import threading

from harness import Isobar, Work, check, done

WORK = Work()
FILE = os.urandom(5_000_000)
TEXT = b"the same line over and over\n" * 4000
ETAG = '"' + hashlib.sha256(FILE).hexdigest()[:16] + '"'


class Backend(http.server.BaseHTTPRequestHandler):
    """A small server of HTTP/1.1 that tells in JSON what it has got."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connections = 0
    bodies_begun = 0

    def log_message(self, *_):
        pass

    def setup(self):
        Backend.connections += 1
        super().setup()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status not in (204, 304):
            self.send_header("content-length", len(body))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        """The body, and its trailers."""
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0))), {}
        whole, trailers = [], {}
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole.append(self.rfile.read(size))
            self.rfile.readline()
        while (line := self.rfile.readline().strip()):
            name, value = line.decode().split(":", 1)
            trailers[name.lower()] = value.strip()
        return b"".join(whole), trailers

    def upload(self):
        Backend.bodies_begun += 1
        body, trailers = self.body()
        self.answer(200, json.dumps({
            "hash": hashlib.sha256(body).hexdigest(), "length": len(body), "trailers": trailers,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }).encode(), content_type="application/json")

    do_POST = do_PUT = upload

    def do_GET(self):
        path = self.path
        if path.startswith("/status/"):
            self.answer(int(path.rsplit("/", 1)[1]), etag=ETAG)
        elif path == "/file":
            self.file()
        elif path == "/text":
            if "gzip" in self.headers.get("accept-encoding", ""):
                self.answer(200, gzip.compress(TEXT), content_encoding="gzip", vary="accept-encoding")
            else:
                self.answer(200, TEXT, vary="accept-encoding")
        elif path == "/trailers":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.send_header("trailer", "x-sum")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n0\r\nx-sum: 5d41402a\r\n\r\n")
        elif path == "/large-header":
            self.answer(200, b"ok", x_large="v" * 12000)
        else:
            self.upload()

    do_HEAD = do_GET

    def file(self):
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if not wanted:
            return self.answer(200, FILE, etag=ETAG, accept_ranges="bytes")
        first, last = wanted.groups()
        if not first:
            first, last = len(FILE) - int(last), len(FILE) - 1
        first, last = int(first), min(int(last or len(FILE) - 1), len(FILE) - 1)
        if first > last:
            return self.answer(416, content_range=f"bytes */{len(FILE)}")
        return self.answer(206, FILE[first:last + 1], etag=ETAG, content_range=f"bytes {first}-{last}/{len(FILE)}")


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def digest(data):
    return hashlib.sha256(data).hexdigest()


SERVER = Server(("127.0.0.1", 0), Backend)
threading.Thread(target=SERVER.serve_forever, daemon=True).start()
KEYS = f"""
[[route]]
upstream = "files"
[upstream.files]
backends = ["127.0.0.1:{SERVER.server_address[1]}"]
"""
LIMITS = 'max_body = "50MiB"\nmax_header_bytes = "40KiB"'
ISOBAR = Isobar(WORK, KEYS, plain=LIMITS, secure=LIMITS)

# The name of each way, what curl is told for it, where it goes, and what curl must say that it spoke.
WAYS = [
    ("h1", ["--http1.1"], ISOBAR.http, "1.1"),
    ("h2c", ["--http2-prior-knowledge"], ISOBAR.http, "2"),
    ("h1 by TLS 1.2", ["--http1.1", "--tls-max", "1.2"], ISOBAR.https, "1.1"),
    ("h1 by TLS 1.3", ["--http1.1", "--tlsv1.3"], ISOBAR.https, "1.1"),
    ("h2 by TLS 1.2", ["--http2", "--tls-max", "1.2"], ISOBAR.https, "2"),
    ("h2 by TLS 1.3", ["--http2", "--tlsv1.3"], ISOBAR.https, "2"),
]


def curl(way, path, *arguments, stdin=None):
    """What curl wrote, and what it said (-v, -w)."""
    _, flags, site, _ = way
    paths = [path] if isinstance(path, str) else path
    run = subprocess.run(
        ["curl", "-sSv", "--cacert", WORK.certificate, "--max-time", "60", *flags, *arguments, *(site + each for each in paths)],
        input=stdin, capture_output=True, timeout=90)
    return run.stdout, run.stderr.decode(errors="replace")


def upload(way):
    name, large = way[0], WORK.at("large")
    said, told = curl(way, "/up", "-T", large, "-w", "\n%{http_version} %{http_code}")
    text, spoken = said.decode().rsplit("\n", 1)
    check(f"{name}: the protocol is what was asked for", spoken == f"{way[3]} 200", (said, told))
    got = json.loads(text)
    check(f"{name}: 20 MB come whole, with their length", got["hash"] == LARGE and got["headers"].get("content-length") == "20000000", text)
    # From a pipe the length is unknown: chunks, or DATA without content-length.
    with open(large, "rb") as file:
        said, told = curl(way, "/up", "-T", "-", stdin=file.read())
    got = json.loads(said)
    check(f"{name}: 20 MB from a pipe come whole, in chunks",
          got["hash"] == LARGE and got["headers"].get("transfer-encoding") == "chunked" and "content-length" not in got["headers"], said)
    said, told = curl(way, "/up", "-F", f"file=@{large}", "-F", "name=value")
    check(f"{name}: a form with a file", json.loads(said)["length"] > 20_000_000, said)


def download(way):
    name = way[0]
    check(f"{name}: 5 MB come whole", curl(way, "/file")[0] == FILE)
    part, told = curl(way, "/file", "-r", "1000-2999999", "-w", "%{stderr}status=%{http_code}")
    check(f"{name}: a range", part == FILE[1000:3_000_000] and "status=206" in told, (len(part), told[-300:]))
    check(f"{name}: the last bytes", curl(way, "/file", "-r", "-500")[0] == FILE[-500:])
    told = curl(way, "/file", "-r", "9000000-", "-w", "%{stderr}status=%{http_code}")[1]
    check(f"{name}: a range behind the end is 416", "status=416" in told, told)
    path = WORK.at("resumed")
    with open(path, "wb") as file:
        file.write(FILE[:1_234_567])
    curl(way, "/file", "-C", "-", "-o", path)
    with open(path, "rb") as file:
        check(f"{name}: a download is taken up where it broke off", file.read() == FILE)
    head, told = curl(way, "/file", "-I")
    check(f"{name}: HEAD has the length and no body", b"content-length: 5000000" in head.lower() and head.endswith(b"\r\n\r\n"), head)
    for status in (204, 304):
        said, told = curl(way, f"/status/{status}", "-w", "%{http_code} %{size_download}")
        check(f"{name}: {status} has no body and ends", said == f"{status} 0".encode(), (said, told))
    plain, told = curl(way, "/text", "--compressed", "-D", WORK.at("head"))
    with open(WORK.at("head"), encoding="latin-1") as file:
        head = file.read().lower()
    check(f"{name}: what is compressed passes as it is", plain == TEXT and "content-encoding: gzip" in head, head)
    check(f"{name}: and what is not, too", curl(way, "/text")[0] == TEXT)


def fields(way):
    name = way[0]
    path = WORK.at("head")
    said, told = curl(way, "/trailers", "-D", path, "-H", "TE: trailers", *(["-H", "Connection: TE"] if way[3] == "1.1" else []))
    with open(path, encoding="latin-1") as file:
        check(f"{name}: trailers", said == b"hello" and "\nx-sum: 5d41402a" in file.read(), told)
    large = "h" * 30000
    got = json.loads(curl(way, "/up", "-H", f"x-large: {large}")[0])
    check(f"{name}: a header of 30 KB to the backend", got["headers"].get("x-large") == large, len(got["headers"].get("x-large", "")))
    many = [argument for n in range(80) for argument in ("-H", f"x-{n}: {n}")]
    got = json.loads(curl(way, "/up", *many)[0])
    check(f"{name}: 80 headers", all(got["headers"].get(f"x-{n}") == str(n) for n in range(80)), got)
    told = curl(way, "/up", "-H", f"x-large: {'h' * 50000}", "-w", "%{stderr}status=%{http_code}")[1]
    check(f"{name}: one of 50 KB is 431", "status=431" in told, told[-500:])
    said, told = curl(way, "/large-header")
    check(f"{name}: a header of 12 KB from the backend", said == b"ok" and "v" * 12000 in told, told[-300:])


def expectations(way):
    name = way[0]
    body = b"x" * 300_000
    said, told = curl(way, "/up", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-", stdin=body)
    check(f"{name}: 100-continue", json.loads(said)["hash"] == digest(body) and re.search(r"^< HTTP/[0-9.]+ 100", told, re.M), told)
    if way[3] == "2":
        # This curl (7.88) gives up when its stream is closed while it sends, and never reads the answer, whosever it is.
        return
    before = Backend.bodies_begun
    said, told = curl(way, "/up", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", WORK.at("too-large"),
                      "-w", "%{stderr}status=%{http_code} sent=%{size_upload}")
    check(f"{name}: what is too large is 413 before it is sent", "status=413 sent=0" in told and Backend.bodies_begun == before, told[-800:])


def connections(way):
    name = way[0]
    # With prior knowledge this curl (7.88) fails with a connection that it uses again, whoever answers.
    alone = name == "h2c"
    if not alone:
        told = curl(way, ["/text"] * 20, *["-o", "/dev/null"] * 20, "-w", "%{stderr}connects=%{num_connects} status=%{http_code} ")[1]
        # Written once for each URL: the first connects, the others do not.
        check(f"{name}: 20 requests over one connection",
              sum(map(int, re.findall(r"connects=(\d+)", told))) == 1 and told.count("status=200") == 20, told[-800:])
    accepted = ISOBAR.metric("isobar_listener_connections_accepted_total")
    asked = ISOBAR.metric("isobar_listener_requests_total")
    _, flags, site, version = way
    curls, each = (60, 1) if alone else (1, 300)
    runs = [subprocess.Popen(
        ["curl", "-sS", "--cacert", WORK.certificate, "--max-time", "60", *flags, *(["-Z", "--parallel-max", "50"] if not alone else []), "--create-dirs",
         "-o", os.path.join(WORK.at(f"many-{n}"), "#1"), "-w", "%{http_code} %{http_version}\n", f"{site}/up?[1-{each}]"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) for n in range(curls)]
    told = [run.communicate(timeout=90) for run in runs]
    lines = [line for out, _ in told for line in out.decode().splitlines()]
    check(f"{name}: {curls * each} in parallel", lines == [f"200 {version}"] * (curls * each) and not any(run.returncode for run in runs), (told[0][1][-500:], len(lines)))
    check(f"{name}: and isobar counts as many", ISOBAR.metric("isobar_listener_requests_total") - asked == curls * each)
    made = ISOBAR.metric("isobar_listener_connections_accepted_total") - accepted
    # By HTTP/2 curl may open some more before it knows that one will do.
    most = 60 if alone else 10 if version == "2" else 50
    check(f"{name}: over {most} connections at most", 1 <= made <= most, made)


def old(large):
    """HTTP/1.0, which has neither chunks nor 100-continue."""
    way = ("http/1.0", ["--http1.0"], ISOBAR.http, "1")
    said, told = curl(way, "/up", "-T", large, "-w", "\n%{http_version} %{http_code}")
    text, spoken = said.decode().rsplit("\n", 1)
    check("http/1.0: 20 MB come whole", json.loads(text)["hash"] == LARGE and spoken.split()[1] == "200", (said, told))
    check("http/1.0: 5 MB back", curl(way, "/file")[0] == FILE)
    # What is in chunks ends with the connection.
    said, told = curl(way, "/trailers")
    check("http/1.0: no chunks", said == b"hello" and "transfer-encoding" not in told.lower(), (said, told))


DATA = os.urandom(20_000_000)
LARGE = digest(DATA)
WORK.file("large", DATA)
with open(WORK.at("too-large"), "wb") as out:
    out.truncate(60_000_000)

for each in WAYS:
    upload(each)
    download(each)
    fields(each)
    expectations(each)
    connections(each)
old(WORK.at("large"))

# A client that does not trust the certificate, and one that speaks too old a TLS.
FAILS = subprocess.run(["curl", "-sS", f"{ISOBAR.https}/up"], capture_output=True)
check("who does not trust the certificate does not get in", FAILS.returncode == 60, FAILS)
FAILS = subprocess.run(["curl", "-sSk", "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0", f"{ISOBAR.https}/up"], capture_output=True)
check("TLS 1.1 is refused", FAILS.returncode == 35, FAILS)
check("connections to the backend are used again", Backend.connections < 400, Backend.connections)
ISOBAR.stop()
done(150)
