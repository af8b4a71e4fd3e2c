"""curl by every protocol: uploads, ranges, Expect, trailers, and what has no body."""

import hashlib
import http.server
import os
import threading

from peers import Isobar, Work, check, done, run


class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    large = os.urandom(5_000_000)

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status not in (204, 304):
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        data = self.body()
        self.answer(200, hashlib.sha256(data).hexdigest().encode(), x_length=str(len(data)), x_expect=self.headers.get("expect", "none"))

    do_PUT = do_POST

    def do_GET(self):
        if self.path == "/large":
            spans = self.headers.get("range")
            if spans:
                first, last = spans.removeprefix("bytes=").split("-")
                first, last = int(first), int(last or len(self.large) - 1)
                return self.answer(206, self.large[first:last + 1], content_range=f"bytes {first}-{last}/{len(self.large)}")
            return self.answer(200, self.large, accept_ranges="bytes")
        if self.path == "/trailers":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.send_header("trailer", "x-sum")
            self.end_headers()
            return self.wfile.write(b"3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n")
        if self.path == "/gzip":
            import gzip
            return self.answer(200, gzip.compress(b"small" * 1000), content_encoding="gzip")
        if self.path.startswith("/status/"):
            return self.answer(int(self.path[8:]))
        self.answer(200, b"hello", x_length_of_field=str(len(self.headers.get("x-long", ""))))

    do_HEAD = do_GET


def main():
    work = Work()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    isobar = Isobar(work, f'[[route]]\nupstream = "u"\n[upstream.u]\nbackends = ["127.0.0.1:{server.server_port}"]\n')
    upload = os.urandom(4_000_000)
    path, small = work.file("upload", upload), work.file("small", b"small")
    digest = hashlib.sha256(upload).hexdigest()
    large = hashlib.sha256(Backend.large).hexdigest()
    secure = ["--cacert", work.certificate]
    for way, arguments, site, version in [
        ("http/1.1", ["--http1.1"], isobar.http, "1.1"),
        ("h2c", ["--http2-prior-knowledge"], isobar.http, "2"),
        ("https, http/1.1", ["--http1.1", *secure], isobar.https, "1.1"),
        ("https, h2", ["--http2", *secure], isobar.https, "2"),
        ("TLS 1.2, h2", ["--http2", "--tls-max", "1.2", *secure], isobar.https, "2"),
        ("TLS 1.3, h2", ["--http2", "--tlsv1.3", *secure], isobar.https, "2"),
        ("http/1.0", ["--http1.0"], isobar.http, "1"),
    ]:
        def curl(*more, target="/", **options):
            return run("curl", "-sS", "--max-time", "20", *arguments, *more, site + target, **options)

        seen = curl("-o", os.devnull, "-w", "%{http_code} %{http_version}")
        check(f"{way}: speaks it", seen.stdout.decode() == f"200 {version}", seen)
        seen = curl("--data-binary", f"@{path}")
        check(f"{way}: an upload with a length", seen.stdout.decode() == digest, seen)
        if way != "http/1.0":
            seen = curl("-T", "-", input=upload)
            check(f"{way}: an upload without one", seen.stdout.decode() == digest, seen)
        # RFC 9110 §10.1.1: not from HTTP/1.0.
        if way != "http/1.0":
            seen = curl("-H", "expect: 100-continue", "--expect100-timeout", "15", "--data-binary", f"@{path}", "-w", " %{time_total}")
            told, _, took = seen.stdout.decode().partition(" ")
            check(f"{way}: Expect is answered at once", told == digest and float(took) < 10, seen)
        seen = curl(target="/large")
        check(f"{way}: 5 MB down", hashlib.sha256(seen.stdout).hexdigest() == large, len(seen.stdout))
        seen = curl("-r", "1000-1999", "-w", "%{stderr}%{http_code}", target="/large")
        check(f"{way}: a range", seen.stdout == Backend.large[1000:2000] and seen.stderr == b"206", seen.stderr)
        half = work.file("half", Backend.large[:2_500_000])
        curl("-C", "-", "-o", half, target="/large")
        check(f"{way}: a download that is taken up again", open(half, "rb").read() == Backend.large)
        seen = curl("-I")
        check(f"{way}: HEAD", b"content-length: 5" in seen.stdout.lower() and not seen.stderr, seen)
        for status in (204, 304, 404, 500):
            seen = curl("-o", os.devnull, "-w", "%{http_code} %{size_download}", target=f"/status/{status}")
            check(f"{way}: {status}", seen.stdout.decode() == f"{status} 0", seen)
        if way != "http/1.0":
            seen = curl("-D", "-", "--raw", "-H", "te: trailers", target="/trailers")
            check(f"{way}: trailers", b"x-sum: 6" in seen.stdout.lower(), seen)
        seen = curl("--compressed", target="/gzip")
        check(f"{way}: what is compressed passes as it is", seen.stdout == b"small" * 1000, seen.stderr)
        seen = curl("-o", os.devnull, "-D", "-", "-H", "x-long: " + "b" * 12_000)
        check(f"{way}: a field of 12 kB", b"x-length-of-field: 12000" in seen.stdout.lower(), seen.stdout)
        seen = curl("-o", os.devnull, "-H", "x-long: " + "b" * 100_000, "-w", "%{http_code}")
        check(f"{way}: one of 100 kB is refused", seen.stdout.decode() == "431" or seen.returncode in (52, 56, 92), seen)
        if way != "http/1.0":
            urls = [f"{site}/?{n}" for n in range(200)]
            sinks = [part for url in urls for part in ("-o", os.devnull, url)]
        # curl 7.88 fails so at any server by prior knowledge.
        if way not in ("http/1.0", "h2c"):
            seen = run("curl", "-sS", "--max-time", "30", *arguments, "-Z", "--parallel-max", "50", "-w", "%{http_code}\n", *sinks)
            check(f"{way}: 200 at once", seen.stdout.decode().split() == ["200"] * 200, seen.stderr)
        if way != "http/1.0":
            seen = run("curl", "-sS", *arguments, "-w", "%{num_connects}\n", *sinks[:15])
            check(f"{way}: a connection is used again", seen.stdout.decode().split() == ["1", "0", "0", "0", "0"], seen)
        seen = run("curl", "-sS", *arguments, "-o", os.devnull, "-T", small, "-w", "%{http_code}", site + "/file")
        check(f"{way}: PUT", seen.stdout.decode() == "200", seen)
    check("isobar stops well", isobar.stop() == 0)
    done()


main()
