"""The same small site as an ASGI application, for hypercorn."""

import asyncio
import hashlib
import json

WAITING = []


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await websocket(receive, send)
        return
    path = scope["path"]

    async def begin(status=200, headers=(), **more):
        await send({"type": "http.response.start", "status": status, "headers": list(headers), **more})

    async def body(data, more=False):
        await send({"type": "http.response.body", "body": data, "more_body": more})

    if path == "/hello":
        await begin()
        await body(b"hello")
    elif path == "/large":
        await begin()
        for n in reversed(range(10)):
            await body(bytes([n]) * 1_000_000, more=True)
        await body(b"")
    elif path == "/wait":
        await begin()
        await body(b"first\n", more=True)
        go = asyncio.Event()
        WAITING.append(go)
        await go.wait()
        await body(b"last\n")
    elif path == "/release":
        count = len(WAITING)
        while WAITING:
            WAITING.pop().set()
        await begin()
        await body(b"%d" % count)
    elif path == "/hints":
        await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload; as=style"]})
        await begin()
        await body(b"with hints")
    elif path == "/trailers":
        await begin(headers=[(b"trailer", b"x-sum")], trailers=True)
        await body(b"hello")
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"5d41402a")], "more_trailers": False})
    elif path == "/refuse":
        await begin(403)
        await body(b"no")
    else:
        whole, length = hashlib.sha256(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            whole.update(message.get("body", b""))
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await begin(headers=[(b"content-type", b"application/json")])
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        await body(json.dumps({"hash": whole.hexdigest(), "length": length, "version": scope["http_version"], "method": scope["method"],
                               "headers": headers}).encode())


async def websocket(receive, send):
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            if message.get("text") == "close":
                await send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
                return
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        else:
            return
