"""Real servers behind, asked for what is protected in every spelling: none comes to it past its route. And ordinary URLs get through.

usage: test_paths.py BINARY [SERVER...]      only these servers, by their names below
"""

import os
import socket
import sys
from urllib.parse import unquote_to_bytes

import spellings
from clients import Line, Streams
from harness import Isobar, Work, check, done, free_port, in_thread
from ordinary import TARGETS

HERE = os.path.dirname(os.path.abspath(__file__))
SERVERS = os.path.join(HERE, "servers")
# Where run.sh puts what it compiles.
BUILT = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target")), "peers-servers")
WORK = Work()
RESOURCES = {"/admin": b"PROTECTED admin", "/a/b": b"PROTECTED ab", "host": b"PROTECTED host"}
SPELLINGS = {
    "/admin": spellings.of_path(["admin"], below=True),
    "/a/b": spellings.of_path(["a", "b"], below=False),
    "host": spellings.of_host("admin.test") + spellings.below_host("adm.test"),
}
RULES = ("dot_segments", "encoded_slashes", "duplicate_slashes", "backslashes")
SETTINGS = {"defaults": ""}
for rule in ("normalize", "keep"):
    SETTINGS[rule] = "paths = { " + ", ".join(f'{key} = "{rule}"' for key in RULES) + " }"


def files():
    """A site of files, for servers that serve such."""
    for name, text in {
        "index.html": "open", "open.html": "open", "admin/index.html": "PROTECTED admin", "admin/x": "PROTECTED admin", "a/b": "PROTECTED ab",
        "index.php": "<?php echo 'open';", "admin/index.php": "<?php echo 'PROTECTED admin';", "../host/index.html": "PROTECTED host",
    }.items():
        os.makedirs(os.path.dirname(WORK.at(f"files/{name}")), exist_ok=True)
        WORK.file(f"files/{name}", text)
    return WORK.at("files")


def echo():
    """A backend that answers with the head of the request as it came."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def accept():
        while True:
            in_thread(serve, listener.accept()[0])

    def serve(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seen = b""
        try:
            while piece := connection.recv(65536):
                seen += piece
                while b"\r\n\r\n" in seen:
                    head, seen = seen.split(b"\r\n\r\n", 1)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(head), head))
        except OSError:
            pass
        connection.close()

    in_thread(accept)
    return listener.getsockname()[1]


def nginx(root, echo_port):
    """By locations, with the files of `root`, and as a proxy that is no other than most."""
    located, filed, proxy = free_port(), free_port(), free_port()
    bodies = WORK.at("bodies")
    os.mkdir(bodies)
    paths = " ".join(f"{kind}_temp_path {bodies};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    says = 'default_type text/plain; return 200 "{}";'.format
    WORK.file("nginx.conf", f"""
daemon off; master_process off; pid {WORK.path}/nginx.pid; error_log stderr crit;
events {{}}
http {{
  access_log off; {paths}
  server {{
    listen 127.0.0.1:{located} default_server;
    location = /admin {{ {says("PROTECTED admin")} }}
    location /admin/ {{ {says("PROTECTED admin")} }}
    location = /a/b {{ {says("PROTECTED ab")} }}
    location / {{ {says("open")} }}
  }}
  server {{ listen 127.0.0.1:{located}; server_name admin.test *.adm.test; location / {{ {says("PROTECTED host")} }} }}
  server {{ listen 127.0.0.1:{filed}; root {root}; }}
  server {{ listen 127.0.0.1:{proxy}; location / {{ proxy_pass http://127.0.0.1:{echo_port}; }} }}
}}
""")
    WORK.start("nginx", ["nginx", "-c", WORK.at("nginx.conf"), "-e", WORK.at("nginx-early.log")], located, filed, proxy)
    return {"nginx": located, "nginx-files": filed, "nginx-proxy": proxy}


def apache(root):
    """Files and locations, as it comes and with the slashes decoded that it otherwise refuses."""
    plain, decoding = free_port(), free_port()
    modules = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in ("mpm_event", "authz_core", "dir"))
    hosts = "\n".join(f"""
<VirtualHost 127.0.0.1:{port}>
  DocumentRoot {root}
  {slashes}
  FallbackResource /open.html
  <Location "/admin">
    FallbackResource /admin/index.html
  </Location>
</VirtualHost>
<VirtualHost 127.0.0.1:{port}>
  ServerName admin.test
  ServerAlias *.adm.test
  DocumentRoot {WORK.at("host")}
  {slashes}
  FallbackResource /index.html
</VirtualHost>
""" for port, slashes in ((plain, ""), (decoding, "AllowEncodedSlashes On")))
    WORK.file("apache.conf", f"""
{modules}
ServerName open.test
PidFile {WORK.path}/apache.pid
DefaultRuntimeDir {WORK.path}
ErrorLog {WORK.path}/apache-error.log
User www-data
Group www-data
StartServers 1
Listen 127.0.0.1:{plain}
Listen 127.0.0.1:{decoding}
<Directory {WORK.path}>
  Require all granted
</Directory>
{hosts}
""")
    WORK.start("apache", ["apache2", "-f", WORK.at("apache.conf"), "-DFOREGROUND"], plain, decoding)
    return {"apache": plain, "apache-decoding": decoding}


def java():
    """Spring Boot, Tomcat and Jetty in one process."""
    ports = {name: free_port() for name in ("spring", "tomcat", "tomcat-lenient", "jetty", "jetty-lenient")}
    WORK.start("java",
        ["java", f"-Djava.io.tmpdir={WORK.path}", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-cp", f"{BUILT}/java:{BUILT}/java/*",
        "Paths",
                        *map(str, ports.values())], *ports.values())
    return ports


def others(root):
    ports = {name: free_port() for name in ("node-url", "node-files", "go-mux", "go-files", "php", "php-files", "gunicorn", "uvicorn", "werkzeug",
        "puma")}
    python = {"cwd": SERVERS}
    at = lambda name: f"127.0.0.1:{ports[name]}"
    for names, command, options in (
        (["node-url", "node-files"], ["node", "paths.js", str(ports["node-url"]), str(ports["node-files"]), root], python),
        (["go-mux", "go-files"], [f"{BUILT}/paths-go", str(ports["go-mux"]), str(ports["go-files"]), root], {}),
        (["php"], ["php", "-S", at("php"), os.path.join(SERVERS, "paths.php")], {}),
        (["php-files"], ["php", "-S", at("php-files"), "-t", root], {}),
        (["gunicorn"], [sys.executable, "-m", "gunicorn", "--bind", at("gunicorn"), "--graceful-timeout", "1", "paths:wsgi"], python),
        (["uvicorn"], [sys.executable, "-m", "uvicorn", "--port", str(ports["uvicorn"]), "--no-access-log", "paths:asgi"], python),
        (["werkzeug"], [sys.executable, "paths.py", str(ports["werkzeug"])], python),
        (["puma"], ["puma", "--quiet", "--bind", f"tcp://{at('puma')}", "--environment", "production", os.path.join(SERVERS, "paths.ru")],
        {"cwd": WORK.path}),
    ):
        WORK.start(names[0], command, *(ports[name] for name in names), **options)
    return ports


ROOT = files()
ECHO = echo()
PORTS = {"echo": ECHO} | nginx(ROOT, ECHO) | apache(ROOT) | others(ROOT) | java()
PROXY = PORTS.pop("nginx-proxy")
ROUTED = 'respond = { status = 403, body = "routed" }\n'
# Both /a/b and /a/b/, which are two to isobar and one to some.
PROTECTED = 'path_prefix = "/admin"', 'path = "/a/b"', 'path = "/a/b/"', 'hosts = ["admin.test", "*.adm.test"]'
KEYS = "".join(f"[[route]]\n{key}\n{ROUTED}" for key in PROTECTED)
for server, port in PORTS.items():
    KEYS += f"""[[route]]
headers = {{ "x-to" = "{server}" }}
upstream = "{server}"
response_headers = {{ set = {{ "x-reached" = "1" }} }}
[upstream.{server}]
backends = ["127.0.0.1:{port}"]
outlier_detection = {{ enabled = false }}
"""
    # Puma leaves a malformed request on a kept connection without an answer, and keeps it.
    KEYS += "pool = { max_idle = 0 }\n" if server == "puma" else ""
ISOBARS = {setting: Isobar(WORK, KEYS, plain=rules, secure=rules) for setting, rules in SETTINGS.items()}
# What each server has: files have no host, and to PHP all below a file is the file, which takes another route than /a/b.
SERVED = {server: [name for name in RESOURCES if name != "host" or "files" not in server] for server in PORTS if server != "echo"}
SERVED["php-files"].remove("/a/b")


def to(server):
    return b"x-to: " + server.encode()


def counted(answers):
    came = [answer.came() for answer in answers]
    told = ", ".join(f"{came.count(name)} {word}" for name, word in (("reached", "reached the server"), ("routed", "routed"), ("refused", "refused")))
    return told, came.count("faulty")


def hold(name, asked, answers):
    """None of these answers may be what is protected, and isobar must not have failed either."""
    told, faulty = counted(answers)
    passed = [spelling for spelling, answer in zip(asked, answers) if b"PROTECTED" in answer.body]
    check(f"{name}: of {len(asked)} spellings none passes by the route ({told})", not passed and not faulty,
          f"{faulty} failed; {len(passed)} came to what is protected: " + ", ".join(map(str, passed)))


def differ(server, number):
    """All spellings by HTTP/1 in all settings, some by HTTP/2, and some directly."""
    for resource in SERVED[server]:
        asked = SPELLINGS[resource]
        heads = [spelling.head(to(server)) for spelling in asked]
        for setting, isobar in ISOBARS.items():
            line = Line(isobar.plain)
            answers = [line.ask(head) for head in heads]
            line.close()
            hold(f"{server}, {resource}, {setting}", asked, answers)
            # Every server has others of them, and all together have all.
            streamed = [(spelling, fields) for spelling in asked[number % 4::4] if (fields := spelling.fields())]
            answers = Streams(isobar.tls).ask([fields + [(b"x-to", server.encode())] for _, fields in streamed])
            hold(f"{server}, {resource}, {setting}, HTTP/2", [spelling for spelling, _ in streamed], answers)
        # Otherwise it would prove nothing. What is not even HTTP is left out, as some servers would wait for the rest of it.
        direct = Line(PORTS[server])
        well_formed = [spelling for spelling in asked[::4] if spelling.fields() and spelling.is_text()]
        leads = sum(RESOURCES[resource] in direct.ask(spelling.head(b"Connection: close")).body for spelling in well_formed)
        check(f"{server}, {resource}: asked directly, {leads} of {len(well_formed)} lead there", leads >= 5, leads)


def received(answer):
    """The target, and the host, that a backend was sent."""
    line, *fields = answer.body.split(b"\r\n")
    return line.split(b" ", 1)[1].rsplit(b" ", 1)[0], next((field[6:] for field in fields if field.lower().startswith(b"host: ")), b"")


def repeat(setting, isobar):
    """What is forwarded is forwarded just so when it comes again."""
    asked = [spelling for resource in SPELLINGS.values() for spelling in resource]
    line = Line(isobar.plain)
    changed, forwarded = [], 0
    for spelling in asked:
        answer = line.ask(spelling.head(to("echo")))
        if answer.came() != "reached":
            continue
        forwarded += 1
        target, host = received(answer)
        again = line.ask(spellings.Spelling(target, (b"Host: " + host,)).head(to("echo")))
        if again.came() != "reached" or received(again) != (target, host):
            changed.append(f"{spelling} -> {target} {host} -> {received(again) if again.came() == 'reached' else again}")
    line.close()
    told = f"{len(changed)}: " + "; ".join(changed)
    check(f"{setting}: each of {forwarded} forwarded targets is forwarded as it is when it comes again", forwarded > 300 and not changed, told)


def serve(way, answers, targets=TARGETS):
    """Ordinary targets get there, and what stands behind the question mark does letter by letter."""
    unserved = [f"{target} {answer.status} {answer.body[:80]}" for target, answer in zip(targets, answers) if answer.status != 200]
    arrived = [(target, received(answer)[0]) for target, answer in zip(targets, answers) if answer.status == 200]
    same = lambda sent, got: sent.partition(b"?")[1:] == got.partition(b"?")[1:] and unquote_to_bytes(sent) == unquote_to_bytes(got)
    differs = [pair for pair in arrived if not same(*pair)]
    check(f"{way}: all of {len(targets)} ordinary targets are served", not unserved, f"{len(unserved)}: " + ", ".join(unserved))
    check(f"{way}: with the query as it was sent, and a path of the same letters", not differs, differs)


for resource, asked in SPELLINGS.items():
    check(f"{resource}: at least 300 spellings", len(asked) >= 300, len(asked))
check("at least 100 ordinary targets", len(TARGETS) >= 100, len(TARGETS))
for setting, isobar in ISOBARS.items():
    repeat(setting, isobar)
for way, port in ("nginx", PROXY), ("defaults", ISOBARS["defaults"].plain), ("keep", ISOBARS["keep"].plain):
    line = Line(port)
    serve(way, [line.ask(spellings.Spelling(target).head(to("echo"))) for target in TARGETS])
    line.close()
# The crate h2, which reads HTTP/2, resets a stream whose target has quotation marks or angle brackets in its query, angle brackets or a
# backtick in its path, or bytes that are no text. Browsers escape all of these; HTTP/1.1 passes them on.
def taken_by_http2(target):
    path, _, query = target.partition(b"?")
    try:
        target.decode()
    except UnicodeDecodeError:
        return False
    return not set(path) & set(b"<>`") and not set(query) & set(b"\"<>")


streamed = [target for target in TARGETS if taken_by_http2(target)]
answers = Streams(ISOBARS["defaults"].tls).ask([spellings.Spelling(target).fields() + [(b"x-to", b"echo")] for target in streamed])
serve("defaults, HTTP/2", answers, streamed)
for number, server in enumerate(SERVED):
    if server in sys.argv[2:] or not sys.argv[2:]:
        differ(server, number)
for isobar in ISOBARS.values():
    isobar.stop()
done(380 if len(sys.argv) == 2 else 1)
