//! One process takes over from another: nothing is refused, nothing is lost, and what fails changes nothing.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::harness::{Client, PATIENCE, Scratch, TestBackend, backends, eventually, take_port, unbound};
use crate::process::Process;

/// A file with addresses of its own, which one process after the other serves.
struct Served {
    dir: Scratch,
    address: SocketAddr,
    admin: SocketAddr,
    answers: TestBackend,
    tunnels: TestBackend,
    _ports: [socket2::Socket; 2],
}

impl Served {
    fn new() -> Self {
        let ((one, address), (two, admin)) = (take_port(), take_port());
        let (answers, tunnels) = (TestBackend::ok("well"), TestBackend::upgrading());
        Self { dir: Scratch::new(), address, admin, answers, tunnels, _ports: [one, two] }
    }

    /// Writes the file with these keys at its top.
    fn write(&self, keys: &str) -> PathBuf {
        let Self { address, admin, .. } = self;
        let (answers, tunnels) = (backends(&[&self.answers]), backends(&[&self.tunnels]));
        let text = format!(
            "{keys}\n[admin]\naddress = \"{admin}\"\nunix_socket = \"{}\"\n[[listener]]\naddress = \"{address}\"\n\
             [[route]]\nupstream = \"u\"\n[[route]]\npath = \"/tunnel\"\nupstream = \"t\"\n\
             [upstream.u]\nbackends = {answers}\n[upstream.t]\nbackends = {tunnels}\n",
            self.dir.path("admin.sock").display()
        );
        self.dir.write("lb.toml", text)
    }

    fn replacing(file: &Path) -> Process {
        Process::started(Process::command(file).arg("--replace"))
    }

    async fn ready(&self) -> u16 {
        let mut client = Client::connect(self.admin).await;
        client.send("GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        client.response().await.status()
    }
}

/// A tunnel through the proxy whose backend sends back what it gets.
async fn tunnel(address: SocketAddr) -> Client {
    let mut client = Client::connect(address).await;
    client.send("GET /tunnel HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.status(), 101, "{response:?}");
    client
}

async fn echoes(tunnel: &mut Client) {
    tunnel.send("ping").await;
    assert_eq!(tunnel.exact(4).await, b"ping");
}

/// Requests of clients that each connect anew, which notices every moment in which nothing listens.
#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
}

impl Load {
    const CLIENTS: usize = 6;

    fn start(address: SocketAddr) -> (Arc<Self>, JoinSet<()>) {
        let load = Arc::<Self>::default();
        let mut clients = JoinSet::new();
        for _ in 0..Self::CLIENTS {
            let load = Arc::clone(&load);
            clients.spawn(async move {
                while !load.stop.load(SeqCst) {
                    match timeout(PATIENCE, ask(address)).await {
                        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => {
                            load.answered.fetch_add(1, SeqCst);
                        }
                        other => load.failed.lock().unwrap().push(format!("{other:?}")),
                    }
                    sleep(Duration::from_millis(15)).await;
                }
            });
        }
        (load, clients)
    }

    async fn end(self: Arc<Self>, mut clients: JoinSet<()>) {
        self.stop.store(true, SeqCst);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{} answered, {} failed: {:?}", self.answered.load(SeqCst), failed.len(), failed[0]);
    }

    async fn more(&self, requests: usize) {
        let goal = self.answered.load(SeqCst) + requests;
        eventually(|| self.answered.load(SeqCst) >= goal || !self.failed.lock().unwrap().is_empty()).await;
    }
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_under_load_nothing_is_refused_and_tunnels_live() {
    let served = Served::new();
    let mut process = Process::serving(&served.write("workers = 3\nshutdown_grace = \"3s\""));
    eventually(|| process.said().contains(" address=")).await;
    let (load, clients) = Load::start(served.address);
    // Fewer workers than before, and more.
    for workers in [1, 4] {
        let mut tunnels = Vec::new();
        for _ in 0..3 {
            tunnels.push(tunnel(served.address).await);
        }
        load.more(40).await;
        let file = served.write(&format!("workers = {workers}\nshutdown_grace = \"3s\""));
        let next = Served::replacing(&file);
        eventually(|| next.said().contains("took over")).await;
        let replaced = Instant::now();
        assert_eq!(served.ready().await, 200, "the admin address is the new one's");
        load.more(100).await;
        for tunnel in &mut tunnels {
            echoes(tunnel).await;
        }
        let (code, log) = process.ended().await;
        assert!(code == Some(0) && log.contains("cut=3"), "{code:?} {log}");
        assert!(replaced.elapsed() > Duration::from_millis(2500), "tunnels live until the grace is over: {log}");
        for tunnel in &mut tunnels {
            tunnel.closed().await;
        }
        process = next;
    }
    load.end(clients).await;
    assert_eq!(served.ready().await, 200);
    assert!(served.dir.path("admin.sock").exists(), "the socket is that of the process which runs");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
    assert!(!served.dir.path("admin.sock").exists());
}

/// Clients that ask all the time on connections that are kept, until an answer says that it is the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_on_kept_connections_lose_nothing() {
    let served = Served::new();
    let file = served.write("workers = 2");
    let mut process = Process::serving(&file);
    eventually(|| process.said().contains(" address=")).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (stop, answered, address) = (Arc::clone(&stop), Arc::clone(&answered), served.address);
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            while !stop.load(SeqCst) {
                let response = client.get("/").await;
                assert_eq!(response.status(), 200);
                answered.fetch_add(1, SeqCst);
                if response.header("connection") == Some("close") {
                    client = Client::connect(address).await;
                }
            }
        });
    }
    for _ in 0..4 {
        let goal = answered.load(SeqCst) + 400;
        eventually(|| answered.load(SeqCst) >= goal).await;
        let next = Served::replacing(&file);
        assert_eq!(process.ended().await.0, Some(0));
        process = next;
    }
    stop.store(true, SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no connection ends but behind an answer that says so");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigusr2_starts_the_next_process() {
    let served = Served::new();
    let process = Process::serving(&served.write("workers = 2"));
    eventually(|| process.said().contains(" address=")).await;
    let (load, clients) = Load::start(served.address);
    load.more(20).await;
    process.signal("USR2");
    eventually(|| process.said().contains("another process has taken over")).await;
    // Both write to the same log.
    let said = process.said();
    let pid = said.split("started a process that is to take over pid=").nth(1).expect(&said);
    let pid: String = pid.chars().take_while(char::is_ascii_digit).collect();
    load.more(60).await;
    load.end(clients).await;
    assert_eq!(served.ready().await, 200);
    let kill = std::process::Command::new("kill").args(["-TERM", &pid]).status();
    assert!(kill.unwrap().success(), "{said}");
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
    unbound(served.address).await;
}

#[tokio::test]
async fn beside_one_that_drains_the_next_starts_at_once() {
    let served = Served::new();
    let file = served.write("workers = 2");
    let process = Process::serving(&file);
    eventually(|| process.said().contains(" address=")).await;
    let mut open = tunnel(served.address).await;
    process.signal("TERM");
    unbound(served.address).await;
    assert_eq!(served.ready().await, 503, "it tells that it stops, as long as no other process wants the address");
    let next = Process::serving(&file);
    eventually(|| next.said().contains("took over")).await;
    assert_eq!(served.ready().await, 200);
    assert!(ask(served.address).await.unwrap().starts_with("HTTP/1.1 200"));
    echoes(&mut open).await;
    open.finish().await;
    assert_eq!(process.ended().await.0, Some(0));
    assert_eq!(served.ready().await, 200);
    next.signal("TERM");
    assert_eq!(next.ended().await.0, Some(0));
}

#[tokio::test]
async fn without_being_asked_to_it_does_not_replace_one_that_serves() {
    let served = Served::new();
    let file = served.write("workers = 1");
    let process = Process::serving(&file);
    eventually(|| process.said().contains(" address=")).await;
    let (code, log) = Process::serving(&file).ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("--replace") && log.contains(&format!("pid={}", process.pid())), "{log}");
    assert_eq!(served.ready().await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_process_that_fails_changes_nothing() {
    let served = Served::new();
    let good = served.write("workers = 2");
    let process = Process::serving(&good);
    eventually(|| process.said().contains(" address=")).await;
    let (load, clients) = Load::start(served.address);
    let taken = TestBackend::ok("");
    for (keys, says) in [
        ("nonsense = 1", "nonsense"),
        ("access_log = { enabled = true, output = \"/nowhere/log\" }", "access log"),
        (&*format!("[[listener]]\naddress = \"{}\"\nname = \"taken\"", taken.address()), "could not listen"),
    ] {
        let file = match keys.starts_with("[[") {
            true => served.dir.write("lb.toml", format!("{}{keys}\n", std::fs::read_to_string(&good).unwrap())),
            false => served.write(keys),
        };
        let (code, log) = Served::replacing(&file).ended().await;
        assert!(code == Some(1) && log.contains(says), "{code:?} {log}");
        served.write("workers = 2");
        load.more(20).await;
    }
    load.end(clients).await;
    assert_eq!(served.ready().await, 200);
    // And it can be replaced still.
    let next = Served::replacing(&good);
    eventually(|| next.said().contains("took over")).await;
    assert_eq!(process.ended().await.0, Some(0));
    drop(next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_serves_on_for_the_delay() {
    let served = Served::new();
    let process = Process::serving(&served.write("workers = 2\nshutdown_delay = \"2s\""));
    eventually(|| process.said().contains(" address=")).await;
    let (load, clients) = Load::start(served.address);
    let start = Instant::now();
    process.signal("TERM");
    eventually(|| process.said().contains("shutdown_delay")).await;
    assert_eq!(served.ready().await, 503);
    while start.elapsed() < Duration::from_millis(1700) {
        load.more(5).await;
    }
    load.end(clients).await;
    assert_eq!(process.ended().await.0, Some(0));
    assert!(start.elapsed() > Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_one_ends_the_delay() {
    let served = Served::new();
    let file = served.write("workers = 2\nshutdown_delay = \"60s\"");
    let process = Process::serving(&file);
    eventually(|| process.said().contains(" address=")).await;
    let (load, clients) = Load::start(served.address);
    load.more(10).await;
    process.signal("TERM");
    eventually(|| process.said().contains("shutdown_delay")).await;
    let next = Process::serving(&file);
    assert_eq!(process.ended().await.0, Some(0));
    load.more(30).await;
    load.end(clients).await;
    assert_eq!(served.ready().await, 200);
    drop(next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_wider_in_the_next_process_refuses_no_connection() {
    let served = Served::new();
    let process = Process::serving(&served.write("workers = 2"));
    eventually(|| process.said().contains(" address=")).await;
    let (load, clients) = Load::start(served.address);
    load.more(20).await;
    let file = served.write("workers = 2");
    let text = std::fs::read_to_string(&file).unwrap();
    let wide = format!("\n[[listener]]\naddress = \"0.0.0.0:{}\"", served.address.port());
    std::fs::write(&file, text.replace(&format!("\n[[listener]]\naddress = \"{}\"", served.address), &wide)).unwrap();
    // The file is followed by the process that runs, too: either may be the first.
    let next = Served::replacing(&file);
    assert_eq!(process.ended().await.0, Some(0));
    load.more(40).await;
    load.end(clients).await;
    assert!(next.said().contains("address=0.0.0.0:"), "{}", next.said());
    // Those on the narrower address are not let go: connections may be on their way to them.
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let narrow = format!("0100007F:{:04X} 00000000:0000 0A", served.address.port());
    assert_eq!(table.lines().filter(|line| line.contains(&narrow)).count(), 2, "{table}");
}

/// A link leads to the version that is to run: SIGUSR2 follows it anew.
#[tokio::test]
async fn sigusr2_starts_what_the_link_leads_to_now() {
    let served = Served::new();
    let file = served.write("workers = 1");
    let link = served.dir.path("isobar");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_isobar"), &link).unwrap();
    let mut command = std::process::Command::new(&link);
    let process = Process::started(command.args(["--config", file.to_str().unwrap()]));
    eventually(|| process.said().contains(" address=")).await;
    let other = served.dir.write("other", "#!/bin/sh\necho another version: \"$@\" >&2\n");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    process.signal("USR2");
    eventually(|| process.said().contains("another version: --config")).await;
    eventually(|| process.said().contains("has ended; this one serves on")).await;
    assert!(process.said().contains("lb.toml --replace"), "{}", process.said());
    assert_eq!(served.ready().await, 200);
}

#[tokio::test]
async fn systemd_is_told() {
    let served = Served::new();
    let file = served.write("workers = 1");
    let path = served.dir.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut text = [0; 200];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    let process = Process::started(Process::command(&file).env("NOTIFY_SOCKET", &path));
    assert_eq!(told(), "READY=1");
    let next = Process::started(Process::command(&file).arg("--replace").env("NOTIFY_SOCKET", &path));
    assert_eq!([told(), told()], [format!("MAINPID={}", next.pid()), "READY=1".into()]);
    assert_eq!(process.ended().await.0, Some(0));
}
