"""socket.io over two servers, by long polling, by WebSocket, and by the one after the other; a cookie leads clients back to their server.

usage: test_socket_io.py BINARY
"""

import concurrent.futures
import json
import os
import subprocess

from harness import Isobar, Work, check, done, free_port, stop

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = Work()
PORTS = {"one": free_port(), "two": free_port()}
PROCESSES = {
    name: WORK.start(name, ["node", os.path.join(HERE, "servers", "socket_io_server.js"), str(port), name], port) for name, port in PORTS.items()
}


def keys():
    """A route for each value of the cookie, whose upstream has the other server as a backup; and one for clients without it."""
    text = '[[route]]\nupstream = "any"\n[upstream.any]\nbackends = [' + ", ".join(f'"127.0.0.1:{port}"' for port in PORTS.values()) + "]\n"
    for name, port in PORTS.items():
        other = next(there for there in PORTS.values() if there != port)
        text += (
            f'[[route]]\nheaders = {{ cookie = {{ regex = "(?:.*; ?)?node={name}(?:;.*)?" }} }}\nupstream = "{name}"\n'
            f'[upstream.{name}]\nbackends = ["127.0.0.1:{port}", {{ address = "127.0.0.1:{other}", backup = true }}]\n'
        )
    return text


def clients(url, how, cookies, count):
    run = subprocess.run(
        ["node", os.path.join(HERE, "servers", "socket_io_client.js"), url, how, json.dumps(cookies), str(count)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NODE_EXTRA_CA_CERTS": WORK.certificate},
    )
    return json.loads(run.stdout) if run.returncode == 0 else [{"error": run.stderr}]


def good(results, transport):
    wanted = {"transport": transport, "address": "127.0.0.1", "counted": 200, "drops": 0, "upgraded": True, "inOrder": True, "same": True}
    return len(results) == 8 and all(wanted.items() <= result.items() and result["name"] == result["last"] for result in results)


ISOBAR = Isobar(WORK, keys())
WAYS = [(name, site, how) for name, site in (("clear", ISOBAR.http), ("tls", ISOBAR.https)) for how in ("polling", "websocket", "both")]
with concurrent.futures.ThreadPoolExecutor() as pool:
    # At the same time, for each waits for pings.
    all_results = list(pool.map(lambda way: clients(way[1], way[2], True, 8), WAYS))
for (name, _, how), results in zip(WAYS, all_results):
    check(
        f"{name}: eight clients by {how}: their messages, pings and 1.5 MB each way",
        good(results, "polling" if how == "polling" else "websocket"),
        results,
    )
names = {result.get("name") for results in all_results for result in results}
check("both servers had some", names == set(PORTS), names)
# The cookie is what holds it together: without, the requests of a session go to both servers, and one of them has never heard of it.
results = clients(ISOBAR.http, "polling", False, 8)
check("without the cookie polling fails", any("error" in result for result in results), results)

# A server that has gone: clients that have its cookie begin anew at the other one.
stop(PROCESSES["one"], 5)
answers = [
    subprocess.run(["curl", "-sS", "-H", "cookie: a=b; node=one; c=d", ISOBAR.http + "/"], capture_output=True, text=True, timeout=20).stdout
    for _ in range(10)
]
check("the cookie of a server that is gone leads to the other one", answers == ["two"] * 10, answers)
ISOBAR.stop()
done(12)
