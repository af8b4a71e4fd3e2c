"""sslyze looks at a listener as it is by default: Mozilla's intermediate configuration, by its own checker.

usage: test_sslyze.py BINARY
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

BINARY = os.path.abspath(sys.argv[1])
FAILED = []


def check(name, good, seen=""):
    print(f"{'ok  ' if good else 'FAIL'} {name}{'' if good else f': {seen}'}", flush=True)
    if not good:
        FAILED.append(name)


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def certificates(work):
    """An authority, and two certificates by it for the same name: one for each kind of key."""
    ca, ca_key = f"{work}/ca.pem", f"{work}/ca.key"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=authority", "-keyout", ca_key, "-out", ca,
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    with open(f"{work}/extensions", "w") as file:
        file.write("subjectAltName=DNS:test.example,DNS:localhost\nbasicConstraints=critical,CA:FALSE\n"
                   "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
                   "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    made = []
    for name, kind in [("ecdsa", ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]), ("rsa", ["-newkey", "rsa:2048"])]:
        key, request, certificate = f"{work}/{name}.key", f"{work}/{name}.csr", f"{work}/{name}.pem"
        openssl("req", *kind, "-nodes", "-subj", "/CN=test.example", "-keyout", key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-days", "60", "-sha256", "-CAcreateserial",
                "-extfile", f"{work}/extensions", "-out", certificate)
        made.append((certificate, key))
    return ca, made


def main():
    work = tempfile.mkdtemp(prefix="isobar-sslyze-")
    ca, pairs = certificates(work)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown = ", ".join(f'{{ certificate = "{certificate}", key = "{key}" }}' for certificate, key in pairs)
    with open(f"{work}/lb.toml", "w") as file:
        file.write(f'admin = {{ enabled = false }}\n[[listener]]\naddress = "127.0.0.1:{port}"\ntls = {{ certificates = [{shown}] }}\n'
                   "[[route]]\nrespond = { status = 204 }\n")
    isobar = subprocess.Popen([BINARY, "--config", f"{work}/lb.toml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        scan = subprocess.run(
            [sys.executable, "-m", "sslyze", "--mozilla_config", "intermediate", "--certinfo_ca_file", ca, "--sni", "test.example",
             f"localhost:{port}{{127.0.0.1}}"],
            capture_output=True, text=True, timeout=200,
        )
        told = scan.stdout
        verdict = told[told.find("COMPLIANCE"):]
        check("sslyze: Mozilla intermediate", re.search(r"OK - Compliant", verdict), verdict + scan.stderr)
        check("sslyze: no scan failed", "Error when running" not in told, told)
        for version in ["SSL 2.0", "SSL 3.0", "TLS 1.0", "TLS 1.1"]:
            found = re.search(rf"\* {version} Cipher Suites:\n.*?(rejected all|accepted)", told, re.S)
            check(f"sslyze: no {version}", found and found.group(1) == "rejected all", told)
        for good in ["Not vulnerable to Heartbleed", "Not vulnerable to OpenSSL CCS injection", "RSA cipher suites not supported",
                     "Compression disabled", "TLS_FALLBACK_SCSV:                 OK"]:
            check(f"sslyze: {good.split(':')[0]}", good in told, told)
    finally:
        isobar.send_signal(signal.SIGTERM)
        isobar.wait(20)
    sys.exit(1 if FAILED else 0)


main()
