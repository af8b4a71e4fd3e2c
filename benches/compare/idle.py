#!/usr/bin/env python3
"""What idle client connections cost isobar in memory, and whether it serves on; see README.md.

Starts an isobar and an origin, opens the connections from several addresses of the loopback network, sends one request on
each, leaves them open, asks again on a new connection and on some of the old ones, and closes them all.
"""

import argparse
import resource
import socket
import time

from harness import KINDS, REPOSITORY, Bench, Failed, Proxy, check, get, main, programs

# A client address has about 28 000 ports; these are far from that.
CONNECTIONS_PER_ADDRESS = 5_000


def ask(connection: socket.socket, port: int) -> None:
    connection.sendall(f"GET /128 HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 128:
        read = connection.recv(4096)
        if not read:
            raise Failed(f"a connection was closed instead of answered, after {answer!r}")
        answer += read
    if not answer.startswith(b"HTTP/1.1 2"):
        raise Failed(f"not answered with 2xx: {answer[:200]!r}")


def connect(number: int, port: int) -> socket.socket:
    source = f"127.0.0.{2 + number // CONNECTIONS_PER_ADDRESS}"
    connection = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def metric(proxy: Proxy, name: str) -> int:
    for line in get(proxy.metrics, proxy.kind.metrics).body.decode().splitlines():
        if line.startswith(name + "{"):
            return int(float(line.rsplit(" ", 1)[1]))
    raise Failed(f"no {name} among the metrics")


def settled(proxy: Proxy) -> int:
    """Memory once it no longer changes."""
    last = -1
    for _ in range(20):
        now = proxy.resident_bytes()
        if now == last:
            break
        last = now
        time.sleep(0.25)
    return last


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=str(REPOSITORY / "target/release/isobar"), help="the isobar to measure")
    parser.add_argument("--connections", type=int, default=10_000, help="how many (10000)")
    return parser.parse_args()


def run() -> None:
    flags = arguments()
    program = programs(["isobar"], flags.binary)["isobar"]
    with Bench() as bench:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files < flags.connections + 100:
            raise Failed(f"only {files} files may be open: ulimit -n {flags.connections + 1000}")
        bench.start_origin()
        proxy = bench.start_proxy(KINDS["isobar"], program, connections=flags.connections + 100)
        check(proxy)
        # What the first requests need for good is not a connection's.
        for number in range(64):
            with connect(number, proxy.port) as connection:
                ask(connection, proxy.port)
        before = settled(proxy)

        started = time.monotonic()
        connections = []
        for number in range(flags.connections):
            connection = connect(number, proxy.port)
            ask(connection, proxy.port)
            connections.append(connection)
        took = time.monotonic() - started
        after = settled(proxy)
        held = metric(proxy, "isobar_listener_connections")
        if held < flags.connections:
            raise Failed(f"{held} of {flags.connections} connections are open")

        cpu = proxy.cpu_seconds()
        time.sleep(2)
        cpu = (proxy.cpu_seconds() - cpu) / 2
        started = time.monotonic()
        check(proxy)
        for connection in connections[:: max(1, len(connections) // 100)]:
            ask(connection, proxy.port)
        answered = time.monotonic() - started

        for connection in connections:
            connection.close()
        deadline = time.monotonic() + 10
        while metric(proxy, "isobar_listener_connections") > 0:
            if time.monotonic() > deadline:
                raise Failed("connections that were closed are still counted after 10 s")
            time.sleep(0.1)
        closed = settled(proxy)

    print(f"{flags.connections} connections, opened with a request each in {took:.1f} s")
    print(f"resident before        {mib(before)}")
    print(f"resident with them     {mib(after)}")
    print(f"by connection          {(after - before) / flags.connections / 1024:.2f} KiB")
    print(f"resident afterwards    {mib(closed)}")
    print(f"CPU while all are idle {cpu:.2%} of a core")
    print(f"a new connection and {len(range(0, len(connections), max(1, len(connections) // 100)))} of the idle ones", end="")
    print(f" were answered in {answered * 1000:.0f} ms")


if __name__ == "__main__":
    main(run)
