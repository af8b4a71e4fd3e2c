"""git over smart HTTP: `git http-backend` behind Apache, pushed to and cloned from by HTTP/1.1 in the clear and by HTTP/2 over TLS.

usage: test_git.py BINARY
"""

import concurrent.futures
import os
import subprocess

from apache import apache, give
from harness import Isobar, Work, check, done

WORK = Work()
# Nothing of the user's own settings, and no question to a terminal.
ENVIRONMENT = os.environ | {
    "HOME": WORK.path,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSL_CAINFO": WORK.certificate,
    # Apache's user owns the repositories, and this one looks into them.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@test.example",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@test.example",
}
MEGABYTE = 1 << 20


def git(*arguments, at=WORK.path, trace=None):
    environment = ENVIRONMENT | ({"GIT_TRACE_CURL": WORK.at(trace), "GIT_TRACE_CURL_NO_DATA": "1"} if trace else {})
    return subprocess.run(["git", *arguments], cwd=at, env=environment, capture_output=True, text=True, timeout=120)


def must(*arguments, **options):
    """What git says, where there is nothing to learn from a failure."""
    run = git(*arguments, **options)
    assert run.returncode == 0, (arguments, run.stderr)
    return run.stdout.strip()


def server():
    """All may read. A push needs a name and a password, which git is asked for by a 401."""
    os.mkdir(WORK.at("repositories"))
    for name in ("h1", "h2"):
        must("init", "--bare", "--initial-branch", "main", WORK.at(f"repositories/{name}.git"))
        # The time goes to what travels, not to making random bytes smaller.
        for key, value in (("http.receivepack", "true"), ("uploadpack.allowFilter", "true"), ("core.compression", "0"), ("pack.window", "0")):
            must("config", key, value, at=WORK.at(f"repositories/{name}.git"))
    give(WORK.at("repositories"))
    hashed = subprocess.run(["openssl", "passwd", "-apr1", "a pass:word"], check=True, capture_output=True, text=True).stdout
    WORK.file("passwords", f"pusher:{hashed}")
    return apache(
        WORK,
        ["cgid", "alias", "env", "setenvif", "auth_basic", "authn_core", "authn_file", "authz_user"],
        f"""
ScriptSock {WORK.path}/cgid.sock
SetEnv GIT_PROJECT_ROOT {WORK.path}/repositories
SetEnv GIT_HTTP_EXPORT_ALL 1
SetEnvIf Git-Protocol ".*" GIT_PROTOCOL=$0
ScriptAlias /git/ {EXEC_PATH}/git-http-backend/
<Directory {EXEC_PATH}>
  Require all granted
</Directory>
<LocationMatch "^/git/.*/git-receive-pack$">
  AuthType Basic
  AuthName git
  AuthUserFile {WORK.path}/passwords
  Require valid-user
</LocationMatch>
""",
    )


def history():
    """30 MB that do not get smaller, and what there are many of; in names that need escapes too."""
    must("init", "--initial-branch", "main", "origin")
    must("config", "core.compression", "0", at=WORK.at("origin"))
    origin = WORK.at("origin")
    for turn in range(3):
        WORK.file(f"origin/large {turn} ü.bin", os.urandom(10 * MEGABYTE))
        os.makedirs(f"{origin}/small/{turn}")
        for n in range(150):
            WORK.file(f"origin/small/{turn}/{n}", f"{turn} {n}\n" * 50)
        must("add", ".", at=origin)
        must("commit", "-m", f"turn {turn}", at=origin)
    must("branch", "feature/ü+x", at=origin)
    must("tag", "-a", "v1.0", "-m", "first", at=origin)
    return origin


def heads(site, *flags):
    """The branches and tags that a server has, each with what it is at."""
    return sorted(line for line in must(*flags, "ls-remote", site).splitlines() if not line.endswith("\tHEAD"))


def spoken(trace):
    """The versions that the server answered in, as curl tells."""
    with open(WORK.at(trace), encoding="utf-8", errors="replace") as file:
        return {line.split("header: HTTP/")[1].split()[0] for line in file if "Recv header: HTTP/" in line}


def way(name, site, version):
    """All that one does with a server, by one version of HTTP."""
    flags = ["-c", f"http.version={version}"]
    expected = {"HTTP/1.1": "1.1", "HTTP/2": "2"}[version]
    url = f"{site}/git/{name}.git"
    with_password = url.replace("://", "://pusher:a%20pass%3Aword@")
    origin = WORK.at("origin")
    sent = ["rev-parse", "main", "feature/ü+x", "v1.0"]
    push = git(*flags, "push", url, "main", at=origin)
    check(f"{name}: a push without a password is refused", push.returncode != 0 and heads(url, *flags) == [], push.stderr)
    push = git(*flags, "push", with_password, "main", "feature/ü+x", "v1.0", at=origin, trace=f"{name}.push")
    check(f"{name}: a push of 30 MB of unknown length", push.returncode == 0, push.stderr)
    check(f"{name}: it was by {version}", spoken(f"{name}.push") == {expected}, spoken(f"{name}.push"))
    there = must("rev-parse", *sent[1:], at=WORK.at(f"repositories/{name}.git"))
    check(f"{name}: the server has what was pushed", there == must(*sent, at=origin) and there.count("\n") == 2, there)
    check(f"{name}: and says so", len(heads(url, *flags)) == 4, heads(url, *flags))

    clone = git(*flags, "clone", url, f"{name}-clone", trace=f"{name}.clone")
    check(f"{name}: a clone of 30 MB", clone.returncode == 0, clone.stderr)
    copy = WORK.at(f"{name}-clone")
    check(f"{name}: it was by {version}", spoken(f"{name}.clone") == {expected}, spoken(f"{name}.clone"))
    same = must("rev-parse", "HEAD^{tree}", at=copy) == must("rev-parse", "main^{tree}", at=origin)
    whole = git("fsck", "--full", "--strict", at=copy)
    check(f"{name}: it is whole and the same", same and whole.returncode == 0 and must("status", "--porcelain", at=copy) == "", whole.stderr)

    # A body of known length, which is above what curl would send in one piece; and several at a time.
    WORK.file(f"{name}-clone/more.bin", os.urandom(12 * MEGABYTE))
    must("add", ".", at=copy)
    must("commit", "-m", "more", at=copy)
    push = git(*flags, "-c", f"http.postBuffer={40 * MEGABYTE}", "push", with_password, "main", at=copy)
    check(
        f"{name}: a push of 12 MB of known length",
        push.returncode == 0 and must("rev-parse", "main", at=WORK.at(f"repositories/{name}.git")) == must("rev-parse", "HEAD", at=copy),
        push.stderr,
    )
    push = git(*flags, "push", with_password, "main^^:main", at=copy)
    check(f"{name}: what would lose a commit is refused", push.returncode != 0 and "rejected" in push.stderr, push.stderr)
    fetch = git(*flags, "fetch", url, "main:refs/fetched", at=origin)
    check(
        f"{name}: a fetch of what is new",
        fetch.returncode == 0 and must("rev-parse", "refs/fetched", at=origin) == must("rev-parse", "HEAD", at=copy),
        fetch.stderr,
    )
    must("update-ref", "-d", "refs/fetched", at=origin)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda n: git(*flags, "clone", "--bare", "--depth", "1", url, f"{name}-shallow-{n}"), range(4)))
    tips = [must("rev-parse", "HEAD", at=WORK.at(f"{name}-shallow-{n}")) for n in range(4) if runs[n].returncode == 0]
    check(f"{name}: four shallow clones at a time", tips == [must("rev-parse", "HEAD", at=copy)] * 4, [run.stderr for run in runs])
    partial = git(*flags, "clone", "--filter=blob:none", "--no-checkout", url, f"{name}-partial")
    size = int(must("count-objects", "-v", at=WORK.at(f"{name}-partial")).split("size-pack: ")[1].split()[0])
    check(f"{name}: a clone without files", partial.returncode == 0 and size < 1000, (partial.stderr, size))
    delete = git(*flags, "push", with_password, ":feature/ü+x", at=copy)
    check(f"{name}: a branch is deleted", delete.returncode == 0 and len(heads(url, *flags)) == 3, delete.stderr)


EXEC_PATH = must("--exec-path")
PORT = server()
history()
ISOBAR = Isobar(WORK, f'[[route]]\nupstream = "git"\n[upstream.git]\nbackends = ["127.0.0.1:{PORT}"]\n')
way("h1", ISOBAR.http, "HTTP/1.1")
way("h2", ISOBAR.https, "HTTP/2")
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(32)
