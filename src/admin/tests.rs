//! The admin address over real sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;

use super::fixture::Process;
use super::*;
use crate::backend::health::{LastCheck, Thresholds};
use crate::telemetry::heartbeat::MISSED_MAX;

/// An admin address on a thread with a runtime of its own, as the supervisor has it.
pub(super) struct Running {
    address: SocketAddr,
    pub(super) process: Arc<Process>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Running {
    pub(super) fn start() -> Self {
        Self::start_with(|admin| admin)
    }

    fn start_with(change: impl FnOnce(Admin) -> Admin) -> Self {
        let process = Process::new();
        let admin = change(Admin::bind(([127, 0, 0, 1], 0).into()).unwrap());
        let address = admin.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let control = Arc::clone(&process);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // Spawned, so that it has to be `Send`.
            let serving = async move { tokio::spawn(admin.serve(control, async { drop(stopped.await) })).await };
            runtime.block_on(serving).unwrap().unwrap();
        });
        Self { address, process, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn raw(&self, request: &str) -> Reply {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_reply(stream)
    }

    fn ask(&self, method: &str, target: &str) -> Reply {
        self.raw(&format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address))
    }

    /// A request with further header lines and a body.
    pub(super) fn send(&self, method: &str, target: &str, lines: &str, body: &str) -> Reply {
        let host = self.address;
        let length = body.len();
        self.raw(&format!(
            "{method} {target} HTTP/1.1\r\nhost: {host}\r\n{lines}content-length: {length}\r\n\r\n{body}"
        ))
    }

    /// A request whose answer goes on: its head.
    pub(super) fn begin(&self, method: &str, target: &str, lines: &str) -> (TcpStream, Reply) {
        let mut stream = self.connect();
        write!(stream, "{method} {target} HTTP/1.1\r\nhost: {}\r\n{lines}\r\n", self.address).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend_from_slice(&byte);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (stream, Reply { status, head, body: String::new() })
    }

    /// A request whose answer is not read.
    pub(super) fn asked(&self, method: &str, target: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(stream, "{method} {target} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address).unwrap();
        stream
    }

    /// Whether the configuration has a token.
    pub(super) fn with_token(&self, token: bool) {
        self.process.with_token(token);
    }

    /// Whether isobar logs for the process.
    pub(super) fn with_logging(&self, logging: bool) {
        self.process.logs.store(logging, Ordering::Relaxed);
    }

    fn stop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

fn read_reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    Reply { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
}

#[test]
fn the_index_names_every_endpoint() {
    let running = Running::start();
    let index = running.ask("GET", "/");
    assert_eq!(index.status, 200);
    // Those about one thing want its name; the log is not ours to show here; and events go on.
    let plain = |line: &&str| !line.contains('{') && !["/log", "/events"].iter().any(|path| line.contains(path));
    let lines = index.body.lines().filter(|line| line.starts_with("GET") || line.starts_with("POST"));
    for line in lines.filter(plain) {
        let mut words = line.split_whitespace();
        let reply = running.ask(words.next().unwrap(), words.next().unwrap());
        assert_eq!(reply.status, 200, "{line}");
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }
}

#[test]
fn methods_and_paths_that_are_not_there() {
    let running = Running::start();
    assert_eq!(running.ask("GET", "/nothing").status, 404);
    assert_eq!(running.ask("GET", "/metrics/").status, 404);
    let reply = running.ask("POST", "/metrics");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    let reply = running.ask("GET", "/reload");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(running.process.reloads.load(Ordering::Relaxed), 0);
}

#[test]
fn head_is_get_without_the_body() {
    let running = Running::start();
    for path in ["/", "/livez", "/readyz", "/upstreams", "/config"] {
        let (get, head) = (running.ask("GET", path), running.ask("HEAD", path));
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
}

#[test]
fn readiness_follows_the_process() {
    let running = Running::start();
    assert_eq!(running.ask("GET", "/readyz").body, "ok\n");
    assert_eq!(running.ask("GET", "/readyz?verbose").body, "[+] listening\n[+] not stopping\nok\n");

    running.process.stopping.store(true, Ordering::Relaxed);
    let reply = running.ask("GET", "/readyz");
    assert_eq!((reply.status, reply.body.as_str()), (503, "not ready: the process is stopping\n"));
    assert_eq!(running.ask("GET", "/livez").status, 200);
    for _ in 0..=MISSED_MAX {
        running.process.process.pulse.ask(1);
    }
    let reply = running.ask("GET", "/livez");
    assert_eq!((reply.status, reply.body.as_str()), (503, "worker 1 has not run for 10 s\n"));
    assert!(running.ask("GET", "/metrics").body.contains("isobar_worker_unresponsive_seconds{worker=\"1\"} 10.0"));
    running.process.process.pulse.answer(1);
    assert_eq!(running.ask("GET", "/livez").status, 200);

    running.process.listening.store(false, Ordering::Relaxed);
    assert_eq!(
        running.ask("GET", "/readyz?verbose").body,
        "[-] listening: no listener accepts connections\n[-] not stopping: the process is stopping\n\
         not ready: no listener accepts connections, the process is stopping\n"
    );
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let running = Running::start();
    let ask = |lines: &str| running.send("GET", "/metrics", lines, "");
    let open = ask("accept: application/openmetrics-text; version=1.0.0\r\n");
    assert_eq!(open.status, 200);
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(open.body.contains("# TYPE isobar_config_reloads counter\n") && open.body.ends_with("# EOF\n"));
    for lines in ["", "accept: text/html, */*;q=0.8\r\n"] {
        let classic = ask(lines);
        assert!(classic.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
        assert!(classic.body.contains("# TYPE isobar_config_reloads_total counter\n"), "{}", classic.body);
        assert!(!classic.body.contains("# EOF") && !classic.body.contains("# UNIT"));
        assert_eq!(classic.header("vary"), Some("accept, accept-encoding"));
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&classic.body), samples(&open.body));
    }
}

#[test]
fn metrics_are_zipped_for_those_that_take_it() {
    let running = Running::start();
    let mut stream = running.connect();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = memchr::memmem::find(&bytes, b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[end..]).read_to_string(&mut text).unwrap();
    assert!(text.contains("isobar_build_info{") && text.len() > 4 * (bytes.len() - end));
}

#[test]
fn upstreams_show_their_backends() {
    let running = Running::start();
    let upstream = &running.process.snapshot().upstreams[0];
    let roster = upstream.roster();
    let backend = &roster.backends()[1];
    backend.state.metrics.of(0).picks.add(4);
    backend.state.metrics.of(1).responses[1].add(3);
    let view = running.ask("GET", "/upstreams").json();
    assert_eq!(view["generation"], 7);
    let users = &view["upstreams"][0];
    assert_eq!((&users["name"], &users["strategy"]), (&"users".into(), &"least_connections".into()));
    let shown = &users["backends"][1];
    assert_eq!(shown["address"], "users-2.internal@10.0.0.2:9001");
    assert_eq!((&shown["weight"], &shown["picks"], &shown["in_flight"]), (&3.into(), &4.into(), &0.into()));
    assert_eq!(shown["responses"]["2xx"], 3);
    assert_eq!((&shown["ready"], &users["backends"][2]["ready"]), (&true.into(), &false.into()));
}

#[test]
fn the_configuration_is_shown_with_what_is_wrong_with_the_last() {
    let running = Running::start();
    let view = running.ask("GET", "/config").json();
    assert_eq!(view["generation"], 7);
    assert_eq!(view["file"], "/etc/isobar/lb.toml");
    assert_eq!(view["loaded_at"], "2026-01-01T00:01:00.000Z");
    assert_eq!(view["config"]["listener"][0]["name"], "main");
    assert_eq!(view["last_error"], Value::Null);

    running.process.problems.lock().unwrap().push("lb.toml:1:1: no".into());
    let view = running.ask("GET", "/config").json();
    assert_eq!(view["last_error"]["problems"][0], "lb.toml:1:1: no");
    assert_eq!(view["last_error"]["at"], "2026-01-01T00:00:00.000Z");
}

#[test]
fn upstreams_show_what_checks_have_made_of_their_backends() {
    let running = Running::start();
    let backends = running.process.snapshot().upstreams[0].roster().backends().to_vec();
    let thresholds = Thresholds { unhealthy_after: 2, healthy_after: 1 };
    for failure in [None, Some("status 500"), Some("status 503")] {
        let took = Duration::from_micros(1_500);
        let check = LastCheck { at: super::fixture::started(), took, failure: failure.map(str::to_owned) };
        backends[0].state.health.record(check, thresholds);
    }
    let shown = &running.ask("GET", "/upstreams").json()["upstreams"][0]["backends"];
    assert_eq!((&shown[0]["readiness"], &shown[2]["readiness"]), (&"unhealthy".into(), &"no weight".into()));
    assert_eq!(
        shown[0]["health"],
        serde_json::json!({
            "verdict": "unhealthy",
            "streak": { "result": "failed", "length": 2 },
            "last_check": {
                "at": "2026-01-01T00:00:00.000Z", "took_ms": 1.5, "result": "failed", "failure": "status 503",
            },
            "checks_passed": 1,
            "checks_failed": 2,
            "changes": 1,
        })
    );
    assert_eq!((&shown[1]["health"]["streak"], &shown[1]["health"]["last_check"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_reload_says_what_changed_or_what_is_wrong() {
    let running = Running::start();
    let reply = running.ask("POST", "/reload");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["generation"], 8);
    assert_eq!(
        reply.json()["upstreams"][0],
        serde_json::json!({ "name": "users", "fate": "replaced", "changes": ["retries: 1 -> 2"] })
    );

    running.process.problems.lock().unwrap().push("lb.toml:1:1: no".into());
    let reply = running.ask("POST", "/reload");
    assert_eq!(reply.status, 422);
    assert_eq!(reply.json()["problems"][0], "lb.toml:1:1: no");
}

#[test]
fn a_reload_goes_on_without_whoever_asked_for_it() {
    let running = Running::start();
    *running.process.reload_takes.lock().unwrap() = Duration::from_millis(200);
    let mut stream = running.connect();
    stream.write_all(b"POST /reload HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    thread::sleep(Duration::from_millis(50));
    stream.shutdown(Shutdown::Both).unwrap();
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.process.reloads.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn web_pages_are_kept_out() {
    let running = Running::start();
    let cross_site = format!(
        "POST /reload HTTP/1.1\r\nhost: {}\r\norigin: http://evil.example\r\ncontent-length: 0\r\n\r\n",
        running.address
    );
    assert_eq!(running.raw(&cross_site).status, 403);
    assert_eq!(running.raw("GET /config HTTP/1.1\r\nhost: evil.example:9900\r\n\r\n").status, 403);
    assert_eq!(running.process.reloads.load(Ordering::Relaxed), 0);
}

#[test]
fn a_head_too_large_is_refused() {
    let running = Running::start();
    let head = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
    assert_eq!(running.raw(&head).status, 431);
    let head = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX + 1));
    assert_eq!(running.raw(&head).status, 431);
    assert_eq!(running.ask("GET", "/livez").status, 200);
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let running = Running::start();
    let silent: Vec<_> = (0..DescriptorPlan::ADMIN_MAX * 3).map(|_| running.connect()).collect();
    answers_at_once(&running);
    drop(silent);
}

#[test]
fn slow_heads_and_bodies_do_not_keep_others_out() {
    let running = Running::start();
    for begun in [
        "GET /livez HTTP/1.1\r\nhost: loc",
        "POST /stats/reset HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{",
    ] {
        let begin = |_| {
            let mut stream = running.connect();
            stream.write_all(begun.as_bytes()).unwrap();
            stream
        };
        let slow: Vec<_> = (0..DescriptorPlan::ADMIN_MAX * 2).map(begin).collect();
        answers_at_once(&running);
        drop(slow);
    }
}

/// A tenth of a second is what it is to take; that of a busy machine is more.
fn answers_at_once(running: &Running) {
    for path in ["/livez", "/readyz", "/metrics"] {
        let begun = Instant::now();
        assert_eq!(running.ask("GET", path).status, 200);
        assert!(begun.elapsed() < HEADER_LIMIT / 4, "{path} after {:?}", begun.elapsed());
    }
}

#[test]
fn those_that_have_asked_stay_when_others_come() {
    let running = Running::start();
    *running.process.reload_takes.lock().unwrap() = Duration::from_millis(500);
    let mut asked = running.connect();
    asked.write_all(b"POST /reload HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let (events, _) = running.begin("GET", "/events", "");
    thread::sleep(Duration::from_millis(50));
    let silent: Vec<_> = (0..DescriptorPlan::ADMIN_MAX * 2).map(|_| running.connect()).collect();
    assert_eq!(read_reply(asked).status, 200);
    events.set_nonblocking(true).unwrap();
    let mut byte = [0; 1000];
    while let Ok(read) = (&events).read(&mut byte) {
        assert_ne!(read, 0, "the listener to events was sent away");
    }
    drop(silent);
}

#[test]
fn the_socket_has_room_of_its_own() {
    let folder = std::env::temp_dir().join(format!("isobar-room-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("isobar.sock");
    let running = Running::start_with(|admin| {
        let mut admin = admin.with_socket(&path, false).unwrap();
        admin.place().unwrap();
        admin
    });
    let first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    first.set_nonblocking(true).unwrap();
    let silent: Vec<_> = (0..DescriptorPlan::ADMIN_MAX * 2).map(|_| running.connect()).collect();
    answers_at_once(&running);
    let kind = (&first).read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(kind, Err(io::ErrorKind::WouldBlock), "still there, although it was there first");
    drop((silent, running));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_stop_ends_silent_connections_and_finishes_the_others() {
    let mut running = Running::start();
    *running.process.reload_takes.lock().unwrap() = Duration::from_millis(300);
    let silent = running.connect();
    let mut busy = running.connect();
    busy.write_all(b"POST /reload HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    running.stop();
    assert!(begun.elapsed() < STOP_LIMIT);
    assert_eq!(read_reply(busy).status, 200);
    assert!(TcpStream::connect(running.address).is_err());
    drop(silent);
}
