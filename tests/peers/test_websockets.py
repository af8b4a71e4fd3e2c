"""The package `websockets` on both sides: ws and wss, compression, pings, close codes, large messages, many at once, who closes first.

usage: test_websockets.py BINARY
"""

import asyncio
import hashlib
import os
import ssl

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from harness import Isobar, Work, check, done, eventually

WORK = Work()
SEEN = {}


async def serve_one(socket):
    """Does what the path says."""
    path = socket.request.path.split("?")[0]
    SEEN["headers"] = socket.request.headers
    if path.startswith("/close/"):
        await socket.close(int(path.rsplit("/", 1)[1]), "as asked: ü")
        return
    if path == "/abort":
        await socket.recv()
        socket.transport.abort()
        return
    if path == "/ping":
        # The client's library answers by itself.
        await asyncio.wait_for(await socket.ping(b"are you there"), 10)
        await socket.send("pong came")
        return
    if path == "/flood":
        for n in range(5000):
            await socket.send(f"{n}")
        return
    try:
        async for message in socket:
            await socket.send(message)
    except websockets.ConnectionClosed:
        pass
    SEEN[path] = (socket.close_code, socket.close_reason)


async def way(name, site, secure):
    trust = {"ssl": ssl.create_default_context(cafile=WORK.certificate)} if secure else {}

    def open_one(path, **more):
        return connect(site + path, max_size=None, proxy=None, subprotocols=["chat", "superchat"], **trust, **more)

    async with open_one("/echo?a=1", additional_headers={"x-from": "client"}) as socket:
        await socket.send("hello: ü")
        check(f"{name}: text", await socket.recv() == "hello: ü")
        await socket.send(b"\x00\xff")
        check(f"{name}: bytes", await socket.recv() == b"\x00\xff")
        check(f"{name}: the subprotocol is agreed on", socket.subprotocol == "superchat", socket.subprotocol)
        check(f"{name}: compression is agreed on", "permessage-deflate" in socket.response.headers.get("sec-websocket-extensions", ""),
              socket.response.headers)
        check(f"{name}: the backend sees the client's headers and who asks",
              SEEN["headers"].get("x-from") == "client" and SEEN["headers"].get("x-forwarded-for") == "127.0.0.1"
              and SEEN["headers"].get("x-forwarded-proto") == ("https" if secure else "http"), SEEN["headers"])
        latency = await asyncio.wait_for(await socket.ping(), 10)
        check(f"{name}: a ping by the client is answered", 0 <= latency < 10, latency)
        check(f"{name}: it counts as a tunnel", ISOBAR.metric("isobar_listener_tunnels") == 1)
    for compression in ("deflate", None):
        async with open_one("/echo", compression=compression) as socket:
            large = os.urandom(6_000_000) + b"a" * 6_000_000
            await socket.send(large)
            back = await socket.recv()
            check(f"{name}: 12 MB there and back, compression {compression}", hashlib.sha256(back).digest() == hashlib.sha256(large).digest(), len(back))
            await socket.send(iter(["in ", "three ", "parts"]))
            check(f"{name}: a message in parts, compression {compression}", await socket.recv() == "in three parts")
            for n in range(1000):
                await socket.send(f"{n}")
            check(f"{name}: 1000 messages in order, compression {compression}", [await socket.recv() for _ in range(1000)] == [f"{n}" for n in range(1000)])
    async with open_one("/ping") as socket:
        check(f"{name}: a ping by the backend is answered", await asyncio.wait_for(socket.recv(), 15) == "pong came")
    async with open_one("/flood") as socket:
        got = [message async for message in socket]
        check(f"{name}: 5000 messages, then the end", got == [f"{n}" for n in range(5000)] and socket.close_code == 1000, len(got))
    for code in (1000, 1001, 1011, 3000, 4999):
        async with open_one(f"/close/{code}") as socket:
            try:
                await socket.recv()
            except websockets.ConnectionClosed:
                pass
            check(f"{name}: the backend closes with {code}", (socket.close_code, socket.close_reason) == (code, "as asked: ü"),
                  (socket.close_code, socket.close_reason))
    for code in (1000, 3456):
        SEEN.pop("/mine", None)
        socket = await open_one("/mine")
        await socket.close(code, "I go")
        check(f"{name}: the client closes with {code}", await soon(lambda: SEEN.get("/mine") == (code, "I go")), SEEN.get("/mine"))
    socket = await open_one("/abort")
    await socket.send("now")
    try:
        await asyncio.wait_for(socket.recv(), 10)
        ended = "a message"
    except websockets.ConnectionClosed:
        ended = socket.close_code
    check(f"{name}: a backend that breaks off ends the client's connection", ended == 1006, ended)
    SEEN.pop("/gone", None)
    socket = await open_one("/gone")
    await socket.send("hello")
    await socket.recv()
    socket.transport.abort()
    check(f"{name}: the backend sees that the client has gone", await soon(lambda: SEEN.get("/gone", (0,))[0] == 1006), SEEN.get("/gone"))

    async def one(n):
        async with open_one(f"/echo?{n}") as mine:
            for turn in range(20):
                await mine.send(f"{n}-{turn}" * 50)
                if await mine.recv() != f"{n}-{turn}" * 50:
                    return False
            ALL.append(n)
            # All are open at the same time before the first goes.
            await asyncio.wait_for(everybody.wait(), 60)
        return True

    ALL.clear()
    everybody = asyncio.Event()
    tasks = [asyncio.create_task(one(n)) for n in range(100)]
    check(f"{name}: 100 at the same time", await soon(lambda: len(ALL) == 100, 60), len(ALL))
    tunnels = await asyncio.to_thread(ISOBAR.metric, "isobar_listener_tunnels")
    check(f"{name}: and as many are counted", tunnels == 100, tunnels)
    everybody.set()
    check(f"{name}: each had its own answers", all(await asyncio.gather(*tasks)))
    check(f"{name}: no tunnel is left", await asyncio.to_thread(eventually, lambda: ISOBAR.metric("isobar_listener_tunnels") == 0))

    # What is no WebSocket at the end of the route.
    try:
        await open_one("/refused")
        refused = "taken"
    except websockets.InvalidStatus as error:
        refused = (error.response.status_code, error.response.body)
    check(f"{name}: a backend that does not switch is passed on", refused == (403, b"not for you"), refused)


async def soon(condition, seconds=10):
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


def refuse(connection, request):
    if request.path == "/refused":
        return connection.respond(403, "not for you")
    return None


async def main():
    global ISOBAR
    async with (
        serve(serve_one, "127.0.0.1", 0, max_size=None, subprotocols=["superchat"], process_request=refuse) as plain,
        serve(serve_one, "127.0.0.1", 0, max_size=None, subprotocols=["superchat"], process_request=refuse, ssl=server_tls()) as secure,
    ):
        ports = [server.sockets[0].getsockname()[1] for server in (plain, secure)]
        keys = '[[route]]\npath_prefix = "/secure"\nstrip_prefix = true\nupstream = "secure"\n[[route]]\nupstream = "plain"\n' \
               f'[upstream.plain]\nbackends = ["127.0.0.1:{ports[0]}"]\n' \
               f'[upstream.secure]\nbackends = ["127.0.0.1:{ports[1]}"]\nprotocol = "auto"\ntls = {{ ca = "{WORK.certificate}" }}\n'
        ISOBAR = await asyncio.to_thread(Isobar, WORK, keys)
        await way("ws", f"ws://127.0.0.1:{ISOBAR.plain}", False)
        await way("wss", f"wss://localhost:{ISOBAR.tls}", True)
        await way("wss to a backend by TLS", f"wss://localhost:{ISOBAR.tls}/secure", True)
        await asyncio.to_thread(ISOBAR.stop)
    done(88)


def server_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(WORK.certificate, WORK.key)
    return context


ALL = []
ISOBAR = None
asyncio.run(main())
