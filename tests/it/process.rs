//! The binary as a process: its commands, its signals and what it exits with.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{Client, Log, PATIENCE, Scratch, TestBackend, backends, eventually, free_address, unbound};

/// A running `isobar`, killed with the test.
pub(crate) struct Process {
    child: Child,
    /// What it has said so far, on whichever of its two outputs was asked for.
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

fn isobar(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isobar"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    isobar(arguments).output().unwrap()
}

impl Process {
    /// `isobar` with that file; listens to its log.
    pub(crate) fn serving(file: &Path) -> Self {
        Self::started(&mut Self::command(file))
    }

    /// `isobar` with that file, to be given further arguments and variables before it is started.
    pub(crate) fn command(file: &Path) -> Command {
        isobar(&["--config", file.to_str().unwrap()])
    }

    /// Starts it and listens to its log.
    pub(crate) fn started(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = child.stderr.take().unwrap();
        Self::reading(child, log)
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `isobar demo` on free ports, with further arguments; listens to what it shows.
    fn demo(more: &[&str]) -> Self {
        let mut child = isobar(&[&["demo", "--port", "0", "--admin-port", "0"], more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let shown = child.stdout.take().unwrap();
        Self::reading(child, shown)
    }

    fn reading(child: Child, from: impl Read + Send + 'static) -> Self {
        let said = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, said, reader: Some(reader) }
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The address behind the first `mark`.
    async fn address(&self, mark: &str) -> SocketAddr {
        let find = || {
            let said = self.said();
            let rest = &said[said.find(mark)? + mark.len()..];
            // A line is pushed whole.
            rest.split(|c: char| c.is_whitespace() || c == '/').next()?.parse().ok()
        };
        eventually(|| find().is_some()).await;
        find().unwrap()
    }

    /// Sends a signal, by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    /// Waits for its end: its exit code, and all that it has said.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "still running after {PATIENCE:?}:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.reader.take().unwrap().join().unwrap();
        (status.code(), self.said())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn over(backend: &TestBackend) -> String {
    format!(
        r#"
        workers = 2
        [admin]
        enabled = false
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "u"
        [upstream.u]
        backends = {}
        "#,
        backends(&[backend])
    )
}

#[tokio::test]
async fn terminated_it_finishes_what_runs_and_exits_with_0() {
    for signal in ["TERM", "INT", "QUIT"] {
        let backend = TestBackend::slow("done", Duration::from_millis(300));
        let dir = Scratch::new();
        let process = Process::serving(&dir.write("lb.toml", over(&backend)));
        let mut client = Client::connect(process.address(" address=").await).await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        eventually(|| backend.requests() == 1).await;
        process.signal(signal);
        let response = client.response().await;
        assert_eq!((response.text(), response.header("connection")), ("done", Some("close")));
        client.closed().await;
        let (code, log) = process.ended().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("stopping") && log.contains("stopped"), "{log}");
    }
}

#[tokio::test]
async fn a_further_signal_ends_it_at_once() {
    for (signal, expected) in [("TERM", 143), ("INT", 130), ("QUIT", 131)] {
        let backend = TestBackend::scripted(async |peer| {
            peer.head().await;
            peer.gone().await;
        });
        let dir = Scratch::new();
        let process = Process::serving(&dir.write("lb.toml", over(&backend)));
        let address = process.address(" address=").await;
        let mut client = Client::connect(address).await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        eventually(|| backend.requests() == 1).await;
        process.signal("TERM");
        unbound(address).await;
        process.signal(signal);
        let (code, log) = process.ended().await;
        assert_eq!(code, Some(expected), "{log}");
        assert!(log.contains("second signal"), "{log}");
        client.closed().await;
    }
}

#[tokio::test]
async fn what_the_grace_cuts_is_told() {
    let backend = TestBackend::upgrading();
    let dir = Scratch::new();
    let file = dir.write("lb.toml", format!("shutdown_grace = \"200ms\"\n{}", over(&backend)));
    let process = Process::serving(&file);
    let mut client = Client::connect(process.address(" address=").await).await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 101);
    process.signal("TERM");
    client.closed().await;
    let (code, log) = process.ended().await;
    assert!(code == Some(0) && log.contains("cut=1"), "{code:?} {log}");
}

#[tokio::test]
async fn hung_up_on_it_reloads() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let dir = Scratch::new();
    let file = dir.write("lb.toml", over(&a));
    let process = Process::serving(&file);
    let mut client = Client::connect(process.address(" address=").await).await;
    assert_eq!(client.get("/").await.text(), "a");
    // Unchanged: only a signal makes another generation of it.
    process.signal("HUP");
    eventually(|| process.said().contains("generation=2")).await;
    assert_eq!(client.get("/").await.text(), "a");

    dir.write("lb.toml", over(&b));
    process.signal("HUP");
    eventually(|| process.said().contains("generation=3")).await;
    assert_eq!(client.get("/").await.text(), "b");

    dir.write("lb.toml", "nonsense");
    process.signal("HUP");
    eventually(|| process.said().contains("refused")).await;
    assert_eq!(client.get("/").await.text(), "b", "on the same connection all the time");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn signals_that_others_use_do_not_end_it() {
    let backend = TestBackend::ok("well");
    let dir = Scratch::new();
    let process = Process::serving(&dir.write("lb.toml", over(&backend)));
    let mut client = Client::connect(process.address(" address=").await).await;
    for signal in ["USR1", "ALRM", "WINCH", "PIPE", "CHLD", "CONT", "URG"] {
        process.signal(signal);
        assert_eq!(client.get("/").await.text(), "well", "after {signal}");
    }
    eventually(|| process.said().matches("does nothing here").count() == 1).await;
    assert_eq!(client.get("/").await.text(), "well");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn by_usr1_log_files_are_opened_anew_and_nothing_else_is_done() {
    let backend = TestBackend::ok("well");
    let (dir, log) = (Scratch::new(), Log::new());
    let process = Process::serving(&dir.write("lb.toml", over(&backend) + &log.table("json")));
    let mut client = Client::connect(process.address(" address=").await).await;
    client.get("/").await;
    log.lines(1).await;
    log.rotate();
    process.signal("USR1");
    eventually(|| process.said().contains("opened the access log again")).await;
    client.get("/").await;
    log.lines(1).await;
    assert!(!process.said().contains("generation"), "{}", process.said());
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

/// `isobar` with that file, whose standard error is a pipe: the reader has said where it listens, and reads no more; and the pipe is full.
fn with_full_standard_error(file: &Path) -> (Process, PipeReader, SocketAddr) {
    let (mut reader, writer) = pipe().unwrap();
    let child = isobar(&["--config", file.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(writer.try_clone().unwrap())
        .spawn()
        .unwrap();
    let (mut said, mut byte) = (String::new(), [0]);
    let address = loop {
        while byte != *b"\n" {
            reader.read_exact(&mut byte).unwrap();
            said.push(byte[0].into());
        }
        byte = [0];
        if let Some((_, rest)) = said.split_once(" address=")
            && said.contains(" started ")
        {
            break rest.split_whitespace().next().unwrap().parse().unwrap();
        }
    };
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    // That of the process is the same description: it is given back as it was.
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    for piece in [&[b'x'; 4096][..], b"x"] {
        while (&writer).write(piece).is_ok() {}
    }
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (Process { child, said: Arc::default(), reader: Some(std::thread::spawn(|| ())) }, reader, address)
}

#[tokio::test]
async fn a_standard_error_that_is_not_read_holds_nothing_up() {
    let failing = TestBackend::fixed("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    let dir = Scratch::new();
    let admin = free_address();
    let text = over(&failing).replace("enabled = false", &format!("address = \"{admin}\""));
    // With a worker that has something to log: its breaker opens.
    let file = dir.write("lb.toml", text + "\nretries = 0\ncircuit_breaker = { min_calls = 5 }\n");
    let (process, reader, address) = with_full_standard_error(&file);
    let ask = async |path: &str| {
        let mut client = Client::connect(admin).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        client.response().await.text().to_owned()
    };
    process.signal("HUP");
    loop {
        if ask("/metrics").await.contains("isobar_config_generation 2") {
            break;
        }
    }
    let mut client = Client::connect(address).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.status(), 503);
    }
    assert_eq!(ask("/livez").await, "ok\n");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
    drop(reader);
}

#[tokio::test]
async fn an_access_log_that_is_a_fifo_without_a_reader_holds_nothing_up() {
    let backend = TestBackend::ok("well");
    let dir = Scratch::new();
    let fifo = dir.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let table = format!("[access_log]\nenabled = true\noutput = {fifo:?}\n");
    let process = Process::serving(&dir.write("lb.toml", over(&backend) + &table));
    let mut client = Client::connect(process.address(" address=").await).await;
    assert_eq!(client.get("/before").await.text(), "well");
    let read = std::thread::spawn({
        let fifo = fifo.clone();
        move || {
            let mut line = String::new();
            BufReader::new(std::fs::File::open(fifo).unwrap()).read_line(&mut line).unwrap();
            line
        }
    });
    eventually(|| read.is_finished()).await;
    assert!(read.join().unwrap().contains("/before"), "what waited for a reader");
    process.signal("HUP");
    eventually(|| process.said().contains("generation=2")).await;
    assert_eq!(client.get("/after").await.text(), "well");
    process.signal("TERM");
    let (code, log) = process.ended().await;
    assert!(code == Some(0) && log.contains("a FIFO without a reader"), "{code:?} {log}");
}

/// MiB that are resident.
fn resident(process: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_large_file_leaves_no_memory_behind() {
    let backend = TestBackend::refusing();
    let dir = Scratch::new();
    let small = over(&backend);
    let process = Process::serving(&dir.write("lb.toml", &small));
    process.address(" address=").await;
    let before = resident(&process);
    let body = "x".repeat(4_000);
    let route = |n| format!("[[route]]\npath = \"/{n}\"\nrespond = {{ body = \"{body}\" }}\n");
    dir.write("lb.toml", format!("{small}\n{}", (0..1_500).map(route).collect::<String>()));
    eventually(|| process.said().contains("generation=2")).await;
    let with = resident(&process);
    assert!(with > before + 15, "{before} MiB, {with} with 6 MB of file: is the test blind?");
    dir.write("lb.toml", &small);
    eventually(|| process.said().contains("generation=3")).await;
    eventually(|| resident(&process) < before + (with - before) / 3).await;
}

#[tokio::test]
async fn exit_codes_are_as_documented() {
    let backend = TestBackend::refusing();
    let dir = Scratch::new();
    let good = dir.write("lb.toml", over(&backend));
    let bad = dir.write("bad.toml", over(&backend).replace("upstream = \"u\"", "upstream = \"w\""));
    let missing = dir.path("missing.toml");
    let [good, bad, missing] = [&good, &bad, &missing].map(|path| path.to_str().unwrap());
    for (arguments, code, says) in [
        (&["check", "--config", good][..], 0, "ok"),
        (&["check", "--config", bad], 1, "bad.toml:"),
        (&["check", "--config", missing], 1, "missing.toml"),
        (&["--config", bad], 1, "bad.toml:"),
        (&["run", "--config", missing], 1, "missing.toml"),
        (&["check", "--nonsense"], 2, "--nonsense"),
        (&["nonsense"], 2, "nonsense"),
        (&["--version"], 0, env!("CARGO_PKG_VERSION")),
        (&["--help"], 0, "Exit codes"),
        (&["healthcheck", "--admin", &backend.address().to_string()], 1, "refused"),
    ] {
        let output = output(arguments);
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(code) && said.contains(says),
            "{arguments:?}: {:?}\n{said}",
            output.status
        );
    }
}

/// What is wrong with certificates is in their files, and told with what is wrong with the configuration.
#[tokio::test]
async fn problems_of_certificate_files_are_told_with_all_others() {
    let backend = TestBackend::ok("");
    let dir = Scratch::new();
    let good = over(&backend);
    let file = dir.write("lb.toml", &good);
    let path = file.to_str().unwrap();
    let process = Process::serving(&file);
    process.address("address=").await;
    let certificate =
        "[listener.tls]\ncertificates = [{ certificate = \"gone.pem\", key = \"gone.key\" }]\n[[route]]\n";
    let of_files = good.replace("[[route]]", certificate) + "tls = { ca = \"gone-ca.pem\" }\n";
    let files = ["certificates[0].certificate", "certificates[0].key", "upstream.u.tls.ca"];
    let odd = "upstream.unused: no route uses this upstream";
    let unused = "[upstream.unused]\nbackends = [\"127.0.0.1:1\"]\n";
    for (text, others) in [
        (format!("{of_files}{unused}"), &[odd][..]),
        (format!("worker = 1\n{of_files}{unused}"), &["worker: unknown key", odd]),
    ] {
        dir.write("lb.toml", &text);
        for arguments in [&["check", "--config", path][..], &["run", "--config", path]] {
            let output = output(arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            for wrong in files.iter().chain(others) {
                assert_eq!(said.matches(wrong).count(), 1, "{wrong} after {arguments:?}: {said}");
            }
        }
        process.signal("HUP");
        let all = || files.iter().chain(others).all(|wrong| process.said().contains(wrong));
        eventually(all).await;
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_and_exits_with_1() {
    let taken = TestBackend::ok("");
    let dir = Scratch::new();
    let address = taken.address().to_string();
    let file = dir.write("lb.toml", over(&taken).replace("127.0.0.1:0", &address));
    let output = output(&["--config", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(&address), "{said}");
}

#[tokio::test]
async fn the_demo_serves_counts_and_ends_with_ctrl_c() {
    let process = Process::demo(&[]);
    let proxy = process.address("proxy     http://").await;
    let admin = process.address("look      http://").await;
    let mut client = Client::connect(proxy).await;
    for path in ["/users/1", "/weighted/users/1", "/least/users/1"] {
        let response = client.get(path).await;
        assert_eq!(response.json()["name"], "Alice", "{path}");
    }
    for _ in 0..8 {
        assert_eq!(client.get("/users/2").await.json()["name"], "Bob");
    }
    let mut asks = Client::connect(admin).await;
    asks.send("GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(asks.response().await.status(), 200);
    let said = process.said();
    let file =
        said.lines().find_map(|line| line.trim().strip_prefix("edit ")).expect("a file to edit").trim().to_owned();
    assert!(Path::new(&file).exists());

    process.signal("INT");
    let (code, said) = process.ended().await;
    assert_eq!(code, Some(0), "{said}");
    // Nine requests by turns.
    let thirds = said.lines().filter(|line| line.split_whitespace().nth(3) == Some("3") && line.contains("33.3%"));
    assert_eq!(thirds.count(), 3, "{said}");
    assert!(!Path::new(&file).exists(), "it leaves nothing behind");
}
#[tokio::test]
async fn in_the_demo_with_a_registry_services_come_and_go_and_a_user_may_join_one() {
    let process = Process::demo(&["--registry", "--registry-port", "0"]);
    let proxy = process.address("proxy     http://").await;
    let registry = process.address("registry  http://").await;
    let said = process.said();
    let body = said.lines().find_map(|line| line.trim().strip_prefix("-d '")).expect("a line of curl");
    let body = body.trim_end_matches('\'');
    let mut client = Client::connect(registry).await;
    let length = body.len();
    client
        .send(format!("PUT /v1/agent/service/register HTTP/1.1\r\nhost: r\r\ncontent-length: {length}\r\n\r\n{body}"))
        .await;
    assert_eq!(client.response().await.status(), 200);
    // The four are served.
    let mut asks = Client::connect(proxy).await;
    let mut seen = BTreeSet::new();
    for _ in 0..500 {
        let response = asks.get("/users/1").await;
        seen.extend(response.header("x-instance").map(str::to_owned));
        if seen.len() == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), ["four", "one", "three", "two"]);
    // One leaves by itself.
    eventually_without(registry, "three").await;
    process.signal("INT");
    let (code, said) = process.ended().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("; 0 requests failed") && !said.contains("asked 0 times"), "{said}");
}

/// Waits until nothing of that name is registered.
async fn eventually_without(registry: SocketAddr, name: &str) {
    let mut client = Client::connect(registry).await;
    for _ in 0..1_500 {
        let response = client.get("/v1/agent/services").await;
        if response.json().get(name).is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} stays");
}
