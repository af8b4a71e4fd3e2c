//! With few file descriptors a client that is accepted is served, other clients wait, and no backend is blamed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::harness::{Client, Scratch, TestBackend, eventually, free_address, soon};

/// The binary, with limits of its own. Killed with the test.
struct Process {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    _scratch: Scratch,
}

impl Process {
    /// Started by a shell that has set `limits` first.
    async fn start(limits: &str, upstream: &str, backends: &[&TestBackend]) -> Self {
        let scratch = Scratch::new();
        let (address, admin) = (free_address(), free_address());
        let backends: Vec<_> = backends.iter().map(|it| it.address().to_string()).collect();
        let text = format!(
            "workers = 2\n[admin]\naddress = \"{admin}\"\n[[listener]]\naddress = \"{address}\"\n[[route]]\nupstream = \"u\"\n\
             [upstream.u]\nbackends = {backends:?}\n{upstream}\n"
        );
        let file = scratch.write("lb.toml", text);
        let log = scratch.path("log");
        let child = Command::new("sh")
            .args(["-c", &format!("{limits}; exec \"$0\" run --config \"$1\" 2>\"$2\""), env!("CARGO_BIN_EXE_isobar")])
            .args([&file, &log])
            .env("NO_COLOR", "1")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, address, admin, log, _scratch: scratch };
        eventually(|| {
            let there = [admin, address].iter().all(|it| std::net::TcpStream::connect(it).is_ok());
            assert!(there || !process.log().contains("error"), "{}", process.log());
            there
        })
        .await;
        process
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn asks(&self, target: &str) -> String {
        let mut client = Client::connect(self.admin).await;
        client.send(format!("GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin)).await;
        String::from_utf8_lossy(&client.read_to_end().await).into_owned()
    }

    /// The sum of a metric over its series.
    async fn metric(&self, name: &str) -> f64 {
        let text = self.asks("/metrics").await;
        let series = text.lines().filter(|line| line.starts_with(name));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks `requests` times one after the other; connects anew where it was told to. The statuses.
async fn ask(address: SocketAddr, requests: usize) -> Vec<u16> {
    let (mut client, mut statuses) = (None, Vec::new());
    for _ in 0..requests {
        let mut asked = match client.take() {
            Some(client) => client,
            None => Client::connect(address).await,
        };
        let response = asked.get("/").await;
        statuses.push(response.status());
        if response.header("connection") != Some("close") {
            client = Some(asked);
        }
    }
    statuses
}

#[tokio::test]
async fn the_soft_limit_is_no_limit() {
    let backend = TestBackend::ok("ok");
    let process = Process::start("ulimit -Sn 64; ulimit -Hn 1024", "", &[&backend]).await;
    let mut clients = Vec::new();
    for _ in 0..150 {
        let mut client = Client::connect(process.address).await;
        assert_eq!(client.get("/").await.status(), 200);
        clients.push(client);
    }
    assert_eq!(process.metric("isobar_descriptors_limit").await, 1024.0);
    assert!(process.log().contains("raised the limit of file descriptors from=64 to=1024"), "{}", process.log());
}

/// Ten times as many clients as there are descriptors for: all wait their turn, and none is refused or cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_a_client_is_lost_however_many_there_are() {
    let backends = [TestBackend::slow("a", Duration::from_millis(5)), TestBackend::slow("b", Duration::from_millis(5))];
    let health = "health_check = { path = \"/\", interval = \"200ms\" }";
    let process = Process::start("ulimit -n 128", health, &[&backends[0], &backends[1]]).await;
    let fit = process.metric("isobar_connections_fit").await;
    assert!((20.0..60.0).contains(&fit), "{fit}");
    let said = format!("connections={fit} max_connections=10000");
    let line = process.log().lines().find(|line| line.contains(&said)).map(str::to_owned);
    assert!(line.is_some_and(|line| line.contains("WARN") && line.contains("fewer clients")), "{}", process.log());
    let mut clients = JoinSet::new();
    for _ in 0..300 {
        clients.spawn(ask(process.address, 5));
    }
    let (mut good, mut most) = (0, 0.0_f64);
    while !clients.is_empty() {
        tokio::select! {
            Some(statuses) = clients.join_next() => {
                let statuses = statuses.unwrap();
                assert_eq!(statuses, [200; 5]);
                good += 1;
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                assert!(process.asks("/livez").await.starts_with("HTTP/1.1 200 "));
                most = most.max(process.metric("isobar_descriptors_open").await);
            }
        }
    }
    assert_eq!(good, 300);
    assert!(most > 64.0 && most < 0.95 * 128.0, "{most} open");
    assert!(process.metric("isobar_accept_waits_total").await > 0.0);
    for (name, expected) in [
        ("isobar_accept_waiting", 0.0),
        ("isobar_overload_refused_total", 0.0),
        ("isobar_backend_connect_failures_total", 0.0),
        ("isobar_connect_exhausted_total", 0.0),
        ("isobar_backend_healthy", 2.0),
    ] {
        assert_eq!(process.metric(name).await, expected, "{name}");
    }
}

#[tokio::test]
async fn clients_that_do_nothing_make_room_for_those_that_wait() {
    let backend = TestBackend::ok("ok");
    let process = Process::start("ulimit -n 128", "", &[&backend]).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(Client::connect(process.address).await);
    }
    // With all places taken by the others, it waits for about a second.
    assert_eq!(Client::connect(process.address).await.get("/").await.status(), 200);
    assert!(process.metric("isobar_accept_waits_total").await > 0.0);
    assert!(process.log().contains("no file descriptors for more clients; they wait until others end"));
}

/// A client between two requests keeps one descriptor: half as many again are served as have two, and when all ask at the same time none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_between_two_requests_leave_their_second_descriptor() {
    let backend = TestBackend::slow("a", Duration::from_millis(5));
    let process = Process::start("ulimit -n 128", "", &[&backend]).await;
    let fit = process.metric("isobar_connections_fit").await as usize;
    let mut clients = Vec::new();
    for _ in 0..fit + fit / 2 {
        let mut client = Client::connect(process.address).await;
        assert_eq!(client.get("/").await.status(), 200);
        clients.push(client);
    }
    for _ in 0..3 {
        let mut asking = JoinSet::new();
        for mut client in clients.drain(..) {
            asking.spawn(async move { (client.get("/").await.status(), client) });
        }
        while let Some(asked) = soon(asking.join_next()).await {
            let (status, client) = asked.unwrap();
            assert_eq!(status, 200);
            clients.push(client);
        }
    }
    for name in ["isobar_accept_waits_total", "isobar_connect_exhausted_total", "isobar_backend_connect_failures_total"]
    {
        assert_eq!(process.metric(name).await, 0.0, "{name}");
    }
}

/// Requests whose bodies do not end hold a connection to a backend each.
#[tokio::test]
async fn the_streams_of_a_few_clients_do_not_take_the_room_of_all() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let hangs = TestBackend::scripted(async move |peer| {
        while let Some(head) = peer.head().await {
            if head.method() != "GET" {
                counted.fetch_add(1, SeqCst);
                return peer.gone().await;
            }
            peer.respond("200 OK", "ok").await;
        }
    });
    let process = Process::start("ulimit -n 256", "connect_timeout = \"1s\"", &[&hangs]).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let tcp = tokio::net::TcpStream::connect(process.address).await.unwrap();
        let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut streams = Vec::new();
        for _ in 0..100 {
            let request = http::Request::post("http://a.example/").body(()).unwrap();
            streams.push(soon(send.clone().ready()).await.unwrap().send_request(request, false).unwrap());
        }
        held.push((driver, streams, send));
    }
    // What they get is less than half of what there is, and each has something.
    eventually(|| seen.load(SeqCst) >= 16).await;
    for _ in 0..20 {
        assert_eq!(Client::connect(process.address).await.get("/").await.status(), 200);
    }
    let taken = seen.load(SeqCst);
    assert!(taken < 100, "{taken} of 800 have a connection");
    assert!(process.metric("isobar_connect_waits_total").await > 0.0);
    // Those that got none in time are told that it is nobody else's fault.
    let (_, streams, _) = &mut held[0];
    let mut refused = 0;
    for (response, _) in streams {
        // That of a stream which has a connection may come to 408 meanwhile.
        if let Ok(Ok(response)) = tokio::time::timeout(Duration::from_millis(200), response).await {
            assert!([503, 408].contains(&response.status().as_u16()), "{response:?}");
            refused += usize::from(response.status() == 503);
        }
        if refused == 10 {
            break;
        }
    }
    assert_eq!(refused, 10);
    assert_eq!(process.metric("isobar_backend_connect_failures_total").await, 0.0);
    // What clients give back is there for others again.
    drop(held);
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        clients.spawn(ask(process.address, 2));
    }
    while let Some(statuses) = soon(clients.join_next()).await {
        assert_eq!(statuses.unwrap(), [200; 2]);
    }
}

/// The system has none left at all, as when the limit of the whole machine is reached.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_this_process_has_not_is_held_against_no_backend() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let backends = [TestBackend::ok("a"), TestBackend::ok("b")];
    let upstream = "connect_timeout = \"400ms\"\npool = { max_idle = 0 }\n\
                    health_check = { path = \"/\", interval = \"100ms\", interval_in_doubt = \"50ms\", unhealthy_after = 1 }\n\
                    outlier_detection = { consecutive_local_errors = 1 }\ncircuit_breaker = { min_calls = 1, failure_percent = 1 }";
    let process = Process::start("ulimit -Sn 200; ulimit -Hn 400", upstream, &[&backends[0], &backends[1]]).await;
    let mut client = Client::connect(process.address).await;
    assert_eq!(client.get("/").await.status(), 200);
    let pid = Pid::from_child(&process.child);
    let limit =
        |soft| prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(400) }).unwrap();
    limit(3);
    let refused = client.get("/").await;
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")));
    assert!(refused.text().contains("no room for another connection to a backend"), "{}", refused.text());
    // It waits for a moment: where they are back in time, nothing is lost.
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    limit(400);
    assert_eq!(client.response().await.status(), 200);
    eventually(|| process.log().contains("could not make a health check, for a reason of our own")).await;
    assert!(process.metric("isobar_connect_exhausted_total").await > 0.0);
    for (name, expected) in [
        ("isobar_backend_connect_failures_total", 0.0),
        ("isobar_backend_healthy", 2.0),
        ("isobar_backend_ejected", 0.0),
        ("isobar_upstream_breaker_opened_total", 0.0),
    ] {
        assert_eq!(process.metric(name).await, expected, "{name}");
    }
}
