"""A service that registers by py-consul, as users have it: with a heartbeat, a query that waits for changes, and an orderly end by SIGTERM.

usage: by_py_consul.py HOST:PORT NAME ID PORT
"""

import http.server
import signal
import sys
import threading
import time

import consul

registry, name, identity, port = sys.argv[1:]
host, registry_port = registry.split(":")
client = consul.Consul(host=host, port=int(registry_port))


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(identity)))
        self.end_headers()
        self.wfile.write(identity.encode())

    def log_message(self, *_):
        pass


def heartbeats():
    while True:
        try:
            client.agent.check.ttl_pass(f"service:{identity}", "alive")
        except Exception as error:
            print("heartbeat:", error, flush=True)
        time.sleep(0.5)


def watch():
    index, seen = None, None
    while True:
        try:
            index, entries = client.health.service(name, index=index, wait="10s", passing=True)
        except Exception as error:
            print("query:", error, flush=True)
            index = None
            time.sleep(0.2)
            continue
        if len(entries) != seen:
            seen = len(entries)
            print("passing:", seen, flush=True)


def end(*_):
    client.agent.service.deregister(identity)
    print("deregistered", flush=True)
    sys.exit(0)


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
client.agent.service.register(
    name, service_id=identity, address="127.0.0.1", port=int(port), tags=["v1"], check=consul.Check.ttl("3s"), meta={"language": "python"}
)
print("registered", flush=True)
print("in the catalog:", client.catalog.services()[1].get(name), flush=True)
print("of the agent:", client.agent.services()[identity]["Port"], client.agent.self()["Config"]["NodeName"], flush=True)
for task in (heartbeats, watch):
    threading.Thread(target=task, daemon=True).start()
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
