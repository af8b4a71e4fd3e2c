"""Clients that say what they are told, whatever it is: one of HTTP/1 and one of HTTP/2."""

import dataclasses
import socket
import ssl

import h2.config
import h2.connection
import h2.events
import h2.exceptions


@dataclasses.dataclass
class Answer:
    status: int
    head: bytes = b""
    body: bytes = b""

    def came(self):
        """What came of a request that was sent to isobar."""
        if b"\r\nx-reached:" in self.head:
            return "reached"
        if self.status == 403 and self.body == b"routed":
            return "routed"
        # A backend that would rather break off than answer has been reached too.
        return "reached" if self.status == 502 else "faulty" if self.status in (500, 503, 504) else "refused"


# No answer, but a connection that ends.
NONE = Answer(0)
# No answer, and no end either.
LATE = Answer(504)


class Line:
    """A connection of HTTP/1 that says what it is told, letter by letter; another one when it has ended."""

    def __init__(self, port):
        self.port, self.socket, self.seen = port, None, b""

    def ask(self, data):
        kept = self.socket is not None
        answer = self.once(data)
        # It may have ended meanwhile.
        return self.once(data) if answer is NONE and kept else answer

    def once(self, data):
        try:
            if self.socket is None:
                self.socket = socket.create_connection(("127.0.0.1", self.port), 10)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.seen = b""
            self.socket.sendall(data)
            answer, ends = self.read()
        except TimeoutError:
            answer, ends = LATE, True
        except (OSError, EOFError):
            answer, ends = NONE, True
        if ends or self.seen:
            self.close()
        return answer

    def close(self):
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def more(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError
        self.seen += piece

    def until(self, mark):
        while mark not in self.seen:
            self.more()
        part, self.seen = self.seen.split(mark, 1)
        return part

    def exactly(self, length):
        while len(self.seen) < length:
            self.more()
        part, self.seen = self.seen[:length], self.seen[length:]
        return part

    def read(self):
        head = b"\r\n" + self.until(b"\r\n\r\n").lower() + b"\r\n"
        status = int(head.split(b" ", 2)[1][:3])
        ends = b"\r\nconnection: close" in head or head.startswith(b"\r\nhttp/1.0")
        if b"\r\ntransfer-encoding: chunked" in head:
            body = b""
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size + 2)[:-2]
            self.until(b"\r\n")
        elif b"\r\ncontent-length: " in head:
            body = self.exactly(int(head.split(b"\r\ncontent-length: ", 1)[1].split(b"\r\n", 1)[0]))
        elif status in (204, 304):
            body = b""
        else:
            ends = True
            try:
                while True:
                    self.more()
            except EOFError:
                body, self.seen = self.seen, b""
        return Answer(status, head, body), ends


class Streams:
    """A connection of HTTP/2 by TLS, some requests beside each other; another one when it has ended."""

    WIDE = 8

    def __init__(self, port):
        self.port, self.socket = port, None
        self.trust = ssl.create_default_context()
        self.trust.check_hostname, self.trust.verify_mode = False, ssl.CERT_NONE
        self.trust.set_alpn_protocols(["h2"])

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Without a name, so that any host may be asked for.
        self.socket = self.trust.wrap_socket(plain)
        config = h2.config.H2Configuration(header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
        self.speaker = h2.connection.H2Connection(config)
        self.speaker.initiate_connection()
        # So that nothing needs to be given back.
        self.speaker.increment_flow_control_window(2**30)

    def ask(self, requests):
        answers = []
        for begin in range(0, len(requests), self.WIDE):
            batch = requests[begin:begin + self.WIDE]
            found = self.batch(batch)
            # One that ends the connection leaves the others without an answer too.
            answers += [answer or self.batch([request])[0] or NONE for answer, request in zip(found, batch)]
        return answers

    def batch(self, requests):
        if self.socket is None:
            self.connect()
        streams, answers, left = {}, [None] * len(requests), len(requests)
        try:
            for number, fields in enumerate(requests):
                stream = self.speaker.get_next_available_stream_id()
                self.speaker.send_headers(stream, fields, end_stream=True)
                streams[stream] = number
            self.socket.sendall(self.speaker.data_to_send())
            while left:
                piece = self.socket.recv(65536)
                if not piece:
                    raise EOFError
                for event in self.speaker.receive_data(piece):
                    number = streams.get(getattr(event, "stream_id", None))
                    if isinstance(event, h2.events.ConnectionTerminated):
                        raise EOFError
                    if number is None:
                        continue
                    if isinstance(event, h2.events.ResponseReceived):
                        head = b"\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in event.headers)
                        answers[number] = Answer(int(dict(event.headers)[b":status"]), head)
                    elif isinstance(event, h2.events.DataReceived):
                        answers[number].body += event.data
                    elif isinstance(event, h2.events.StreamReset):
                        answers[number], left = answers[number] or NONE, left - 1
                    elif isinstance(event, h2.events.StreamEnded):
                        left -= 1
                self.socket.sendall(self.speaker.data_to_send())
        except (OSError, EOFError, h2.exceptions.ProtocolError):
            self.socket.close()
            self.socket = None
        return answers
