"""Chromium by HTTP/2 and TLS: a page that fetches, posts, streams, and opens a WebSocket in a stream of its HTTP/2 connection.

usage: test_chromium.py BINARY
"""

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import time
import urllib.request

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from harness import Isobar, Work, check, done, eventually, free_port

WORK = Work()
GO = asyncio.Event()
SEEN = {"cancelled": 0, "sockets": []}

# What the page does; it gives back one object.
PAGE = """
const told = {};
const hex = (bytes) => Array.from(new Uint8Array(bytes)).map((byte) => byte.toString(16).padStart(2, '0')).join('');
const text = async (path, options) => (await fetch(path, options)).text();
async function all() {
  told.fetched = (await Promise.all([...Array(50).keys()].map((n) => text(`/resource/${n}`)))).filter((said, n) => said === `resource ${n}`).length;
  told.protocols = [...new Set(performance.getEntriesByType('resource').map((entry) => entry.nextHopProtocol))];
  told.page = performance.getEntriesByType('navigation')[0].nextHopProtocol;
  const body = new Uint8Array(3000000).map((_, n) => (n * 31) % 251);
  told.posted = await text('/post', { method: 'POST', body });
  told.sum = hex(await crypto.subtle.digest('SHA-256', body));
  told.large = hex(await crypto.subtle.digest('SHA-256', await (await fetch('/large')).arrayBuffer()));
  // Streaming: the second part is sent when the first has been seen.
  const reader = (await fetch('/parts')).body.getReader();
  const decoder = new TextDecoder();
  told.parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    told.parts.push(decoder.decode(value));
    if (told.parts.length === 1) await text('/go');
  }
  // An upload that is a stream: of HTTP/2 alone.
  const pieces = new ReadableStream({
    async start(out) {
      for (let n = 0; n < 20; n++) { out.enqueue(new TextEncoder().encode('x'.repeat(10000))); await 0; }
      out.close();
    },
  });
  told.streamed = await text('/post', { method: 'POST', body: pieces, duplex: 'half' });
  // One that is given up.
  const abort = new AbortController();
  const hanging = fetch('/hang', { signal: abort.signal });
  while ((await text('/hangs')) !== '1') {}
  abort.abort();
  told.aborted = await hanging.then(() => 'answered', (error) => error.name);
  told.events = await new Promise((resolve) => {
    const got = [];
    const source = new EventSource('/events');
    source.onmessage = (event) => { got.push([event.lastEventId, event.data]); if (got.length === 5) { source.close(); resolve(got); } };
    source.onerror = () => resolve('failed');
  });
  told.sockets = await Promise.all([...Array(10).keys()].map((n) => new Promise((resolve) => {
    const socket = new WebSocket(`wss://${location.host}/socket`, 'chat');
    socket.binaryType = 'arraybuffer';
    const large = new Uint8Array(500000).map((_, at) => (at * 7 + n) % 256);
    const got = [];
    socket.onopen = () => { socket.send(`text ${n}: ü`); socket.send(large); socket.send('close'); };
    socket.onmessage = (event) => got.push(typeof event.data === 'string' ? event.data
      : new Uint8Array(event.data).every((byte, at) => byte === large[at]) && event.data.byteLength);
    socket.onclose = (event) => resolve([socket.protocol, ...got, event.code, event.reason]);
  })));
  told.status = (await fetch('/nothing-here')).status;
  told.cookie = (await text('/cookie'), await text('/cookie'));
  return told;
}
window.result = all().catch((error) => ({ ...told, error: String(error && error.stack || error) }));
"""


async def backend(reader, writer):
    """HTTP/1.1, small: what the page asks for."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            fields = {line.split(b":", 1)[0].lower().decode(): line.split(b":", 1)[1].strip().decode() for line in head.split(b"\r\n")[1:-2]}
            if fields.get("transfer-encoding") == "chunked":
                body = b""
                while size := int((await reader.readline()).strip(), 16):
                    body += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            else:
                body = await reader.readexactly(int(fields.get("content-length", 0)))
            await answer(path, fields, body, reader, writer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def whole(writer, body, kind="text/plain", more=""):
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncache-control: no-store\r\n{more}content-length: {len(body)}\r\n\r\n".encode() + body)


async def in_chunks(writer, kind, parts):
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncache-control: no-store\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    async for part in parts:
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def two_parts():
    yield b"first"
    await asyncio.wait_for(GO.wait(), 20)
    yield b"second"


async def five_events():
    for n in range(5):
        yield f"id: {n}\ndata: event {n}\n\n".encode()


async def answer(path, fields, body, reader, writer):
    if path == "/":
        whole(writer, b"<!doctype html><title>isobar</title><link rel=icon href=data:,><script src=/page.js></script>", "text/html; charset=utf-8")
    elif path == "/page.js":
        whole(writer, PAGE.encode(), "text/javascript; charset=utf-8")
    elif path.startswith("/resource/"):
        whole(writer, path[1:].replace("/", " ").encode())
    elif path == "/post":
        whole(writer, hashlib.sha256(body).hexdigest().encode())
    elif path == "/large":
        whole(writer, LARGE, "application/octet-stream")
    elif path == "/parts":
        await in_chunks(writer, "text/plain", two_parts())
    elif path == "/go":
        GO.set()
        whole(writer, b"gone")
    elif path == "/hang":
        SEEN["hangs"] = 1
        if await reader.read(1) == b"":
            SEEN["cancelled"] += 1
        raise ConnectionResetError
    elif path == "/hangs":
        whole(writer, str(SEEN.get("hangs", 0)).encode())
    elif path == "/events":
        await in_chunks(writer, "text/event-stream", five_events())
    elif path == "/cookie":
        whole(writer, fields.get("cookie", "").encode(), more="set-cookie: a=1; Secure\r\nset-cookie: b=2; Secure\r\n")
    else:
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


async def socket(connection):
    SEEN["sockets"].append(connection.request.headers)
    async for message in connection:
        if message == "close":
            await connection.close(4002, "as asked")
            return
        await connection.send(message)


class Page:
    """A tab of Chromium, steered by its DevTools protocol."""

    def __init__(self, connection):
        self.connection, self.number, self.events = connection, 0, []

    async def call(self, method, **params):
        self.number += 1
        number = self.number
        await self.connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self.connection.recv(), 60))
            if message.get("id") == number:
                return message.get("result") or message
            self.events.append(message)

    async def go(self, url):
        """Opens an address, and waits until the page is there."""
        self.events.clear()
        await self.call("Page.navigate", url=url)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if any(event.get("method") == "Page.loadEventFired" for event in self.events):
                return
            await self.evaluate("1")
            await asyncio.sleep(0.05)

    def redirects(self):
        """The status of each redirect on the way to the page, and the reason of those that the browser has made up."""
        answers = [event["params"].get("redirectResponse") for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [(answer["status"], answer["headers"].get("Non-Authoritative-Reason")) for answer in answers if answer]

    async def evaluate(self, expression):
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return result.get("result", {}).get("value", result)


def public_key_hash():
    der = subprocess.run(["openssl", "x509", "-in", WORK.certificate, "-pubkey", "-noout"], check=True, capture_output=True).stdout
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=der, check=True, capture_output=True).stdout
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def chromium():
    """The browser; its page's address for DevTools."""
    port = free_port()
    WORK.start("chromium", [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={WORK.at('profile')}", f"--remote-debugging-port={port}",
        "--remote-allow-origins=*", f"--ignore-certificate-errors-spki-list={public_key_hash()}",
        "--host-resolver-rules=MAP test.example 127.0.0.1", "about:blank"], port, env={**os.environ, "HOME": WORK.path})

    def window():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as response:
            return [tab["webSocketDebuggerUrl"] for tab in json.load(response) if tab["type"] == "page"]

    eventually(window)
    return window()[0]


async def main():
    web = await asyncio.start_server(backend, "127.0.0.1", 0)
    async with serve(socket, "127.0.0.1", 0, max_size=None, subprotocols=["chat"]) as sockets:
        keys = '[[route]]\npath = "/socket"\nupstream = "sockets"\n[[route]]\nupstream = "web"\n' \
               f'[upstream.sockets]\nbackends = ["127.0.0.1:{sockets.sockets[0].getsockname()[1]}"]\n' \
               f'[upstream.web]\nbackends = ["127.0.0.1:{web.sockets[0].getsockname()[1]}"]\n'
        tls = free_port()
        isobar = await asyncio.to_thread(
            lambda: Isobar(WORK, keys, plain=f"redirect_to_https = true\nhttps_port = {tls}", tls='hsts = "1d"', tls_port=tls))
        clear = isobar.plain
        window = await asyncio.to_thread(chromium)
        async with connect(window, max_size=None, proxy=None, ping_interval=None) as connection:
            page = Page(connection)
            await page.call("Page.enable")
            await page.call("Network.enable")
            # From http the redirect leads to https.
            await page.go(f"http://test.example:{clear}/")
            where = await page.evaluate("location.href")
            check("asked by http, isobar answers 308", page.redirects() == [(308, None)], page.redirects())
            check("the redirect leads to https", where == f"https://test.example:{tls}/", where)
            told = await page.evaluate("result")
            read(told)
            check("the backend is told that a request was given up", await soon(lambda: SEEN["cancelled"] == 1), SEEN)
            check("all of it over few connections",
                  isobar.metric('isobar_listener_connections_accepted_total{listener="tls"') <= 6, isobar.metrics())
            # The sockets were streams: no connection of HTTP/1.1 came to the listener by TLS.
            versions = isobar.metric("isobar_listener_http2_streams_total")
            check("more than 70 streams", versions >= 70, versions)
            check("10 WebSockets came to the backend as upgrades of HTTP/1.1", len(SEEN["sockets"]) == 10
                  and all(fields.get("origin") == f"https://test.example:{tls}" for fields in SEEN["sockets"]), SEEN["sockets"])
            requests = [event["params"] for event in page.events if event.get("method") == "Network.webSocketHandshakeResponseReceived"]
            check("Chromium says 200 of them, as RFC 8441 has it", len(requests) == 10 and all(request["response"]["status"] == 200 for request in requests),
                  [request["response"] for request in requests][:1])
            # Strict-Transport-Security: now the browser does not even ask by http. It keeps the port, so the answer is an error of TLS.
            await page.go(f"http://test.example:{clear}/")
            check("HSTS: the browser itself goes from http to https", page.redirects() == [(307, "HSTS")], page.redirects())
            # Back and away: nothing is left open.
            await page.go("about:blank")
            await page.call("Browser.close")
        await asyncio.to_thread(isobar.stop)
    done(32)


def read(told):
    """What the page has reported."""
    check("the page came to its end", isinstance(told, dict) and "error" not in told and "cookie" in told, told)
    check("50 resources in parallel", told.get("fetched") == 50, told)
    check("all by h2", told.get("protocols") == ["h2"] and told.get("page") == "h2", (told.get("protocols"), told.get("page")))
    check("a POST of 3 MB", told.get("posted") == told.get("sum") and len(told.get("sum", "")) == 64, told)
    check("a response of 5 MB", told.get("large") == hashlib.sha256(LARGE).hexdigest(), told)
    check("a response in parts, as they come", told.get("parts") == ["first", "second"], told)
    check("a body that is a stream", told.get("streamed") == hashlib.sha256(b"x" * 200_000).hexdigest(), told)
    check("a request that is given up", told.get("aborted") == "AbortError", told)
    check("an EventSource", told.get("events") == [[str(n), f"event {n}"] for n in range(5)], told.get("events"))
    for n, got in enumerate(told.get("sockets", [])):
        check(f"WebSocket {n}", got == ["chat", f"text {n}: ü", 500000, 4002, "as asked"], got)
    check("a 404 is one", told.get("status") == 404, told)
    check("two cookies come back as one field", told.get("cookie") == "a=1; b=2", told.get("cookie"))


async def soon(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        await asyncio.sleep(0.02)
    return condition()


LARGE = os.urandom(5_000_000)
asyncio.run(main())
