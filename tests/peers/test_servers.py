"""Real servers behind: nginx, Node and hypercorn, by HTTP/1.1 and HTTP/2, in the clear and by TLS."""

import hashlib
import os
import shutil
import sys

from peers import Isobar, Work, check, done, free_port, run

NODE = """
const fs = require('fs'), crypto = require('crypto'), http = require('http'), http2 = require('http2');
const [clear, h2c, secure, key, cert] = process.argv.slice(2);
const large = Buffer.alloc(5000000, 'n');
function serve(request, response) {
  if (request.url === '/large') return response.end(large);
  if (request.url === '/stream') {
    let n = 0;
    const timer = setInterval(() => { response.write(`${n++}\\n`); if (n === 20) { clearInterval(timer); response.end(); } }, 10);
    return;
  }
  if (request.url === '/hints' && response.writeEarlyHints) response.writeEarlyHints({ link: '</a.css>; rel=preload' });
  if (request.url === '/trailers') {
    response.setHeader('trailer', 'x-sum');
    response.write('abc');
    response.addTrailers({ 'x-sum': '6' });
    return response.end();
  }
  const hash = crypto.createHash('sha256');
  request.on('data', data => hash.update(data));
  request.on('end', () => response.end(request.method === 'POST' ? hash.digest('hex') : `node ${request.httpVersion}`));
}
http.createServer(serve).listen(+clear, '127.0.0.1');
http2.createServer(serve).listen(+h2c, '127.0.0.1');
http2.createSecureServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert), allowHTTP1: true }, serve).listen(+secure, '127.0.0.1');
"""

ASGI = """
import asyncio, hashlib

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message.get("text")})
        return
    digest, path = hashlib.sha256(), scope["path"]
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    if path == "/hints" and "http.response.early_hint" in scope.get("extensions", {}):
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
    trailers = path == "/trailers" and "http.response.trailers" in scope.get("extensions", {})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")], "trailers": trailers})
    if path == "/large":
        for _ in range(50):
            await send({"type": "http.response.body", "body": b"h" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    elif path == "/stream":
        for n in range(20):
            await send({"type": "http.response.body", "body": b"%d\\n" % n, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b""})
    elif trailers:
        await send({"type": "http.response.body", "body": b"abc"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"6")], "more_trailers": False})
    else:
        text = digest.hexdigest() if scope["method"] == "POST" else f"hypercorn {scope['http_version']}"
        await send({"type": "http.response.body", "body": text.encode()})
"""


def nginx(work):
    clear, secure, h2 = free_port(), free_port(), free_port()
    os.makedirs(f"{work.path}/files", exist_ok=True)
    work.file("files/large", b"n" * 5_000_000)
    work.file("files/index.html", b"nginx")
    work.file("nginx.conf", f"""
daemon off; pid {work.path}/nginx.pid; error_log {work.path}/nginx.log;
events {{}}
http {{
  access_log off; client_body_temp_path {work.path}/body; client_max_body_size 0;
  server {{ listen 127.0.0.1:{clear}; root {work.path}/files; }}
  server {{ listen 127.0.0.1:{secure} ssl; ssl_certificate {work.certificate}; ssl_certificate_key {work.key}; root {work.path}/files; }}
  server {{ listen 127.0.0.1:{h2} ssl http2; ssl_certificate {work.certificate}; ssl_certificate_key {work.key}; root {work.path}/files; }}
}}
""")
    work.start("nginx", ["nginx", "-c", f"{work.path}/nginx.conf", "-e", f"{work.path}/nginx.log"], clear, secure, h2)
    return {"nginx-clear": (clear, "http1", False), "nginx-tls": (secure, "http1", True), "nginx-h2": (h2, "auto", True)}


def node(work):
    clear, h2c, secure = free_port(), free_port(), free_port()
    script = work.file("server.js", NODE)
    work.start("node", ["node", script, str(clear), str(h2c), str(secure), work.key, work.certificate], clear, h2c, secure)
    return {
        "node-http1": (clear, "http1", False), "node-h2c": (h2c, "http2", False),
        "node-h2": (secure, "http2", True), "node-tls-http1": (secure, "http1", True), "node-auto": (secure, "auto", True),
    }


def hypercorn(work):
    clear, secure = free_port(), free_port()
    work.file("app.py", ASGI)
    command = [os.path.join(os.path.dirname(sys.executable), "hypercorn"), "app:app", "--log-level", "error"]
    work.start("hypercorn", [*command, "--bind", f"127.0.0.1:{clear}"], clear, cwd=work.path)
    tls = ["--certfile", work.certificate, "--keyfile", work.key]
    work.start("hypercorn-tls", [*command, "--bind", f"127.0.0.1:{secure}", *tls], secure, cwd=work.path)
    return {
        "hypercorn-http1": (clear, "http1", False), "hypercorn-h2c": (clear, "http2", False),
        "hypercorn-h2": (secure, "http2", True), "hypercorn-auto": (secure, "auto", True),
    }


def main():
    work = Work()
    servers = {**nginx(work), **node(work), **hypercorn(work)}
    keys = ""
    for name, (port, protocol, tls) in servers.items():
        secure = f'tls = {{ ca = "{work.certificate}" }}' if tls else ""
        keys += f'[[route]]\npath_prefix = "/{name}"\nstrip_prefix = true\nupstream = "{name}"\n'
        keys += f'[upstream.{name}]\nbackends = ["127.0.0.1:{port}"]\nprotocol = "{protocol}"\n{secure}\n'
    isobar = Isobar(work, keys)
    upload = os.urandom(4_000_000)
    path, digest = work.file("upload", upload), hashlib.sha256(upload).hexdigest()
    spoken = {"http1": ("1.1",), "http2": ("2", "2.0"), "auto": ("2", "2.0")}
    for name, (_, protocol, _) in servers.items():
        for way, options in [("h1", ["--http1.1", isobar.http]), ("h2", ["--http2", "--cacert", work.certificate, isobar.https])]:
            *options, site = options

            def curl(target, *more, **keywords):
                return run("curl", "-sS", "--max-time", "20", *options, *more, f"{site}/{name}{target}", **keywords)

            what = f"{way} to {name}"
            seen = curl("/").stdout.decode()
            kind = name.split("-")[0]
            good = seen.startswith(kind) and (kind == "nginx" or seen.split()[-1] in spoken[protocol])
            check(f"{what}: GET by {protocol}", good, seen)
            seen = curl("/large").stdout
            check(f"{what}: 5 MB down", len(seen) == 5_000_000, len(seen))
            seen = curl("/", "-I")
            check(f"{what}: HEAD", b" 200" in seen.stdout.split(b"\r\n")[0] and not seen.stderr, seen)
            if kind == "nginx":
                seen = curl("/large", "-r", "10-19").stdout
                check(f"{what}: a range", seen == b"n" * 10, seen)
                continue
            seen = curl("/", "--data-binary", f"@{path}").stdout.decode()
            check(f"{what}: 4 MB up", seen == digest, seen)
            seen = curl("/", "-T", "-", "-X", "POST", input=upload).stdout.decode()
            check(f"{what}: 4 MB up without a length", seen == digest, seen)
            seen = curl("/", "-H", "expect: 100-continue", "--expect100-timeout", "15", "--data-binary", f"@{path}", "-w", " %{time_total}")
            told, _, took = seen.stdout.decode().partition(" ")
            check(f"{what}: Expect", told == digest and float(took) < 10, seen)
            seen = curl("/stream").stdout.decode()
            check(f"{what}: a stream", seen.split() == [str(n) for n in range(20)], seen)
            if kind == "node":
                seen = curl("/trailers", "-D", "-", "-H", "te: trailers", *(["--raw"] if way == "h1" else []))
                check(f"{what}: trailers", b"x-sum: 6" in seen.stdout.lower(), seen)
                seen = curl("/hints", "-D", "-")
                check(f"{what}: early hints", b" 103" in seen.stdout and b"rel=preload" in seen.stdout, seen)
            urls = [part for n in range(100) for part in ("-o", os.devnull, f"{site}/{name}/?{n}")]
            seen = run("curl", "-sS", "--max-time", "30", *options, "-Z", "--parallel-max", "30", "-w", "%{http_code}\n", *urls)
            check(f"{what}: 100 at once", seen.stdout.decode().split() == ["200"] * 100, seen.stdout[-200:] + seen.stderr[-300:])
    check("isobar stops well", isobar.stop() == 0)
    done()


if not shutil.which("node") or not shutil.which("nginx"):
    sys.exit("node and nginx are needed")
main()
