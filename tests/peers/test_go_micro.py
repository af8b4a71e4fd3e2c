"""Services of Go Micro, of versions 4 and 5, that register by its own plugins in a real etcd and in a real Consul: isobar finds them there.

usage: test_go_micro.py BINARY
"""

import os
import subprocess
import urllib.error
import urllib.request

from harness import RUNNING, Isobar, Work, check, done, eventually, free_port, stop

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target"))
# Where run.sh puts what it compiles, and where the servers are put.
SERVICE = os.path.join(TARGET, "peers-go-micro", "service")
WORK = Work()


def server(name):
    """The program of a registry, which its script gets."""
    got = subprocess.run(
        [os.path.join(HERE, "..", "registries", f"{name}.sh"), os.path.join(TARGET, "registries")], capture_output=True, text=True, timeout=200
    )
    check(f"{name} is there", got.returncode == 0, got.stderr)
    return got.stdout.strip()


def etcd():
    client, peer = free_port(), free_port()
    WORK.start(
        "etcd",
        [server("etcd"), "--data-dir", WORK.at("etcd-data"), "--listen-client-urls", f"http://127.0.0.1:{client}",
         "--advertise-client-urls", f"http://127.0.0.1:{client}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
         "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}"],
        client,
    )
    return client


def consul():
    http = free_port()
    # Ports that it only has for itself.
    others = [argument for name in ("server", "serf-lan", "serf-wan") for argument in (f"-{name}-port", str(free_port()))]
    WORK.start(
        "consul",
        [server("consul"), "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-http-port", str(http), "-grpc-port", "-1", "-dns-port", "-1",
         *others],
        http,
    )
    return http


def answer(name):
    try:
        with urllib.request.urlopen(f"{ISOBAR.http}/{name}/", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


PLACES = {"etcd": f"127.0.0.1:{etcd()}", "consul": f"127.0.0.1:{consul()}"}
SOURCES = {
    "etcd": lambda name: f'etcd = {{ prefix = "/micro/registry/{name}/", endpoints = ["http://{PLACES["etcd"]}"] }}',
    "consul": lambda name: f'consul = {{ service = "{name}", address = "http://{PLACES["consul"]}" }}',
}
SERVICES = {f"go-micro-{version}-{kind}": (version, kind) for version in "45" for kind in PLACES}
ISOBAR = Isobar(WORK, "".join(
    f'[[route]]\npath_prefix = "/{name}"\nstrip_prefix = true\nupstream = "{name}"\n[upstream.{name}]\n'
    f'[[upstream.{name}.discovery]]\nmax_removed_percent = 100\n{SOURCES[kind](name)}\n'
    for name, (_, kind) in SERVICES.items()
))


def start(name):
    version, kind = SERVICES[name]
    # Both versions name their messages alike, and here they are in one program.
    environment = os.environ | {"GOLANG_PROTOBUF_REGISTRATION_CONFLICT": "ignore"}
    with open(WORK.at(f"{name}.log"), "wb") as log:
        process = subprocess.Popen([SERVICE, version, kind, PLACES[kind], name, str(free_port())], stdout=log, stderr=log, env=environment)
    RUNNING.append(process)
    return process


def logs(name):
    return WORK.log(name)[-1500:] + WORK.log(ISOBAR.name)[-1500:]


processes = {}
for each in SERVICES:
    check(f"{each}: nothing is served before", answer(each)[0] == 503)
    processes[each] = start(each)
for each in SERVICES:
    check(f"{each}: is found and served", eventually(lambda each=each: answer(each) == (200, each), 20), logs(each))
# Longer than a registration counts: it is renewed.
check("all stay", not eventually(lambda: any(answer(each)[0] != 200 for each in SERVICES), 7))
for each, process in processes.items():
    stop(process)
    check(f"{each}: is gone once it has left", eventually(lambda each=each: answer(each)[0] == 503, 10), logs(each))
processes = {each: start(each) for each in SERVICES}
for each, process in processes.items():
    check(f"{each}: is found again", eventually(lambda each=each: answer(each) == (200, each), 20), logs(each))
    process.kill()
for each in SERVICES:
    # Consul keeps a check that has failed, with which it is not served; etcd forgets it with its lease.
    check(f"{each}: is gone when it has died", eventually(lambda each=each: answer(each)[0] == 503, 60), logs(each))
ISOBAR.stop()
done(22)
