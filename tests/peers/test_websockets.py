"""The websockets package on both sides, ws and wss."""

import asyncio
import os
import ssl

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from peers import Isobar, Work, check, done, eventually


async def behave(socket):
    path = socket.request.path
    if path == "/close":
        await socket.close(4001, "as it was asked to")
    elif path == "/drop":
        await socket.recv()
        socket.transport.abort()
    elif path == "/push":
        for n in range(1000):
            await socket.send(str(n))
    else:
        async for message in socket:
            await socket.send(message)


async def talks(url, context, way, isobar):
    options = {"ssl": context, "max_size": 2**24, "proxy": None}
    async with connect(url, **options) as socket:
        await socket.send("hello")
        check(f"{way}: text", await socket.recv() == "hello")
        check(f"{way}: compression is agreed on", any(it.name == "permessage-deflate" for it in socket.protocol.extensions))
        large = os.urandom(5_000_000)
        await socket.send(large)
        check(f"{way}: 5 MB", await socket.recv() == large)
        for n in range(500):
            await socket.send(f"{n}")
        echoed = [await socket.recv() for _ in range(500)]
        check(f"{way}: 500 ahead", echoed == [f"{n}" for n in range(500)], echoed[:5])
        latency = await asyncio.wait_for(await socket.ping(), 5)
        check(f"{way}: ping and pong", latency < 5)
    check(f"{way}: a close by the client is a close", socket.close_code == 1000, socket.close_code)
    async with connect(url, compression=None, subprotocols=None, **options) as socket:
        await socket.send(b"x" * 70_000)
        check(f"{way}: without compression", await socket.recv() == b"x" * 70_000)
    async with connect(url + "/close", **options) as socket:
        try:
            await asyncio.wait_for(socket.recv(), 5)
        except websockets.ConnectionClosed as closed:
            check(f"{way}: the server's close code and reason", closed.rcvd and (closed.rcvd.code, closed.rcvd.reason) == (4001, "as it was asked to"), closed)
    async with connect(url + "/drop", **options) as socket:
        await socket.send("now")
        try:
            await asyncio.wait_for(socket.recv(), 5)
            check(f"{way}: a server that breaks off", False)
        except websockets.ConnectionClosed as closed:
            check(f"{way}: a server that breaks off is no proper close", closed.rcvd is None, closed)
    async with connect(url + "/push", **options) as socket:
        got = [await socket.recv() for _ in range(1000)]
        check(f"{way}: 1000 pushed", got == [str(n) for n in range(1000)])

    async def one(n):
        async with connect(url, **options) as socket:
            for m in range(20):
                await socket.send(f"{n}-{m}")
                if await socket.recv() != f"{n}-{m}":
                    return False
        return True

    well = await asyncio.gather(*map(one, range(100)))
    check(f"{way}: 100 at once", all(well), well.count(False))
    loop = asyncio.get_running_loop()
    over = await loop.run_in_executor(None, lambda: eventually(lambda: isobar.metric("isobar_backend_requests_in_flight") == 0))
    check(f"{way}: nothing is left", over)


async def main():
    work = Work()
    async with serve(behave, "127.0.0.1", 0, max_size=2**24) as server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        keys = f'[[route]]\nupstream = "u"\n[upstream.u]\nbackends = ["127.0.0.1:{port}"]\n'
        isobar = await loop.run_in_executor(None, lambda: Isobar(work, keys))
        context = ssl.create_default_context(cafile=work.certificate)
        await talks(f"ws://127.0.0.1:{isobar.plain}", None, "ws", isobar)
        await talks(f"wss://localhost:{isobar.tls}", context, "wss", isobar)
        check("isobar stops well", await loop.run_in_executor(None, isobar.stop) == 0)
    done()


asyncio.run(main())
