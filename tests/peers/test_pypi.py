"""pypiserver behind; twine and pip in front, in the clear and by TLS.

usage: test_pypi.py BINARY
"""

import base64
import hashlib
import io
import os
import subprocess
import sys
import zipfile

from harness import Isobar, Work, check, done, free_port

WORK = Work()
LARGE = os.urandom(20_000_000)


def pypiserver():
    port = free_port()
    os.mkdir(WORK.at("packages"))
    # No file of passwords, and nothing asked for: isobar's business are the bodies and the paths.
    WORK.start(
        "pypiserver",
        [
            sys.executable,
            "-m",
            "pypiserver",
            "run",
            "--port",
            str(port),
            "--interface",
            "127.0.0.1",
            "--passwords",
            ".",
            "--authenticate",
            ".",
            "--hash-algo",
            "sha256",
            WORK.at("packages"),
        ],
        port,
    )
    return port


def wheel(folder, name, version):
    """A package with a module of one line and 20 MB."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": b"answer = 42\n",
        f"{module}.bin": LARGE,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
    }
    record = (
        "".join(
            f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
            for path, data in files.items()
        )
        + f"{info}/RECORD,,\n"
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(path, data)
    os.makedirs(WORK.at(folder), exist_ok=True)
    return WORK.file(f"{folder}/{module}-{version}-py3-none-any.whl", packed.getvalue())


def python(*arguments):
    settings = {
        "HOME": WORK.path,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CERT": WORK.certificate,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "TWINE_CERT": WORK.certificate,
        "TWINE_NON_INTERACTIVE": "1",
    }
    # Of these, those that name bundles of certificates would outweigh ours.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "TWINE_")) and not key.endswith("_CA_BUNDLE")}
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=90, env=kept | settings)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def way(name, site):
    package = f"isobar-peers-{name}"
    files = [wheel(name, package, version) for version in ("1.0", "2.0+local.1")]
    up = python("twine", "upload", "--disable-progress-bar", "--repository-url", f"{site}/", "--username", "u", "--password", "p", *files)
    there = {entry: digest(WORK.at(f"packages/{entry}")) for entry in os.listdir(WORK.at("packages")) if f"_{name}-" in entry}
    check(f"{name}: twine uploads two packages of 20 MB", up.returncode == 0, up.stdout + up.stderr)
    check(f"{name}: they are there, and the same", there == {os.path.basename(file): digest(file) for file in files}, there)
    again = python("twine", "upload", "--disable-progress-bar", "--repository-url", f"{site}/", "--username", "u", "--password", "p", files[0])
    # The server says 400 to twine, as pypi.org does.
    refused = WORK.log("pypiserver").count(f"Cannot upload '{os.path.basename(files[0])}' since it already exists")
    check(f"{name}: once more is refused, by the server", again.returncode != 0 and "400 Bad Request" in again.stdout and refused == 1, again.stdout)
    # The longer form of a name is redirected to the one of the index.
    got = python("pip", "download", "--index-url", f"{site}/simple/", "--no-deps", "--dest", WORK.at(f"{name}-down"), f"{package}==2.0+local.1")
    back = WORK.at(f"{name}-down/{os.path.basename(files[1])}")
    check(f"{name}: pip downloads one, with a + in its version", got.returncode == 0 and digest(back) == digest(files[1]), got.stdout + got.stderr)
    installed = python(
        "pip", "install", "--index-url", f"{site}/simple/", "--no-deps", "--target", WORK.at(f"{name}-installed"), f"Isobar.Peers_{name}<2"
    )
    check(
        f"{name}: pip installs the other, by another spelling of its name",
        installed.returncode == 0 and digest(WORK.at(f"{name}-installed/isobar_peers_{name}.bin")) == hashlib.sha256(LARGE).hexdigest(),
        installed.stdout + installed.stderr,
    )
    missing = python("pip", "download", "--index-url", f"{site}/simple/", "--no-deps", "--dest", WORK.at("none"), f"{package}==3.0")
    check(f"{name}: what is not there is not found", missing.returncode != 0 and "No matching distribution" in missing.stderr, missing.stderr)


PORT = pypiserver()
ISOBAR = Isobar(WORK, f'[[route]]\nupstream = "pypi"\n[upstream.pypi]\nbackends = ["127.0.0.1:{PORT}"]\n')
# pip trusts addresses of loopback in the clear.
way("h1", ISOBAR.http)
way("tls", ISOBAR.https)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(16)
