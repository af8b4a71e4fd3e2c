"""Certificates that change on disk under load: new handshakes get the new one, and nobody notices."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time

from harness import Isobar, Work, check, done, eventually, in_thread, run

SWAPS = 10


def shown(port):
    """The certificate of a new handshake."""
    return ssl.get_server_certificate(("127.0.0.1", port))


def same(pem, path):
    return pem.split() == open(path).read().split()


def main():
    work = Work()
    others = [work.make_certificate(f"other{n}") for n in range(2)]
    everyone = work.file("all.pem", b"".join(open(path, "rb").read() for path in [work.certificate, *(it[0] for it in others)]))
    isobar = Isobar(work, '[[route]]\nrespond = { status = 200, body = "well" }\n')
    stop, well, bad = threading.Event(), [0], []

    def new_connections(version):
        context = ssl.create_default_context(cafile=everyone)
        context.maximum_version = version
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", isobar.tls), 10) as tcp:
                    with context.wrap_socket(tcp, server_hostname="localhost") as tls:
                        for _ in range(3):
                            tls.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                            answer = b""
                            while not answer.endswith(b"well"):
                                piece = tls.recv(4096)
                                if not piece:
                                    raise OSError("the end")
                                answer += piece
                            well[0] += 1
            except OSError as error:
                bad.append(repr(error))

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for _ in range(3):
            in_thread(new_connections, version)
    seconds = SWAPS * 2 + 4
    loads = [
        subprocess.Popen(["h2load", *protocol, "-t1", "-c10", f"-D{seconds}", "--rps=100", f"https://127.0.0.1:{isobar.tls}/"],
                         stdout=subprocess.PIPE, text=True)
        for protocol in (["--h1"], [])
    ]
    before = shown(isobar.tls)
    check("the first certificate", same(before, work.certificate))
    times = []
    for n in range(SWAPS):
        certificate, key = others[n % 2]
        # As tools for renewal do it: new files put in the place of the old ones, one after the other.
        for source, place in ((certificate, work.certificate), (key, work.key)):
            shutil.copy(source, place + ".new")
            os.rename(place + ".new", place)
            time.sleep(0.05)
        began = time.monotonic()
        check(f"swap {n + 1} is shown", eventually(lambda: same(shown(isobar.tls), certificate), 15))
        times.append(time.monotonic() - began)
        time.sleep(1)
    told = [load.communicate(timeout=60)[0] for load in loads]
    stop.set()
    for protocol, text in zip(("HTTP/1.1", "HTTP/2"), told):
        line = next((line for line in text.splitlines() if line.startswith("requests:")), "")
        check(f"kept connections by {protocol}: no error", " 0 failed, 0 errored, 0 timeout" in line and " 0 succeeded" not in line, text)
    check("new connections: no error", not bad and well[0] > 500, (well[0], len(bad), bad[:3]))
    check("within three seconds, each time", max(times) < 3, times)
    # A key that is another's.
    last = shown(isobar.tls)
    refused = isobar.metric("isobar_tls_certificates_refused_total")
    shutil.copy(others[SWAPS % 2][1], work.key + ".new")
    os.rename(work.key + ".new", work.key)
    check("a key that is another's is refused", eventually(lambda: isobar.metric("isobar_tls_certificates_refused_total") > refused))
    check("and the certificate before stays", shown(isobar.tls) == last)
    print(f"     {well[0]} requests on new connections; a new certificate was shown after {min(times):.1f} to {max(times):.1f} s", flush=True)
    isobar.stop()
    done(20)


main()
