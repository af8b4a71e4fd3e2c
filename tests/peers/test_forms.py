"""Forms with large files, sent to Django (by gunicorn) and PHP: fields, files, cookies, and the scheme and host that they build links from.

usage: test_forms.py BINARY
"""

import hashlib
import json
import os
import subprocess
import sys

import requests

from harness import Isobar, Work, check, done, free_port

SERVERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "servers")
WORK = Work()
LARGE = os.urandom(20_000_000)
SMALL = b"--\r\n--boundary--\r\n" * 100
FIELDS = {"name": "Ü & =", "empty": "", "long": "x" * 100_000}
NAME = "a file ü.bin"


def servers():
    django, php = free_port(), free_port()
    WORK.start(
        "django",
        [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{django}", "--threads", "4", "--graceful-timeout", "1", "forms:application"],
        django,
        cwd=SERVERS,
    )
    WORK.start(
        "php",
        [
            "php",
            "-d",
            "upload_max_filesize=100M",
            "-d",
            "post_max_size=100M",
            "-d",
            "memory_limit=256M",
            "-S",
            f"127.0.0.1:{php}",
            os.path.join(SERVERS, "forms.php"),
        ],
        php,
        env=os.environ | {"PHP_CLI_SERVER_WORKERS": "4"},
    )
    return {"django": django, "php": php}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def django(name, site):
    """As a browser does it: the token comes as a cookie, and goes back as that and as a field."""
    session = requests.Session()
    session.verify, session.trust_env = WORK.certificate, False
    url = f"{site}/django/form"
    token = session.get(url, timeout=30).text
    told = {"csrfmiddlewaretoken": token} | FIELDS
    headers = {"origin": site, "referer": url}
    files = [("files", (NAME, LARGE)), ("files", ("small", SMALL))]
    answer = session.post(url, data=told, files=files, headers=headers, timeout=30)
    check(f"{name}: Django takes the form", answer.status_code == 200, answer.text[:500])
    got = answer.json() if answer.status_code == 200 else {}
    check(f"{name}: Django has all fields", got.get("fields") == told, str(got)[:300])
    check(
        f"{name}: Django has all files",
        got.get("files", {}).get("files") == [{"name": NAME, "hash": digest(LARGE)}, {"name": "small", "hash": digest(SMALL)}],
        got.get("files"),
    )
    check(
        f"{name}: Django knows by which scheme and host it was asked",
        (got.get("here"), got.get("secure")) == (url, site.startswith("https")),
        got.get("here"),
    )
    stranger = session.post(url, data=told, headers={"origin": "https://evil.example", "referer": "https://evil.example/"}, timeout=30)
    check(f"{name}: a form from another site is refused", stranger.status_code == 403, stranger)
    # A redirect to an absolute address leads back to isobar.
    moved = session.get(f"{site}/django/moved", timeout=30)
    check(f"{name}: a redirect of Django's leads back here", moved.status_code == 200 and moved.url == url, moved.url)


def php(name, site):
    upload = WORK.file(NAME, LARGE)
    flags = ["--http1.1"] if site.startswith("http:") else ["--http2", "--cacert", WORK.certificate]
    command = [
        "curl",
        "-sS",
        *flags,
        "-b",
        "a=1; b=%C3%BC",
        "-F",
        f"large=@{upload}",
        "-F",
        "empty=@/dev/null;filename=empty",
        "-F",
        "name=Ü & =",
        "-F",
        "list[]=1",
        "-F",
        "list[]=2",
        f"{site}/php/form.php",
    ]
    for way, more in (("of known length", []), ("in chunks", ["-H", "transfer-encoding: chunked"])):
        run = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
        try:
            got = json.loads(run.stdout)
        except ValueError:
            got = {}
        check(
            f"{name}: PHP has all of a form {way}",
            got
            == {
                "fields": {"name": "Ü & =", "list": ["1", "2"]},
                "cookies": {"a": "1", "b": "ü"},
                "files": {"large": {"name": NAME, "error": 0, "hash": digest(LARGE)}, "empty": {"name": "empty", "error": 0, "hash": digest(b"")}},
            },
            run.stdout[:500] + run.stderr,
        )
    got = subprocess.run(
        ["curl", "-sS", *flags, "-G", "--data-urlencode", "q=a b&c", "-d", "x[y]=1", f"{site}/php/form.php"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    check(
        f"{name}: PHP has the query and the scheme",
        json.loads(got.stdout) == {"query": {"q": "a b&c", "x": {"y": "1"}}, "scheme": site.split(":")[0]},
        got.stdout,
    )


PORTS = servers()
ISOBAR = Isobar(
    WORK,
    "".join(
        f'[[route]]\npath_prefix = "/{name}"\nupstream = "{name}"\n[upstream.{name}]\nbackends = ["127.0.0.1:{port}"]\n'
        for name, port in PORTS.items()
    ),
)
for kind, address in (("h1", ISOBAR.http), ("tls", ISOBAR.https)):
    django(kind, address)
    php(kind, address)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(22)
