"""WebDAV: cadaver, webdav4 and litmus in front; Apache's mod_dav and WsgiDAV behind, in the clear and by TLS.

usage: test_webdav.py BINARY
"""

import io
import os
import re
import ssl
import subprocess
import sys
import xml.etree.ElementTree

import httpx
import webdav4.client

from apache import apache, give
from harness import Isobar, Work, check, done, free_port

WORK = Work()
LARGE = os.urandom(25_000_000)
TRUST = ssl.create_default_context(cafile=WORK.certificate)


def mod_dav():
    os.mkdir(WORK.at("dav"))
    give(WORK.at("dav"))
    os.mkdir(WORK.at("locks"))
    give(WORK.at("locks"))
    # TLS ends before it, so https in a Destination is as good as http; it wants to be told.
    return apache(
        WORK,
        ["headers", "dav", "dav_fs", "alias", "dir"],
        f"""
DocumentRoot {WORK.path}/dav
DavLockDB {WORK.path}/locks/db
RequestHeader edit Destination ^https: http: early
<Directory {WORK.path}/dav>
  Dav On
  Require all granted
  DirectorySlash Off
</Directory>
""",
    )


def wsgidav():
    port = free_port()
    os.mkdir(WORK.at("wsgidav"))
    WORK.file(
        "wsgidav.yaml",
        f"""
host: 127.0.0.1
port: {port}
server: cheroot
provider_mapping: {{ '/': '{WORK.path}/wsgidav' }}
simple_dc: {{ user_mapping: {{ '*': true }} }}
lock_storage: true
property_manager: true
logging: {{ enable: true }}
""",
    )
    WORK.start("wsgidav", [sys.executable, "-m", "wsgidav.server.server_cli", "--config", WORK.at("wsgidav.yaml")], port)
    return port


def cadaver(name, port):
    """A session of the old client, which locks what it writes to; it speaks HTTP/1.1 in the clear."""
    WORK.file("to send.bin", LARGE)
    folder = WORK.at(f"{name}-cadaver")
    os.mkdir(folder)
    orders = f"""
mkcol folder
mkcol "with space ü"
cd folder
put "{WORK.path}/to send.bin" large.bin
lock large.bin
discover large.bin
put "{WORK.path}/to send.bin" large.bin
unlock large.bin
copy large.bin "../with space ü/copy.bin"
move large.bin moved.bin
propset moved.bin colour blue
propget moved.bin colour
ls
get moved.bin {folder}/moved.bin
get "../with space ü/copy.bin" {folder}/copy.bin
delete moved.bin
cd ..
rmcol folder
get folder/moved.bin {folder}/none
quit
"""
    run = subprocess.run(
        ["cadaver", f"http://127.0.0.1:{port}/{name}/"],
        input=orders,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HOME": WORK.path, "LC_ALL": "C.UTF-8", "TERM": "dumb"},
    )
    said = run.stdout
    for what, words in {
        "folders are made": ["Creating `folder': succeeded", "Creating `with space ü': succeeded"],
        "a lock is had and given back": ["Locking `large.bin': succeeded", "Unlocking `large.bin': succeeded"],
        "a copy and a move": ["Copying", "Moving"],
        "a property is set and seen": ["Value of colour is: blue"],
        "what is deleted is gone": ["Deleting `moved.bin': succeeded", "Deleting collection `folder': succeeded"],
    }.items():
        check(f"{name}: cadaver: {what}", all(word in said for word in words), said)
    check(f"{name}: cadaver: one thing fails, that which is not there", said.count("failed:") == 1 and "404 Not Found" in said, said)
    for file in ("moved.bin", "copy.bin"):
        got = b""
        if os.path.exists(f"{folder}/{file}"):
            with open(f"{folder}/{file}", "rb") as opened:
                got = opened.read()
        check(f"{name}: cadaver: 25 MB come back by {file}", got == LARGE, (len(got), said))


def litmus(name, port):
    """A suite for servers of WebDAV. In the clear, for it knows no certificate but those of authorities that the system trusts."""
    run = subprocess.run(["litmus", "--keep-going", f"http://127.0.0.1:{port}/{name}/"], cwd=WORK.path, capture_output=True, text=True, timeout=60)
    suites = re.findall(r"summary for `(\w+)': of (\d+) tests run: (\d+) passed, 0 failed", run.stdout)
    passed = {suite: int(tests) for suite, tests, good in suites if tests == good}
    whole = set(passed) == {"basic", "copymove", "props", "locks", "http"} and sum(passed.values()) > 100
    check(f"{name}: litmus passes whole", whole, run.stdout + run.stderr)


def library(name, site):
    way = f"{name}: {site.split(':')[0]}"
    http = httpx.Client(verify=TRUST, timeout=30, http2=site.startswith("https"))
    base = f"{site}/{name}"
    client = webdav4.client.Client(base, http_client=http)
    folder = f"{site.split(':')[0]} ü+"
    client.mkdir(folder)
    client.upload_fileobj(io.BytesIO(LARGE), f"{folder}/large.bin", chunk_size=1 << 20)
    check(f"{way}: 25 MB are put", client.content_length(f"{folder}/large.bin") == len(LARGE))
    check(f"{way}: it is listed", [entry["name"] for entry in client.ls(folder)] == [f"{folder}/large.bin"], client.ls(folder))
    client.move(f"{folder}/large.bin", f"{folder}/moved ü+&=.bin")
    got = io.BytesIO()
    client.download_fileobj(f"{folder}/moved ü+&=.bin", got)
    check(f"{way}: a move, with a name that needs escapes", got.getvalue() == LARGE and not client.exists(f"{folder}/large.bin"), len(got.getvalue()))
    client.copy(folder, f"{folder} copy")
    check(f"{way}: a copy of a folder", client.exists(f"{folder} copy/moved ü+&=.bin"))
    locked = f"{base}/locked-{site.split(':')[0]}"
    http.put(locked, content=b"first")
    body = '<?xml version="1.0"?><lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype><owner>me</owner></lockinfo>'
    answer = http.request("LOCK", locked, content=body, headers={"timeout": "Second-600", "depth": "0", "content-type": "application/xml"})
    token = answer.headers.get("lock-token", "")
    check(f"{way}: a lock", answer.status_code == 200 and token.startswith("<opaquelocktoken:"), answer)
    refused = http.put(locked, content=b"second").status_code
    held = http.put(locked, content=b"third", headers={"if": f"({token})"}).status_code
    check(
        f"{way}: it keeps others out, and its owner not",
        refused == 423 and held in (200, 204) and http.get(locked).content == b"third",
        (refused, held),
    )
    moved = http.request("MOVE", locked, headers={"destination": f"{locked}-elsewhere", "overwrite": "F"}).status_code
    check(f"{way}: nor is it moved away", moved == 423, moved)
    freed = http.request("UNLOCK", locked, headers={"lock-token": token}).status_code
    check(f"{way}: until it is given back", freed == 204 and http.put(locked, content=b"fourth").status_code in (200, 204), freed)
    found = http.request("PROPFIND", base + "/", headers={"depth": "1"})
    tree = xml.etree.ElementTree.fromstring(found.content)
    check(f"{way}: PROPFIND", found.status_code == 207 and len(tree.findall("{DAV:}response")) >= 4, found.text[:500])
    options = http.options(base + "/")
    check(
        f"{way}: OPTIONS says what the server can",
        "2" in options.headers.get("dav", "") and "LOCK" in options.headers.get("allow", ""),
        options.headers,
    )
    if name == "wsgidav":
        # It compares with what isobar says of host and scheme; mod_dav does not look at the host.
        elsewhere = http.request("MOVE", locked, headers={"destination": f"http://other.example/{name}/x"}).status_code
        check(f"{way}: nothing is moved to another host", elsewhere == 502, elsewhere)


PORTS = {"mod_dav": mod_dav(), "wsgidav": wsgidav()}
for server, place in (("mod_dav", "dav"), ("wsgidav", "wsgidav")):
    # Each server sees its own name in the path, for a Destination has the path that the client knows.
    os.mkdir(WORK.at(f"{place}/{server}"))
give(WORK.at("dav"))
KEYS = "".join(
    f'[[route]]\npath_prefix = "/{name}"\nupstream = "{name}"\n[upstream.{name}]\nbackends = ["127.0.0.1:{port}"]\n' for name, port in PORTS.items()
)
ISOBAR = Isobar(WORK, KEYS)
for name in PORTS:
    cadaver(name, ISOBAR.plain)
    litmus(name, ISOBAR.plain)
    library(name, ISOBAR.http)
    library(name, ISOBAR.https)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(64)
