"""Jupyter: files by its interface, a kernel by WebSocket, and a terminal; in the clear and by TLS.

usage: test_jupyter.py BINARY
"""

import asyncio
import base64
import hashlib
import json
import os
import ssl
import sys
import uuid

import requests
import websockets
from websockets.asyncio.client import connect

from harness import Isobar, Work, check, done, free_port

WORK = Work()
LARGE = os.urandom(12_000_000)
TOKEN = "a-token-of-the-test"
TRUST = ssl.create_default_context(cafile=WORK.certificate)


def jupyter():
    port = free_port()
    os.mkdir(WORK.at("notebooks"))
    own = {
        "HOME": WORK.path,
        "JUPYTER_CONFIG_DIR": WORK.at("config"),
        "JUPYTER_DATA_DIR": WORK.at("data"),
        "JUPYTER_RUNTIME_DIR": WORK.at("runtime"),
        "IPYTHONDIR": WORK.at("ipython"),
        "SHELL": "/bin/sh",
    }
    WORK.start(
        "jupyter",
        [
            sys.executable,
            "-m",
            "jupyter_server",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--ip=127.0.0.1",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={WORK.at('notebooks')}",
        ],
        port,
        env=os.environ | own,
    )
    return port


def session_of(site):
    session = requests.Session()
    session.verify, session.trust_env = WORK.certificate, False
    session.headers["authorization"] = f"token {TOKEN}"
    return session


def files(name, site):
    session, url = session_of(site), f"{site}/api/contents/{name}%20%C3%BC.bin"
    model = {"type": "file", "format": "base64", "content": base64.b64encode(LARGE).decode()}
    put = session.put(url, json=model, timeout=30)
    check(f"{name}: a file of 12 MB is saved, as 16 MB of JSON", put.status_code == 201 and put.json()["size"] == len(LARGE), put.text[:300])
    got = session.get(url, params={"format": "base64"}, timeout=30).json()
    check(f"{name}: and is the same", base64.b64decode(got["content"]) == LARGE)
    down = session.get(f"{site}/files/{name}%20%C3%BC.bin", headers={"range": "bytes=100-199"}, timeout=30)
    check(f"{name}: a range of it", down.status_code == 206 and down.content == LARGE[100:200], down.status_code)
    wrong = requests.get(f"{site}/api/contents", headers={"authorization": "token wrong"}, verify=WORK.certificate, timeout=30)
    check(f"{name}: a wrong token is refused", wrong.status_code == 403, wrong)


def code(text):
    message = {"msg_id": uuid.uuid4().hex, "session": "s", "username": "", "version": "5.3", "msg_type": "execute_request"}
    content = {"code": text, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    return json.dumps({"header": message, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []})


async def output(socket):
    """What a run has written, until the kernel is idle again, and its error if there was one."""
    text, error = "", None
    while True:
        message = json.loads(await asyncio.wait_for(socket.recv(), 30))
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        elif message["msg_type"] == "error":
            error = message["content"]["ename"]
        elif (
            message["msg_type"] == "status"
            and message["content"]["execution_state"] == "idle"
            and message["parent_header"].get("msg_type") == "execute_request"
        ):
            return text, error


async def kernel(name, site):
    session = session_of(site)
    started = await asyncio.to_thread(session.post, f"{site}/api/kernels", json={"name": "python3"}, timeout=30)
    check(f"{name}: a kernel starts", started.status_code == 201, started.text)
    which = started.json()["id"]
    options = {"max_size": None, "proxy": None, "origin": site, "ssl": TRUST if site.startswith("https") else None}
    channels = f"{site.replace('http', 'ws', 1)}/api/kernels/{which}/channels"
    async with connect(f"{channels}?token={TOKEN}", **options) as socket:
        await socket.send(code("print(6 * 7)"))
        check(f"{name}: it answers", await output(socket) == ("42\n", None))
        await socket.send(code("for n in range(2000): print(n, flush=True)"))
        text, _ = await output(socket)
        check(f"{name}: 2000 lines in order", text.split() == [str(n) for n in range(2000)], text[:100])
        large = "x" * 3_000_000
        await socket.send(code(f"import hashlib; print(hashlib.sha256({large!r}.encode()).hexdigest())"))
        text, _ = await output(socket)
        check(f"{name}: a cell of 3 MB", text.strip() == hashlib.sha256(large.encode()).hexdigest(), text[:100])
        await socket.send(code("import time\nprint('begun', flush=True)\ntime.sleep(60)"))
        while json.loads(await asyncio.wait_for(socket.recv(), 30))["msg_type"] != "stream":
            pass
        stopped = await asyncio.to_thread(session.post, f"{site}/api/kernels/{which}/interrupt", timeout=30)
        check(f"{name}: a run is interrupted from beside", stopped.status_code == 204 and (await output(socket))[1] == "KeyboardInterrupt")
    gone = await asyncio.to_thread(session.delete, f"{site}/api/kernels/{which}", timeout=30)
    check(f"{name}: the kernel ends", gone.status_code == 204, gone)
    for what, more in (("another site", {"origin": "https://evil.example"}), ("a client without a token", {})):
        try:
            async with connect(channels if "origin" not in more else f"{channels}?token={TOKEN}", **(options | more)):
                refused = 101
        except websockets.InvalidStatus as error:
            refused = error.response.status_code
        check(f"{name}: {what} gets no WebSocket", refused in (403, 404), refused)


async def terminal(name, site):
    session = session_of(site)
    made = (await asyncio.to_thread(session.post, f"{site}/api/terminals", timeout=30)).json()["name"]
    options = {"proxy": None, "origin": site, "ssl": TRUST if site.startswith("https") else None}
    async with connect(f"{site.replace('http', 'ws', 1)}/terminals/websocket/{made}?token={TOKEN}", **options) as socket:
        await socket.send(json.dumps(["stdin", "echo $((6 * 7000))\r"]))
        seen = ""
        while "42000" not in seen:
            kind, *data = json.loads(await asyncio.wait_for(socket.recv(), 20))
            seen += data[0] if kind == "stdout" else ""
        check(f"{name}: a terminal", "42000" in seen)
    await asyncio.to_thread(session.delete, f"{site}/api/terminals/{made}", timeout=30)


PORT = jupyter()
ISOBAR = Isobar(WORK, f'[[route]]\nupstream = "jupyter"\n[upstream.jupyter]\nbackends = ["127.0.0.1:{PORT}"]\n')
for kind, address in (("h1", ISOBAR.http), ("tls", ISOBAR.https)):
    files(kind, address)
    asyncio.run(kernel(kind, address))
    asyncio.run(terminal(kind, address))
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(30)
