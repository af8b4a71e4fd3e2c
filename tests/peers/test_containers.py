"""Images pushed to and pulled from Debian's docker-registry, by skopeo and, where there is a daemon, by docker; and docker's own interface.

The daemon is the machine's, or where none answers, and root runs this, one of the script's own; where that cannot be either, it says so.
usage: test_containers.py BINARY
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading

from harness import Isobar, Work, check, done, eventually, free_port, in_thread

WORK = Work()
RANDOM = os.urandom(30_000_000)
SOCKET = "/var/run/docker.sock"


def registry():
    port = free_port()
    WORK.file(
        "registry.yaml",
        f"""
version: 0.1
storage: {{ filesystem: {{ rootdirectory: {WORK.path}/registry }}, delete: {{ enabled: true }} }}
http: {{ addr: '127.0.0.1:{port}' }}
""",
    )
    WORK.start("registry", ["docker-registry", "serve", WORK.at("registry.yaml")], port)
    return port


def layer():
    """A file of 30 MB that does not get smaller, and busybox, which is all that runs in the container."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data, mode in (("large.bin", RANDOM, 0o644), ("bin/busybox", open("/bin/busybox", "rb").read(), 0o755)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def image(plain):
    """The layout of an OCI image in a folder."""
    os.makedirs(WORK.at("image/blobs/sha256"))

    def blob(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        WORK.file(f"image/blobs/sha256/{digest}", data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "size": len(data), "digest": f"sha256:{digest}"}

    packed = blob(gzip.compress(plain, 1), "layer.v1.tar+gzip")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "sleep", "600"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
    }
    config = blob(json.dumps(config).encode(), "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [packed]}
    manifest = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    WORK.file("image/oci-layout", '{"imageLayoutVersion": "1.0.0"}')
    WORK.file("image/index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return manifest["digest"], packed["digest"]


def skopeo(*arguments):
    return subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, timeout=90, env=os.environ | {"HOME": WORK.path}
    )


def pushed(name, host, flags):
    """An image there, looked at, and back again."""
    verify = f"{name}/an-image"
    push = skopeo("copy", *(f"--dest-{flag}" for flag in flags), f"oci:{WORK.at('image')}", f"docker://{host}/{verify}:1.0")
    check(f"{name}: skopeo pushes 30 MB", push.returncode == 0, push.stderr)
    look = skopeo("inspect", "--raw", *(f"--{flag}" for flag in flags), f"docker://{host}/{verify}:1.0")
    check(f"{name}: the manifest is the same", "sha256:" + hashlib.sha256(look.stdout.encode()).hexdigest() == MANIFEST, look.stdout + look.stderr)
    pull = skopeo("copy", *(f"--src-{flag}" for flag in flags), f"docker://{host}/{verify}@{MANIFEST}", f"oci:{WORK.at(name + '-back')}:1.0")
    back = WORK.at(f"{name}-back/blobs/sha256/{LAYER.split(':')[1]}")
    same = os.path.exists(back) and "sha256:" + hashlib.sha256(open(back, "rb").read()).hexdigest() == LAYER
    check(f"{name}: skopeo pulls the same by its digest", pull.returncode == 0 and same, pull.stderr)
    again = skopeo(
        "copy",
        *(f"--{side}-{flag}" for side in ("src", "dest") for flag in flags),
        f"docker://{host}/{verify}:1.0",
        f"docker://{host}/{name}/other/name:2",
    )
    tags = skopeo("list-tags", *flags_of(flags), f"docker://{host}/{name}/other/name")
    check(f"{name}: under another name", again.returncode == 0 and '"2"' in tags.stdout, again.stderr + tags.stderr)
    gone = skopeo("delete", *flags_of(flags), f"docker://{host}/{name}/other/name:2")
    look = skopeo("inspect", *flags_of(flags), f"docker://{host}/{name}/other/name:2")
    check(f"{name}: and deleted there", gone.returncode == 0 and look.returncode != 0 and "unknown" in look.stderr, gone.stderr + look.stderr)


def flags_of(flags):
    return [f"--{flag}" for flag in flags]


def answers(where):
    return subprocess.run(["docker", "-H", f"unix://{where}", "version"], capture_output=True).returncode == 0


def daemon():
    """Where a daemon listens, or why there is none."""
    if not shutil.which("docker"):
        return None, "no docker command"
    if os.path.exists(SOCKET) and answers(SOCKET):
        return SOCKET, ""
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        return None, "no daemon answers, and only root could start one"
    own = WORK.at("docker.sock")
    try:
        WORK.start(
            "dockerd",
            [
                "dockerd",
                "--host",
                f"unix://{own}",
                "--data-root",
                WORK.at("docker"),
                "--exec-root",
                WORK.at("docker-run"),
                "--pidfile",
                WORK.at("docker.pid"),
                "--bridge",
                "none",
                "--iptables=false",
                "--ip6tables=false",
                "--storage-driver",
                "vfs",
            ],
        )
    except FileNotFoundError as error:
        return None, str(error)
    return (
        (own, "")
        if eventually(lambda: answers(own), 20)
        else (None, "no daemon answers, and one of our own does not start: " + WORK.log("dockerd")[-300:])
    )


def relay(path):
    """A port that leads to a Unix socket. Each half of a connection ends by itself, as `docker exec` needs it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def both(client):
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()

    def accept():
        while True:
            in_thread(both, listener.accept()[0])

    in_thread(accept)
    return listener.getsockname()[1]


def docker(*arguments, **options):
    """The daemon by way of isobar."""
    environment = os.environ | {"DOCKER_HOST": f"tcp://127.0.0.1:{ISOBAR.plain}", "HOME": WORK.path}
    environment.pop("DOCKER_CONTEXT", None)
    return subprocess.run(["docker", *arguments], capture_output=True, timeout=90, env=environment, **options)


def driven():
    """What `docker` does by HTTP that is not plain requests: raw streams both ways over an upgraded connection."""
    name = f"isobar-peers-{os.getpid()}"
    registered = f"localhost:{ISOBAR.plain}/h1/an-image:1.0"
    version = docker("version", "--format", "{{.Server.Version}}")
    check(f"docker {version.stdout.decode().strip()} answers", version.returncode == 0, version.stderr)
    # The daemon asks isobar itself for the image, which is what skopeo has pushed.
    pull = docker("pull", registered)
    check("docker pulls what skopeo has pushed", pull.returncode == 0 and MANIFEST.encode() in pull.stdout, pull.stdout[-500:] + pull.stderr)
    tagged = f"localhost:{ISOBAR.plain}/by-docker/image:1"
    loaded = docker("import", "-", tagged, input=tar_of({"new.bin": RANDOM[:15_000_000]}))
    check("docker imports 15 MB from its standard input", loaded.returncode == 0, loaded.stderr)
    push = docker("push", tagged)
    check("docker pushes it", push.returncode == 0 and b"digest: sha256:" in push.stdout, push.stdout[-500:] + push.stderr)
    run = docker("run", "--detach", "--network", "none", "--name", name, registered)
    try:
        check("a container runs", run.returncode == 0, run.stderr)
        cat = docker("exec", "--interactive", name, "/bin/busybox", "cat", input=RANDOM)
        check("docker exec with 30 MB of standard input, which ends, gives them back", cat.stdout == RANDOM, (len(cat.stdout), cat.stderr))
        digest = docker("exec", "--interactive", name, "/bin/busybox", "sha256sum", input=RANDOM)
        check("and the whole arrives where the answer comes last", digest.stdout.split()[:1] == [hashlib.sha256(RANDOM).hexdigest().encode()], digest)
        both = docker("exec", name, "/bin/busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
        check("both outputs and the exit code come back", (both.stdout, both.stderr, both.returncode) == (b"out\n", b"err\n", 7), both)
        copied = docker("cp", f"{name}:/large.bin", "-")
        check("docker cp brings a file of 30 MB", RANDOM in copied.stdout, (len(copied.stdout), copied.stderr))
        follow = subprocess.Popen(
            ["docker", "-H", f"tcp://127.0.0.1:{ISOBAR.plain}", "events", "--filter", f"container={name}", "--format", "{{.Action}}"],
            stdout=subprocess.PIPE,
        )
        seen = []
        in_thread(lambda: seen.extend(iter(follow.stdout.readline, b"")))
        live = eventually(lambda: docker("exec", name, "/bin/busybox", "true").returncode == 0 and any(b"exec_die" in line for line in seen), 15)
        check("events come while they happen", live, seen)
        follow.kill()
        follow.wait()
    finally:
        docker("rm", "--force", name)
        docker("rmi", registered, tagged)


def tar_of(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


PORT = registry()
MANIFEST, LAYER = image(layer())
DAEMON, WHY = daemon()
# The registry has /v2; everything else is the daemon's.
KEYS = f'[[route]]\npath_prefix = "/v2"\nupstream = "registry"\n[upstream.registry]\nbackends = ["127.0.0.1:{PORT}"]\n'
if DAEMON:
    KEYS += f'[[route]]\nupstream = "docker"\n[upstream.docker]\nbackends = ["127.0.0.1:{relay(DAEMON)}"]\n'
ISOBAR = Isobar(WORK, KEYS)
os.mkdir(WORK.at("trusted"))
shutil.copy(WORK.certificate, WORK.at("trusted/ca.crt"))
pushed("h1", f"127.0.0.1:{ISOBAR.plain}", ["tls-verify=false"])
pushed("h2", f"localhost:{ISOBAR.tls}", [f"cert-dir={WORK.at('trusted')}"])
if DAEMON:
    driven()
else:
    print(f"skipped: docker itself: {WHY}", flush=True)
check("no attempt broke", ISOBAR.metric("isobar_backend_broken_total") == 0)
ISOBAR.stop()
done(24 if DAEMON else 14)
