//! A panic ends what it happened in, and is never the half of a process.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use isobar::backend::Backend;
use isobar::strategy::{Candidates, Cursor, Dice, Strategy};
use isobar::{Isobar, Running};

use crate::harness::{Client, Keys, TestBackend, eventually, soon};

/// Does to the worker what it is told to.
#[derive(Debug)]
struct Faulty {
    panics: Arc<AtomicBool>,
    blocks: Arc<AtomicBool>,
}

impl Strategy for Faulty {
    fn pick(&self, candidates: &Candidates<'_>, _: &mut Dice) -> Option<usize> {
        assert!(!self.panics.swap(false, SeqCst), "a panic that a test wants");
        while self.blocks.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        (!candidates.backends.is_empty()).then_some(0)
    }
}

fn start(backend: &TestBackend) -> (Running, Arc<AtomicBool>, Arc<AtomicBool>) {
    let (panics, blocks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let text = Keys {
        upstream: "strategy = \"faulty\"",
        tables: "[overload]\nlag = \"none\"\n[admin]\naddress = \"127.0.0.1:0\"\n",
        ..Keys::default()
    };
    let its = (Arc::clone(&panics), Arc::clone(&blocks));
    let factory = Arc::new(move |_: &[Backend], _: &Arc<Cursor>| {
        Box::new(Faulty { panics: Arc::clone(&its.0), blocks: Arc::clone(&its.1) }) as Box<dyn Strategy>
    });
    let running = Isobar::builder().config_text(text.text(&[backend])).strategy("faulty", factory).start().unwrap();
    (running, panics, blocks)
}

async fn livez(running: &Running) -> String {
    let admin = running.admin_address().unwrap();
    let mut client = Client::connect(admin).await;
    client.send(format!("GET /livez HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")).await;
    String::from_utf8_lossy(&client.read_to_end().await).into_owned()
}

#[tokio::test]
async fn a_panic_while_a_request_is_served_ends_its_connection_alone() {
    let backend = TestBackend::ok("ok");
    let (running, panics, _) = start(&backend);
    let address = running.listener_addresses()[0];
    let mut other = Client::connect(address).await;
    assert_eq!(other.get("/").await.status(), 200);
    for _ in 0..3 {
        panics.store(true, SeqCst);
        let mut unlucky = Client::connect(address).await;
        unlucky.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        unlucky.closed().await;
        assert!(!panics.load(SeqCst));
        assert_eq!(other.get("/").await.status(), 200);
    }
    // By HTTP/2 it is the stream alone.
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    for lucky in [true, false, true] {
        panics.store(!lucky, SeqCst);
        send = soon(send.ready()).await.unwrap();
        let request = http::Request::get("http://a.example/").body(()).unwrap();
        let response = soon(send.send_request(request, true).unwrap().0).await;
        assert_eq!(response.is_ok_and(|response| response.status() == 200), lucky);
    }
    drop(send);
    assert!(livez(&running).await.starts_with("HTTP/1.1 200 "));
    // No count is left behind: nothing is waited for at the stop.
    eventually(|| running.handle().connections().iter().sum::<usize>() == 1).await;
    drop(other);
    eventually(|| running.handle().connections().iter().sum::<usize>() == 0).await;
    assert_eq!(running.stop(Duration::from_secs(20)).await, isobar::supervisor::Ended::Stopped { cut: 0 });
}

#[tokio::test]
#[ignore = "takes twelve seconds: a worker counts as dead after ten"]
async fn a_worker_that_does_not_run_is_seen_at_livez() {
    let backend = TestBackend::ok("ok");
    let (running, _, blocks) = start(&backend);
    assert!(livez(&running).await.starts_with("HTTP/1.1 200 "));
    blocks.store(true, SeqCst);
    let mut client = Client::connect(running.listener_addresses()[0]).await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let pulse = &running.handle().process().pulse;
    eventually(|| pulse.dead().is_some()).await;
    let said = livez(&running).await;
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("worker 0 has not run for "), "{said}");
    blocks.store(false, SeqCst);
    assert_eq!(client.response().await.status(), 200);
    eventually(|| pulse.dead().is_none()).await;
    assert!(livez(&running).await.starts_with("HTTP/1.1 200 "));
}

/// Each line that begins a task or a thread says how it is watched over, or is known here, with why it need not be.
#[test]
fn whatever_is_begun_is_watched_over() {
    const WHY: &[(&str, usize, &str)] = &[
        ("health/http.rs", 1, "the connection of one check, which fails without it"),
        ("health/grpc.rs", 1, "likewise"),
        ("strategy/conformance/mod.rs", 1, "what strategies are tested with"),
        ("worker/mod.rs", 1, "a worker: its thread has a guard"),
        ("worker/event_loop.rs", 2, "a client's connection, and one that is turned away: theirs alone"),
        ("listener/http2/tasks.rs", 1, "streams: the connection goes on without them, and another task is made"),
        ("listener/handshake.rs", 1, "gives a turn back by being dropped"),
        ("transport/mod.rs", 2, "the rest of a request's body: its connection ends"),
        ("transport/http2.rs", 1, "a connection to a backend: its streams break, and it is swept out"),
        ("discovery/feeds.rs", 1, "the last writing at the stop, which is waited for"),
        ("discovery/services.rs", 1, "what is known of services before a start, which goes on without it"),
        ("discovery/kubernetes/login_command.rs", 1, "a command that logs in: it ends with the one that asks"),
        (
            "discovery/nacos/push.rs",
            1,
            "what is pushed by Nacos: a source asks for its list without it, and begins it anew",
        ),
        ("admin/reload.rs", 1, "one answer; the reload itself is the control's"),
        ("admin/events.rs", 1, "one client that listens to events"),
        ("admin/mod.rs", 2, "one client of the admin address"),
        ("registry/server.rs", 1, "one client of the registry"),
        ("registry/checks.rs", 1, "one check: it stays as it is"),
        ("supervisor/command_loop.rs", 1, "one reading of the file: the reload is refused without it"),
        ("supervisor/successor.rs", 2, "a process, and the task that tells how it has ended"),
        ("supervisor/release_memory.rs", 3, "gives memory back after a reload: begun anew with the next"),
        ("telemetry/line_writer/mod.rs", 1, "begins again by itself"),
        ("transport/http2_stream/ending.rs", 1, "the rest of one stream: its backend is told that it ends"),
        (
            "embed/mod.rs",
            2,
            "the control thread, whose panic is the program's; and the offer to the next process, which then starts as the first",
        ),
    ];
    let mut found = Vec::new();
    visit(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path(), &mut found);
    assert!(found.iter().map(|(_, count)| count).sum::<usize>() >= 10, "is the test blind?");
    let known: Vec<_> = WHY.iter().map(|(file, count, _)| ((*file).to_owned(), *count)).collect();
    let unknown: Vec<_> = found.iter().filter(|it| !known.contains(it)).collect();
    assert!(unknown.is_empty(), "watched over by `Vital`? If one need not be, say why here: {unknown:?}");
}

fn visit(folder: &Path, found: &mut Vec<(String, usize)>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap().display().to_string();
        if entry.is_dir() && name != "cli" && !name.ends_with("tests") {
            visit(&entry, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            let text = fs::read_to_string(&entry).unwrap();
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap()
                .split("#[cfg(test)]\npub(crate) mod tests")
                .next();
            let begins = |line: &&str| {
                let line = line.split("//").next().unwrap();
                // Handed to `watch` here, or by the name that the line above has given it, or by the worker's own `spawn`, which takes a name.
                let watched = ["vital", "keeping", "looking", "checking", ".spawn(\"", ".spawn(&"]
                    .iter()
                    .any(|it| line.contains(it));
                let begins = ["spawn(", "spawn_local("].iter().any(|it| line.contains(it));
                begins && !watched && !line.contains("fn spawn")
            };
            let count = code.unwrap().lines().filter(begins).count();
            if count > 0 {
                found.push((name, count));
            }
        }
    }
}
