"""npm and Verdaccio: a scoped package, which has an encoded slash in its path, is published, looked at and installed.

usage: test_npm.py BINARY
"""

import base64
import hashlib
import json
import os
import re
import subprocess

from harness import Isobar, Work, check, done, free_port

WORK = Work()
PORT = free_port()
# npm sends a package as base64 inside of JSON: 12 MB come to 16.
LARGE = os.urandom(12_000_000)


def verdaccio():
    """A registry of its own, which asks no other one."""
    WORK.file(
        "verdaccio.yaml",
        f"""
storage: {WORK.path}/storage
auth: {{ htpasswd: {{ file: {WORK.path}/htpasswd }} }}
packages: {{ '@*/*': {{ access: $all, publish: $authenticated }}, '**': {{ access: $all, publish: $authenticated }} }}
max_body_size: 100mb
log: {{ type: stdout, format: json, level: http }}
""",
    )
    # Verdaccio is found where node looks for modules.
    program = subprocess.run(["node", "-p", "require.resolve('verdaccio/bin/verdaccio')"], capture_output=True, text=True, timeout=60)
    assert program.returncode == 0, program.stderr
    WORK.start(
        "verdaccio", ["node", program.stdout.strip(), "--config", WORK.at("verdaccio.yaml"), "--listen", f"127.0.0.1:{PORT}"], PORT, cwd=WORK.path
    )


def npm(site, *arguments, at):
    """npm as it comes, with a registry and a token for it."""
    settings = {
        "cafile": WORK.certificate,
        "cache": f"{at}-cache",
        "update_notifier": "false",
        "fund": "false",
        "audit": "false",
        "fetch_retries": "0",
    }
    environment = {"PATH": os.environ["PATH"], "HOME": WORK.path} | {f"npm_config_{key}": value for key, value in settings.items()}
    return subprocess.run(["npm", *arguments, "--registry", site + "/"], cwd=at, env=environment, capture_output=True, text=True, timeout=120)


def package(folder, name, version, files):
    os.makedirs(WORK.at(folder), exist_ok=True)
    for file, content in files.items():
        WORK.file(f"{folder}/{file}", content)
    WORK.file(f"{folder}/package.json", json.dumps({"name": name, "version": version, "main": "index.js"}))
    return WORK.at(folder)


def seen(method, part):
    """The targets that Verdaccio has got with a method and a word in them, as it logs them."""
    lines = (json.loads(line) for line in WORK.log("verdaccio").splitlines() if line.startswith("{"))
    requests = (line["request"] for line in lines if isinstance(line.get("request"), dict))
    return [request["url"] for request in requests if request["method"] == method and part in request["url"]]


def way(name, site):
    scoped, plain = f"@scope-{name}/a.package", f"plain-{name}"
    user = {"name": f"user-{name}", "password": "a long password"}
    curl = subprocess.run(
        [
            "curl",
            "-sS",
            "--cacert",
            WORK.certificate,
            "-X",
            "PUT",
            "-H",
            "content-type: application/json",
            "-d",
            json.dumps(user),
            f"{site}/-/user/org.couchdb.user:{user['name']}",
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    token = json.loads(curl.stdout).get("token")
    check(f"{name}: a user is made", bool(token), curl.stdout + curl.stderr)
    folder = package(
        f"{name}-scoped",
        scoped,
        "1.0.0",
        {"index.js": "module.exports = require('fs').statSync(__dirname + '/large.bin').size\n", "large.bin": LARGE},
    )
    publish = npm(site, "publish", "--access", "public", at=folder)
    check(
        f"{name}: without a token nothing is published",
        publish.returncode != 0 and ("ENEEDAUTH" in publish.stderr or "E401" in publish.stderr),
        publish.stderr,
    )
    # In a file of the package's own, which npm reads and leaves out of the archive.
    host = site.split("//")[1]
    login = f"//{host}/:_authToken={token}\n"
    WORK.file(f"{name}-scoped/.npmrc", login)
    publish = npm(site, "publish", "--access", "public", at=folder)
    check(f"{name}: a scoped package of 16 MB is published", publish.returncode == 0, publish.stderr)
    check(
        f"{name}: the slash in its name came encoded",
        set(seen("PUT", f"@scope-{name}")) == {f"/@scope-{name}%2Fa.package"},
        seen("PUT", f"@scope-{name}"),
    )
    again = npm(site, "publish", "--access", "public", at=folder)
    check(
        f"{name}: the same version once more is refused",
        again.returncode != 0 and re.search("E409|EPUBLISHCONFLICT|previously published|E403", again.stderr),
        again.stderr,
    )
    second = package(f"{name}-plain", plain, "2.1.0-rc.1+build.5", {"index.js": "module.exports = 'plain'\n"})
    WORK.file(f"{name}-plain/.npmrc", login)
    check(f"{name}: a package without a scope is published", npm(site, "publish", "--tag", "next", at=second).returncode == 0)

    view = npm(site, "view", scoped, "dist", "--json", at=folder)
    told = json.loads(view.stdout or "{}")
    tarball = told.get("tarball", "")
    check(
        f"{name}: the address of its archive leads back through isobar",
        tarball.startswith(f"{site}/@scope-{name}/a.package/-/"),
        view.stdout + view.stderr,
    )
    direct = subprocess.run(["curl", "-sS", "--cacert", WORK.certificate, "-r", "100-1099", tarball], capture_output=True, timeout=30).stdout
    whole = subprocess.run(["curl", "-sS", "--cacert", WORK.certificate, tarball], capture_output=True, timeout=30).stdout
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(whole).digest()).decode()
    check(f"{name}: the archive has the hash that npm noted", integrity == told.get("integrity"), (len(whole), told))
    check(f"{name}: a range is a part of it, or all", direct in (whole[100:1100], whole), len(direct))

    os.mkdir(WORK.at(f"{name}-user"))
    user = WORK.at(f"{name}-user")
    install = npm(site, "install", scoped, f"{plain}@next", at=user)
    check(f"{name}: both are installed", install.returncode == 0, install.stderr)
    with open(f"{user}/node_modules/{scoped}/large.bin", "rb") as file:
        check(f"{name}: the file is the same", file.read() == LARGE)
    run = subprocess.run(["node", "-p", f"require('{scoped}') + require('{plain}')"], cwd=user, capture_output=True, text=True, timeout=30)
    check(f"{name}: and they run", run.stdout.strip() == f"{len(LARGE)}plain", run.stdout + run.stderr)
    tags = npm(site, "dist-tag", "add", f"{scoped}@1.0.0", "ok", at=folder)
    check(f"{name}: a tag is set", tags.returncode == 0 and "ok: 1.0.0" in npm(site, "dist-tag", "ls", scoped, at=folder).stdout, tags.stderr)
    gone = npm(site, "view", f"@scope-{name}/nothing", at=folder)
    check(f"{name}: what is not there is 404", gone.returncode != 0 and "E404" in gone.stderr, gone.stderr)


verdaccio()
ISOBAR = Isobar(WORK, f'[[route]]\nupstream = "npm"\n[upstream.npm]\nbackends = ["127.0.0.1:{PORT}"]\n')
way("h1", ISOBAR.http)
way("tls", ISOBAR.https)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(32)
