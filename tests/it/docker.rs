//! The source `docker`, against a scripted daemon behind a Unix socket that fails in each way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};

use crate::harness::{Peer, Scratch, TestBackend, eventually};
use crate::registry::{Load, comes_to, conditions, has, has_now, start};

/// How a daemon behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    /// It takes requests and says nothing.
    Hangs,
    Fails,
    Garbage,
    Empty,
    /// It sends 100 MB.
    Huge,
}

struct Known {
    mood: Mood,
    /// By ID: where it listens, and the words of its status.
    containers: Vec<(String, SocketAddr, &'static str)>,
    events: Vec<String>,
    lists: usize,
}

/// A scripted daemon, made from the description of Docker's API.
#[derive(Clone)]
struct Daemon(Arc<Mutex<Known>>);

impl Daemon {
    fn with<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Self {
        let containers = backends.into_iter().map(|it| (id(it), it.address(), "Up 5 minutes")).collect();
        Self(Arc::new(Mutex::new(Known { mood: Mood::Good, containers, events: Vec::new(), lists: 0 })))
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.0.lock().unwrap());
    }

    fn is(&self, mood: Mood) {
        self.change(|known| known.mood = mood);
    }

    fn mood(&self) -> Mood {
        self.0.lock().unwrap().mood
    }

    /// Something happens to a container, of which an event tells.
    fn happens(&self, backend: &TestBackend, action: &str, signal: Option<&str>, change: impl FnOnce(&mut Known)) {
        let attributes = signal.map_or(json!({}), |signal| json!({ "signal": signal }));
        let event =
            json!({ "Type": "container", "Action": action, "Actor": { "ID": id(backend), "Attributes": attributes } });
        self.change(|known| {
            change(known);
            known.events.push(event.to_string());
        });
    }

    fn starts(&self, backend: &TestBackend, status: &'static str) {
        self.happens(backend, "start", None, |known| known.containers.push((id(backend), backend.address(), status)));
    }

    fn ends(&self, backend: &TestBackend) {
        self.happens(backend, "die", None, |known| known.containers.retain(|it| it.0 != id(backend)));
    }

    fn serve(&self) -> TestBackend {
        let daemon = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let target = message.head.target().to_owned();
                match target.split('?').next().unwrap() {
                    "/_ping" => peer.respond("200 OK\r\napi-version: 1.41", "OK").await,
                    "/v1.41/containers/json" => daemon.list(peer, &target).await,
                    "/v1.41/events" => return daemon.stream(peer).await,
                    // One that stops by another signal than the usual one.
                    path if path.starts_with("/v1.41/containers/") => {
                        peer.respond("200 OK", json!({ "Config": { "StopSignal": "SIGQUIT" } }).to_string()).await;
                    }
                    _ => peer.respond("404 Not Found", r#"{"message":"page not found"}"#).await,
                }
            }
        })
    }

    async fn list(&self, peer: &mut Peer, target: &str) {
        assert!(target.contains("isobar.upstream%3Du"), "{target}");
        let (mood, list) = {
            let mut known = self.0.lock().unwrap();
            known.lists += 1;
            let one = |(id, address, status): &(String, SocketAddr, &str)| {
                json!({ "Id": id, "Names": [format!("/{id}")], "Image": "users", "State": "running", "Status": status,
                        "Labels": { "isobar.upstream": "u", "isobar.port": address.port().to_string() }, "Ports": [],
                        "HostConfig": { "NetworkMode": "front" },
                        "NetworkSettings": { "Networks": { "front": { "IPAddress": address.ip() } } } })
            };
            (known.mood, known.containers.iter().map(one).collect::<Vec<Value>>())
        };
        match mood {
            Mood::Good => peer.respond("200 OK", Value::from(list).to_string()).await,
            Mood::Empty => peer.respond("200 OK", "[]").await,
            Mood::Hangs => peer.gone().await,
            Mood::Fails => peer.respond("500 Internal Server Error", r#"{"message":"containerd is not there"}"#).await,
            Mood::Garbage => peer.respond("200 OK", "<html>oh</html>").await,
            Mood::Huge => {
                const MEGABYTE: usize = 1024 * 1024;
                peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n[", 100 * MEGABYTE)).await;
                while peer.stream.write(&vec![b' '; MEGABYTE]).await.is_ok() {}
            }
        }
    }

    /// Events from now on. They go on whatever the mood is, but for one that hangs.
    async fn stream(&self, peer: &mut Peer) {
        peer.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut told = self.0.lock().unwrap().events.len();
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let events = self.0.lock().unwrap().events.get(told..).unwrap_or_default().to_vec();
            if events.is_empty() || self.mood() == Mood::Hangs {
                continue;
            }
            told += events.len();
            for event in events {
                let line = format!("{event}\n");
                peer.write(format!("{:x}\r\n{line}\r\n", line.len())).await;
            }
        }
    }
}

fn id(backend: &TestBackend) -> String {
    format!("{:064}", backend.address().port())
}

/// A Unix socket that leads to an address, as long as something listens there.
fn socket(at: SocketAddr, scratch: &Scratch) -> PathBuf {
    let path = scratch.path("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut to) = TcpStream::connect(at).await {
                    let _ = copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    path
}

fn source(socket: &Path, more: &str) -> String {
    format!("{more}\ndocker = {{ endpoint = \"unix://{}\", resync = \"1s\", timeout = \"2s\" }}", socket.display())
}

/// Each way in which a daemon can be of no use, with requests all the time: none is lost, and each state is told once.
#[tokio::test]
async fn a_bad_day_of_docker_costs_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let daemon = Daemon::with(&backends);
    let (mut server, scratch) = (daemon.serve(), Scratch::new());
    let path = socket(server.address(), &scratch);
    let running = start(&source(&path, "max_bytes = \"64KiB\"\nremoval_hold = \"1h\""));
    has(&running, &backends).await;
    let load = Load::begin(&running);
    let mut told = vec!["current"];
    for mood in [Mood::Fails, Mood::Garbage, Mood::Empty, Mood::Huge, Mood::Hangs] {
        daemon.is(mood);
        let state = if mood == Mood::Empty { "holding" } else { "failing" };
        told.extend([state, "current"]);
        comes_to(&running, state).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(has_now(&running, &backends), "{mood:?}");
        daemon.is(Mood::Good);
        comes_to(&running, "current").await;
    }
    // The daemon begins again and knows nothing of its containers yet, which run on.
    server.kill();
    comes_to(&running, "failing").await;
    daemon.is(Mood::Empty);
    server.restart();
    comes_to(&running, "holding").await;
    assert!(has_now(&running, &backends));
    daemon.is(Mood::Good);
    comes_to(&running, "current").await;
    told.extend(["failing", "holding", "current"]);
    // Events go on to be heard, and half of what is there is believed to be gone.
    daemon.ends(&backends[0]);
    daemon.ends(&backends[1]);
    has(&running, &backends[2..]).await;
    assert_eq!(conditions(&running), told);
    let asked = load.end().await;
    assert_eq!(asked, backends.iter().map(TestBackend::requests).sum::<usize>());
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
async fn a_container_comes_when_it_is_healthy_and_goes_before_it_ends() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let daemon = Daemon::with([&a]);
    let (server, scratch) = (daemon.serve(), Scratch::new());
    let path = socket(server.address(), &scratch);
    let running = start(&source(&path, "").replace("resync = \"1s\"", "resync = \"5m\""));
    has(&running, [&a]).await;
    let lists = || daemon.0.lock().unwrap().lists;
    // Not while it starts.
    let before = lists();
    daemon.starts(&b, "Up 1 second (health: starting)");
    eventually(|| lists() > before).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(has_now(&running, [&a]));
    let status = |status: &'static str| move |known: &mut Known| known.containers.last_mut().unwrap().2 = status;
    daemon.happens(&b, "health_status: healthy", None, status("Up 2 seconds (healthy)"));
    has(&running, [&a, &b]).await;
    daemon.happens(&b, "health_status: unhealthy", None, status("Up 3 seconds (unhealthy)"));
    has(&running, [&a]).await;
    daemon.happens(&b, "health_status: healthy", None, status("Up 4 seconds (healthy)"));
    has(&running, [&a, &b]).await;
    // Signals that it does not stop by: one has it read its files again, one is the usual one of others.
    for signal in ["1", "15"] {
        daemon.happens(&b, "kill", Some(signal), |_| {});
    }
    daemon.happens(&a, "update", None, |_| {});
    let before = lists();
    eventually(|| lists() > before).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(has_now(&running, [&a, &b]));
    // Its own: it runs still, and is not asked any more.
    daemon.happens(&b, "kill", Some("3"), |_| {});
    has(&running, [&a]).await;
    daemon.ends(&b);
    let before = lists();
    daemon.starts(&b, "Up 1 second");
    has(&running, [&a, &b]).await;
    assert!(lists() > before);
    // The last one too, as the daemon has told of its end.
    daemon.ends(&b);
    daemon.ends(&a);
    has(&running, []).await;
    assert_eq!(conditions(&running), ["current"]);
}

#[tokio::test]
async fn a_socket_that_may_not_be_opened_is_told() {
    let scratch = Scratch::new();
    let running = start(&source(&scratch.path("nothing.sock"), ""));
    comes_to(&running, "failing").await;
    let what = running.handle().snapshot().upstream("u").unwrap().state.sources.look()[1].condition.clone();
    assert!(format!("{what:?}").contains("could not connect"), "{what:?}");
}
