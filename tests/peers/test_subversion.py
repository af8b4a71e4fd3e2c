"""Subversion: mod_dav_svn behind, `svn` in front, in the clear and by TLS.

usage: test_subversion.py BINARY
"""

import os
import subprocess

from apache import apache, give
from harness import Isobar, Work, check, done

WORK = Work()
LARGE = os.urandom(15_000_000)


def server():
    subprocess.run(["svnadmin", "create", WORK.at("repository")], check=True)
    give(WORK.at("repository"))
    # mod_dav_svn refuses a Destination by https, for TLS ends before it; it wants to be told.
    hashed = subprocess.run(["openssl", "passwd", "-apr1", "a password"], check=True, capture_output=True, text=True).stdout
    WORK.file("passwords", f"a-user:{hashed}")
    return apache(
        WORK,
        ["headers", "dav", "dav_svn", "auth_basic", "authn_core", "authn_file", "authz_user"],
        f"""
RequestHeader edit Destination ^https: http: early
<Location "/">
  AuthType Basic
  AuthName svn
  AuthUserFile {WORK.path}/passwords
  Require valid-user
</Location>
<Location "/svn">
  DAV svn
  SVNPath {WORK.path}/repository
  SVNAllowBulkUpdates Prefer
</Location>
<Location "/skelta">
  DAV svn
  SVNPath {WORK.path}/repository
  SVNAllowBulkUpdates Off
</Location>
""",
    )


def svn(*arguments, at=WORK.path):
    options = [
        "--non-interactive",
        "--no-auth-cache",
        "--username",
        "a-user",
        "--password",
        "a password",
        "--config-dir",
        WORK.at("svn"),
        "--config-option",
        f"servers:global:ssl-authority-files={WORK.certificate}",
    ]
    return subprocess.run(["svn", *arguments, *options], cwd=at, capture_output=True, text=True, timeout=60, env=os.environ | {"LC_ALL": "C.UTF-8"})


def content(path):
    with open(path, "rb") as file:
        return file.read()


def way(name, site):
    url = f"{site}/svn"
    made = svn("mkdir", "-m", "a folder", f"{url}/{name}", f"{url}/{name}/trunk")
    check(f"{name}: folders are made", made.returncode == 0, made.stderr)
    work = WORK.at(f"{name}-work")
    out = svn("checkout", f"{url}/{name}/trunk", work)
    check(f"{name}: a checkout", out.returncode == 0, out.stderr)
    os.mkdir(f"{work}/many")
    for n in range(200):
        WORK.file(f"{name}-work/many/{n} ü+%41", f"{n}\n" * 20)
    WORK.file(f"{name}-work/large.bin", LARGE)
    svn("add", "large.bin", "many", at=work)
    svn("propset", "a:property", "blue", "large.bin", at=work)
    commit = svn("commit", "-m", "200 small ones and 15 MB", at=work)
    check(f"{name}: a commit", commit.returncode == 0 and "Committed revision" in commit.stdout, commit.stderr)
    branch = svn("copy", "-m", "a branch", f"{url}/{name}/trunk", f"{url}/{name}/a branch ü")
    check(f"{name}: a copy on the server", branch.returncode == 0, branch.stderr)
    svn("move", "large.bin", "moved.bin", at=work)
    moved = svn("commit", "-m", "moved", at=work)
    check(f"{name}: a move", moved.returncode == 0, moved.stderr)
    # The other way to be sent a tree is a request for each file.
    for kind in ("svn", "skelta"):
        copy = WORK.at(f"{name}-{kind}")
        out = svn("checkout", f"{site}/{kind}/{name}", copy)
        same = out.returncode == 0 and content(f"{copy}/trunk/moved.bin") == LARGE == content(f"{copy}/a branch ü/large.bin")
        check(
            f"{name}: all comes back by {kind}",
            same and len(os.listdir(f"{copy}/trunk/many")) == 200 and content(f"{copy}/trunk/many/7 ü+%41") == b"7\n" * 20,
            out.stderr,
        )
    check(f"{name}: a property", svn("propget", "a:property", f"{url}/{name}/trunk/moved.bin").stdout.strip() == "blue")
    WORK.file(f"{name}-work/many/1 ü+%41", "mine\n")
    WORK.file(f"{name}-svn/trunk/many/1 ü+%41", "theirs\n")
    svn("commit", "-m", "theirs", at=f"{WORK.path}/{name}-svn/trunk")
    conflict = svn("commit", "-m", "mine", at=work)
    check(f"{name}: what is out of date is refused", conflict.returncode != 0 and "out of date" in conflict.stderr, conflict.stderr)
    locked = svn("lock", "moved.bin", at=work)
    other = svn("delete", "-m", "no", f"{url}/{name}/trunk/moved.bin")
    check(
        f"{name}: a lock keeps others out",
        locked.returncode == 0 and other.returncode != 0 and "lock token" in other.stderr,
        locked.stderr + other.stderr,
    )
    log = svn("log", "--quiet", f"{url}/{name}")
    check(f"{name}: the log has all revisions", log.stdout.count("\nr") == 5, log.stdout + log.stderr)


PORT = server()
ISOBAR = Isobar(WORK, f'[[route]]\nupstream = "svn"\n[upstream.svn]\nbackends = ["127.0.0.1:{PORT}"]\n')
way("h1", ISOBAR.http)
way("tls", ISOBAR.https)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(26)
