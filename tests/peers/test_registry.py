"""Services that register in isobar's registry by unchanged client libraries: Go's, Python's and Node's of Consul, Node's of Eureka, and Spring
Boot with either starter. They are served at once, see each other, are known after a kill, and leave.

usage: test_registry.py BINARY [CLIENT...]      only these clients, by their names below
"""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from harness import BINARY, RUNNING, Isobar, Work, check, done, eventually, free_port, listens, stop

HERE = os.path.dirname(os.path.abspath(__file__))
# Where run.sh puts what it compiles.
BUILT = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target")), "peers-registry")
WORK = Work()
PORT = free_port()
REGISTRY = f"127.0.0.1:{PORT}"


def program(file):
    return os.path.join(HERE, "registry", file)


def java(starter, *options):
    jar = os.path.join(BUILT, f"users-{starter}.jar")
    # Two cores and a small heap: it has to start, no more.
    fast = ["-Xmx200m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
    return lambda name, identity, port: [
        "java", *fast, "-jar", jar, f"--identity={identity}", f"--spring.application.name={name}", f"--server.port={port}", "--server.address=127.0.0.1",
        *options,
    ]


def plain(*command):
    return lambda name, identity, port: [*command, REGISTRY, name, identity, str(port)]


CLIENTS = {
    "go": plain(os.path.join(BUILT, "go-service")),
    "python": plain(sys.executable, "-u", program("by_py_consul.py")),
    "node": plain("node", program("by_consul.js")),
    "node-eureka": plain("node", program("by_eureka_js_client.js")),
    "spring-eureka": java(
        "eureka", f"--eureka.client.service-url.defaultZone=http://{REGISTRY}/eureka/", "--eureka.instance.ip-address=127.0.0.1",
        "--eureka.instance.lease-renewal-interval-in-seconds=1", "--eureka.instance.lease-expiration-duration-in-seconds=5",
        "--eureka.client.registry-fetch-interval-seconds=1", "--eureka.client.initial-instance-info-replication-interval-seconds=1",
    ),
    "spring-consul": java(
        "consul", "--spring.cloud.consul.host=127.0.0.1", f"--spring.cloud.consul.port={PORT}", "--spring.cloud.consul.discovery.hostname=127.0.0.1",
        "--spring.cloud.consul.discovery.health-check-interval=1s",
    ),
}
ONLY = sys.argv[2:] or list(CLIENTS)


def answer(url):
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class Service:
    """A service that registers by a client library."""

    def __init__(self, client):
        self.client, self.name, self.identity, self.port = client, f"{client}-users", f"{client}-1", free_port()
        self.process = None

    def start(self):
        with open(WORK.at(f"{self.client}.log"), "wb") as log:
            self.process = subprocess.Popen(CLIENTS[self.client](self.name, self.identity, self.port), stdout=log, stderr=log)
        RUNNING.append(self.process)

    def log(self):
        return WORK.log(self.client)

    def lines(self):
        return self.log().splitlines()

    def check(self, what, good, seconds=15.0):
        held = eventually(good, seconds)
        check(f"{self.client}: {what}", held, f"{self.log()[-1500:]}\nisobar: {WORK.log(ISOBAR.name)[-500:]}")

    def is_served(self):
        return answer(f"{ISOBAR.http}/{self.name}/") == (200, self.identity)

    def passes(self):
        """Whether it is found by a look-up, as the registry has it."""
        return len(json.loads(answer(f"http://{REGISTRY}/v1/health/service/{self.name}?passing")[1])) == 1


def keys():
    routes = [
        f'[[route]]\npath_prefix = "/{client}-users"\nstrip_prefix = true\nupstream = "{client}"\n'
        f'[upstream.{client}]\n[[upstream.{client}.discovery]]\nregistry = {{ service = "{client}-users" }}\n'
        for client in CLIENTS
    ]
    return f'[registry]\naddress = "{REGISTRY}"\n' + "".join(routes)


def restart_after_a_kill(services):
    """No registration is lost, and the clients go on as if nothing had been."""
    ISOBAR.process.kill()
    ISOBAR.process.wait()
    ISOBAR.process = WORK.start(f"{ISOBAR.name}-again", [BINARY, "--config", ISOBAR.path], ISOBAR.plain, PORT)
    ISOBAR.name += "-again"
    for service in services:
        check(f"{service.client}: is served by the first request after a kill", service.is_served(), WORK.log(ISOBAR.name)[-1500:])


def go(service):
    for line in (
        "node: isobar", f"of the agent: {service.name} {service.port} go 1", f"one of the agent: {service.identity} 127.0.0.1", "check: passing ttl",
        f"health: passing {service.identity}", "in the catalog: [go v1]", f"service: {service.identity} {service.port} passing",
        f"leader: {REGISTRY}", "key: <nil> <nil>", "unknown: true",
    ):
        check(f"go: {line.split(':')[0]} is as the client reads it", line in service.lines(), service.log())
    service.check("sees itself", lambda: "passing: 1" in service.lines())
    service.process.send_signal(signal.SIGUSR1)
    service.check("is not served in maintenance", lambda: answer(f"{ISOBAR.http}/{service.name}/")[0] == 503)
    service.check("sees that", lambda: service.lines()[-2:] == ["in maintenance", "passing: 0"] or service.lines()[-2:] == ["passing: 0", "in maintenance"])
    service.process.send_signal(signal.SIGUSR2)
    service.check("is served after it", service.is_served)


def seen_by_spring(service):
    def sees():
        status, body = answer(f"http://127.0.0.1:{service.port}/seen/{service.name}")
        # By the name that the machine has, or by the address that it was told.
        return status == 200 and [uri.rsplit(":", 1)[1] for uri in json.loads(body)] == [str(service.port)]

    service.check("finds itself", sees, 30)


ISOBAR = Isobar(WORK, keys(), head=f'state_dir = "{WORK.at("state")}"')
SERVICES = {client: Service(client) for client in ONLY}
for one in SERVICES.values():
    check(f"{one.client}: nothing is served before", answer(f"{ISOBAR.http}/{one.name}/")[0] == 503)
    one.start()
for one in SERVICES.values():
    one.check("is served once it has registered", one.is_served, 90)
for client, one in SERVICES.items():
    if client.startswith("spring"):
        seen_by_spring(one)
    elif client == "go":
        go(one)
    else:
        one.check("sees itself", lambda one=one: "passing: 1" in one.lines())
for line in ("in the catalog: ['v1']", f"of the agent: {SERVICES['python'].port} isobar") if "python" in SERVICES else ():
    check(f"python: {line.split(':')[0]} is as the client reads it", line in SERVICES["python"].lines(), SERVICES["python"].log())

restart_after_a_kill(SERVICES.values())
for one in SERVICES.values():
    # Its heartbeats count: one that did not come would have expired by then.
    check(f"{one.client}: goes on", not eventually(lambda one=one: not one.is_served(), 1), one.log()[-1500:])
for one in SERVICES.values():
    check(f"{one.client}: sends heartbeats after it", eventually(one.passes, 6), one.log()[-1500:])

# One dies without a word.
if "go" in SERVICES:
    dead = SERVICES.pop("go")
    dead.process.kill()
    dead.check("is not served when its heartbeats have ceased", lambda: answer(f"{ISOBAR.http}/{dead.name}/")[0] in (502, 503) and not dead.passes())
    dead.start()
    dead.check("is served when it is back", dead.is_served)
    SERVICES["go"] = dead
for one in SERVICES.values():
    code = stop(one.process)
    check(f"{one.client}: leaves", code in (0, 143) and eventually(lambda one=one: not one.passes(), 5), (code, one.log()[-1500:]))
    check(f"{one.client}: is not served any more", eventually(lambda one=one: answer(f"{ISOBAR.http}/{one.name}/")[0] == 503, 5))
check("nothing is left", answer(f"http://{REGISTRY}/v1/agent/services") == (200, "{}"), answer(f"http://{REGISTRY}/v1/agent/services"))
check("the registry has its port for itself", listens(PORT))
ISOBAR.stop()
done(6 * len(ONLY))
