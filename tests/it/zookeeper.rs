//! The source `zookeeper`, against a scripted server that fails in each way, and against a real ZooKeeper. `tests/registries/zookeeper.sh` gets one.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{PATIENCE, Scratch, TestBackend, eventually, free_address, soon};
use crate::registry::{Load, Process, Took, comes_to, conditions, has, has_now, start};
use crate::services;

/// What is written in a frame.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn text(mut self, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        self = self.int(i32::try_from(text.len()).unwrap());
        self.0.extend(text);
        self
    }

    async fn send(self, stream: &mut TcpStream) -> bool {
        let frame = Out::default().text(self.0).0;
        stream.write_all(&frame).await.is_ok()
    }
}

fn int(from: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(from[at..at + 4].try_into().unwrap())
}

fn text(from: &[u8], at: usize) -> String {
    let length = usize::try_from(int(from, at)).unwrap();
    String::from_utf8(from[at + 4..at + 4 + length].to_vec()).unwrap()
}

/// The next frame of `buffer`, if it is whole.
fn frame(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::try_from(int(buffer.get(..4)?, 0)).unwrap();
    (buffer.len() >= 4 + length).then(|| buffer.drain(..4 + length).skip(4).collect())
}

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    /// It takes what comes and says nothing, not even to a ping.
    Hangs,
    /// It closes each connection.
    Closes,
    Garbage,
    /// It has lost all nodes, and counts its changes from the beginning.
    Empty,
    /// It sends 100 MB.
    Huge,
}

struct Known {
    mood: Mood,
    change: i64,
    backends: Vec<SocketAddr>,
}

/// A scripted server, made from the description of the protocol.
#[derive(Clone)]
struct Scripted(Arc<Mutex<Known>>);

impl Scripted {
    fn look(&self) -> (Mood, i64, Vec<SocketAddr>) {
        let known = self.0.lock().unwrap();
        (known.mood, known.change, known.backends.clone())
    }

    fn is(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, server) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.connection(stream).await });
            }
        });
        address
    }

    async fn connection(self, mut stream: TcpStream) {
        let (mut buffer, mut greeted, mut seen) = (Vec::new(), false, self.look().1);
        let (begun_as, ..) = self.look();
        loop {
            let (mood, change, backends) = self.look();
            // What is wrong with it is wrong with the next session too.
            if mood == Mood::Closes || (mood != begun_as && mood != Mood::Hangs) {
                return;
            }
            let read = tokio::time::timeout(Duration::from_millis(2), stream.read_buf(&mut buffer)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return;
            }
            if mood == Mood::Hangs {
                continue;
            }
            if greeted && change != seen {
                seen = change;
                let event = Out::default().int(-1).long(-1).int(0).int(4).int(3).text("/services/u");
                if !event.send(&mut stream).await {
                    return;
                }
            }
            while let Some(asked) = frame(&mut buffer) {
                let answered = match (greeted, mood) {
                    (false, Mood::Garbage) => stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.is_ok(),
                    (false, _) => {
                        let known = i64::from_be_bytes(asked[4..12].try_into().unwrap());
                        // As ZooKeeper does it to a client that knows more.
                        if known > if mood == Mood::Empty { 0 } else { change } {
                            return;
                        }
                        Out::default().int(0).int(1000).long(7).text([0; 16]).send(&mut stream).await
                    }
                    (true, Mood::Huge) => {
                        let length = 100 * 1024 * 1024_i32;
                        let mut sent = stream.write_all(&length.to_be_bytes()).await.is_ok();
                        while sent {
                            sent = stream.write_all(&vec![0; 1024 * 1024]).await.is_ok();
                        }
                        false
                    }
                    (true, _) => answer(&asked, change, mood, &backends).send(&mut stream).await,
                };
                if !answered {
                    return;
                }
                greeted = true;
            }
        }
    }
}

fn answer(asked: &[u8], change: i64, mood: Mood, backends: &[SocketAddr]) -> Out {
    let (number, kind) = (int(asked, 0), int(asked, 4));
    let head = |error| Out::default().int(number).long(change).int(error);
    match kind {
        11 => head(0),
        8 => {
            assert_eq!((text(asked, 8).as_str(), asked.last()), ("/services/u", Some(&1)));
            let names: &[SocketAddr] = if mood == Mood::Empty { &[] } else { backends };
            let count = head(0).int(i32::try_from(names.len()).unwrap());
            names.iter().fold(count, |out, name| out.text(name.to_string()))
        }
        4 => {
            let path = text(asked, 8);
            let name = path.strip_prefix("/services/u/").unwrap();
            match backends.iter().find(|it| it.to_string() == name) {
                Some(address) => {
                    let out = head(0).text(curator(*address, json!({})));
                    (0..17).fold(out, |out, _| out.int(0))
                }
                None => head(-101),
            }
        }
        other => panic!("request {other}"),
    }
}

/// What Spring Cloud writes by Curator.
fn curator(address: SocketAddr, metadata: serde_json::Value) -> String {
    json!({
        "name": "u", "id": format!("id-{address}"), "address": address.ip(), "port": address.port(), "sslPort": null,
        "payload": { "@class": "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance", "id": "u", "name": "u", "metadata": metadata },
        "registrationTimeUTC": 1_700_000_000_000_u64, "serviceType": "DYNAMIC",
        "uriSpec": { "parts": [{ "value": "scheme", "variable": true }] }
    })
    .to_string()
}

fn source(servers: &[SocketAddr], zookeeper: &str, keys: &str) -> String {
    let servers: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
    let times = "session_timeout = \"2s\", timeout = \"1s\"";
    format!("{keys}\nzookeeper = {{ servers = {servers:?}, {times}, {zookeeper} }}")
}

const SERVICES: &str = "path = \"/services/u\"";

/// Each way in which ZooKeeper can be of no use, with requests all the time: none is lost, and each state is told once.
#[tokio::test]
async fn a_bad_day_of_zookeeper_costs_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let addresses = backends.iter().map(TestBackend::address).collect();
    let server = Scripted(Arc::new(Mutex::new(Known { mood: Mood::Good, change: 10, backends: addresses })));
    let at = server.serve().await;
    let running = start(&source(&[at], SERVICES, "max_bytes = \"64KiB\"\nremoval_hold = \"1h\""));
    has(&running, &backends).await;
    let load = Load::begin(&running);
    let mut told = vec!["current"];
    for mood in [Mood::Closes, Mood::Garbage, Mood::Huge, Mood::Hangs] {
        server.is(mood);
        told.extend(["failing", "current"]);
        comes_to(&running, "failing").await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(has_now(&running, &backends), "{mood:?}");
        server.is(Mood::Good);
        comes_to(&running, "current").await;
    }
    // It has lost all it knew, and refuses at first one that knows more.
    server.is(Mood::Empty);
    comes_to(&running, "holding").await;
    told.extend(["failing", "holding"]);
    assert!(has_now(&running, &backends));
    server.is(Mood::Good);
    comes_to(&running, "current").await;
    told.push("current");
    {
        let mut known = server.0.lock().unwrap();
        known.change += 1;
        known.backends.pop();
    }
    has(&running, &backends[..3]).await;
    assert_eq!(conditions(&running), told);
    let asked = load.end().await;
    assert_eq!(asked, backends.iter().map(TestBackend::requests).sum::<usize>());
    assert!(asked > 1000, "{asked}");
}

/// A client that changes nodes.
struct Writer(TcpStream);

impl Writer {
    /// With a session that lasts so many milliseconds without a word.
    async fn try_begin(address: SocketAddr, lasts: i32) -> Option<Self> {
        let mut writer = Self(TcpStream::connect(address).await.ok()?);
        let hello = Out::default().int(0).long(0).int(lasts).long(0).text([0; 16]);
        if !hello.send(&mut writer.0).await {
            return None;
        }
        // One that is about to start may take a connection and forget it.
        let answer = tokio::time::timeout(Duration::from_secs(2), writer.frame()).await.ok()??;
        (int(&answer, 4) > 0).then_some(writer)
    }

    async fn frame(&mut self) -> Option<Vec<u8>> {
        let length = soon(self.0.read_i32()).await.ok()?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        soon(self.0.read_exact(&mut frame)).await.ok()?;
        Some(frame)
    }

    async fn done(&mut self, body: Out) {
        assert!(body.send(&mut self.0).await);
        let answer = self.frame().await.unwrap();
        let error = int(&answer, 12);
        assert!(error == 0 || error == -110, "error {error}");
    }

    /// For everybody, or for one login alone.
    async fn create_for(&mut self, path: &str, data: &str, flags: i32, login: Option<&str>) {
        let (scheme, id) = login.map_or(("world", "anyone"), |digest| ("digest", digest));
        self.done(Out::default().int(1).int(1).text(path).text(data).int(1).int(31).text(scheme).text(id).int(flags))
            .await;
    }

    async fn create(&mut self, path: &str, data: impl AsRef<str>) {
        self.create_for(path, data.as_ref(), 0, None).await;
    }

    async fn set(&mut self, path: &str, data: impl AsRef<str>) {
        self.done(Out::default().int(1).int(5).text(path).text(data.as_ref()).int(-1)).await;
    }

    async fn delete(&mut self, path: &str) {
        self.done(Out::default().int(1).int(2).text(path).int(-1)).await;
    }
}

/// A real ZooKeeper of this test's own.
struct Zookeeper {
    address: SocketAddr,
    files: Scratch,
    process: Process,
}

impl Zookeeper {
    async fn start() -> Self {
        let (address, files) = (free_address(), Scratch::new());
        let process = Self::run(address, &files);
        let zookeeper = Self { address, files, process };
        drop(zookeeper.writer().await);
        zookeeper
    }

    fn run(address: SocketAddr, files: &Scratch) -> Process {
        let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/registries/zookeeper");
        let text = format!(
            "tickTime=500\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n",
            files.path("data").display(),
            address.port()
        );
        let config = files.write("zoo.cfg", text);
        let mut command = Command::new("java");
        command.args(["-Xmx128m", "-Dzookeeper.admin.enableServer=false", "-cp"]).arg(jars.join("*"));
        command.arg("org.apache.zookeeper.server.ZooKeeperServerMain").arg(config);
        Process::run(&mut command, "tests/registries/zookeeper.sh gets ZooKeeper")
    }

    async fn writer(&self) -> Writer {
        self.writer_for(10_000).await
    }

    async fn writer_for(&self, lasts: i32) -> Writer {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "ZooKeeper does not start");
            if let Some(writer) = Writer::try_begin(self.address, lasts).await {
                return writer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn restart(&mut self, empty: bool) {
        if empty {
            std::fs::remove_dir_all(self.files.path("data")).unwrap();
        }
        self.process = Self::run(self.address, &self.files);
        drop(self.writer().await);
    }
}

fn node(backend: &TestBackend) -> String {
    format!("/services/u/{}", backend.address())
}

#[tokio::test]
#[ignore = "needs zookeeper"]
async fn each_layout_in_a_real_zookeeper_is_a_backend() {
    let (a, b, c) = (TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("c"));
    let zookeeper = Zookeeper::start().await;
    let believing = "max_removed_percent = 100";
    // Below a chroot, and before there is any such node.
    let running = start(&source(&[zookeeper.address], "path = \"/services/u\", chroot = \"/production\"", believing));
    comes_to(&running, "current").await;
    let mut writer = zookeeper.writer().await;
    writer.create("/production", "").await;
    writer.create("/production/services", "").await;
    writer.create("/production/services/u", "").await;
    writer.create("/production/services/u/one", curator(a.address(), json!({ "instance_status": "UP" }))).await;
    // The address is in the name, and what libraries write by default in the data.
    writer.create(&format!("/production/services/u/{}", b.address()), "127.0.0.1").await;
    has(&running, [&a, &b]).await;
    // Out of service, and back.
    writer
        .set("/production/services/u/one", curator(a.address(), json!({ "instance_status": "OUT_OF_SERVICE" })))
        .await;
    has(&running, [&b]).await;
    writer.set("/production/services/u/one", curator(a.address(), json!({ "instance_status": "UP" }))).await;
    has(&running, [&a, &b]).await;
    // An ephemeral node is gone when the session of its owner has expired.
    let mut owner = zookeeper.writer_for(1000).await;
    owner.create_for("/production/services/u/three", &c.address().to_string(), 1, None).await;
    has(&running, [&a, &b, &c]).await;
    drop(owner);
    has(&running, [&a, &b]).await;
    // Dubbo.
    let dubbo = start(&source(&[zookeeper.address], "path = \"/dubbo/com.example.Users/providers\"", believing));
    for path in ["/dubbo", "/dubbo/com.example.Users", "/dubbo/com.example.Users/providers"] {
        writer.create(path, "").await;
    }
    let url = format!(
        "tri%3A%2F%2F127.0.0.1%3A{}%2Fcom.example.Users%3Fanyhost%3Dtrue%26side%3Dprovider",
        c.address().port()
    );
    writer.create(&format!("/dubbo/com.example.Users/providers/{url}"), "127.0.0.1").await;
    has(&dubbo, [&c]).await;
}

#[tokio::test]
#[ignore = "needs zookeeper"]
async fn a_change_in_a_real_zookeeper_is_seen_within_a_second() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let zookeeper = Zookeeper::start().await;
    let mut writer = zookeeper.writer().await;
    for (path, data) in [("/services", ""), ("/services/u", ""), (node(&a).as_str(), "")] {
        writer.create(path, data).await;
    }
    let running = start(&source(&[zookeeper.address], SERVICES, "max_removed_percent = 100"));
    has(&running, [&a]).await;
    let mut took = Took::default();
    for n in 0..100 {
        let begun = Instant::now();
        if n % 2 == 0 {
            writer.create(&node(&b), "").await;
            has(&running, [&a, &b]).await;
        } else {
            writer.delete(&node(&b)).await;
            has(&running, [&a]).await;
        }
        took.since(begun);
    }
    took.end_within_a_second();
}

#[tokio::test]
#[ignore = "needs zookeeper"]
async fn a_real_zookeeper_that_is_killed_hangs_and_forgets_costs_no_request() {
    let (a, b) = (TestBackend::ok("ok"), TestBackend::ok("ok"));
    let mut zookeeper = Zookeeper::start().await;
    let mut writer = zookeeper.writer().await;
    for path in ["/services".into(), "/services/u".into(), node(&a), node(&b)] {
        writer.create(&path, "").await;
    }
    drop(writer);
    let running = start(&source(&[zookeeper.address], SERVICES, ""));
    has(&running, [&a, &b]).await;
    let load = Load::begin(&running);
    zookeeper.process.kill();
    comes_to(&running, "failing").await;
    zookeeper.restart(false).await;
    comes_to(&running, "current").await;
    // Longer than the session lasts: it expires.
    zookeeper.process.signal("STOP");
    comes_to(&running, "failing").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    zookeeper.process.signal("CONT");
    comes_to(&running, "current").await;
    zookeeper.process.kill();
    comes_to(&running, "failing").await;
    zookeeper.restart(true).await;
    comes_to(&running, "holding").await;
    assert!(has_now(&running, [&a, &b]));
    let mut writer = zookeeper.writer().await;
    for path in ["/services".into(), "/services/u".into(), node(&a), node(&b)] {
        writer.create(&path, "").await;
    }
    comes_to(&running, "current").await;
    assert!(has_now(&running, [&a, &b]));
    let expected = ["current", "failing", "current", "failing", "current", "failing", "holding", "current"];
    assert_eq!(conditions(&running), expected);
    let asked = load.end().await;
    assert_eq!(a.requests() + b.requests(), asked);
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
#[ignore = "needs zookeeper"]
async fn a_real_zookeeper_is_read_with_a_login() {
    let a = TestBackend::ok("a");
    let zookeeper = Zookeeper::start().await;
    let mut writer = zookeeper.writer().await;
    writer.create("/services", "").await;
    // base64 of the SHA-1 of "isobar:secret", as its DigestAuthenticationProvider makes it.
    let login = format!("isobar:{DIGEST}");
    writer.create_for("/services/u", "", 0, Some(&login)).await;
    let digest = |password: &str| format!("{SERVICES}, username = \"isobar\", password = \"{password}\"");
    let running = start(&source(&[zookeeper.address], &digest("secret"), ""));
    comes_to(&running, "current").await;
    for refused in [SERVICES, &digest("wrong")] {
        comes_to(&start(&source(&[zookeeper.address], refused, "")), "failing").await;
    }
    // The owner of the node writes by the same login.
    let mut owner = zookeeper.writer().await;
    owner.done(Out::default().int(-4).int(100).int(0).text("digest").text("isobar:secret")).await;
    owner.create_for(&node(&a), "", 0, Some(&login)).await;
    eventually(|| has_now(&running, [&a])).await;
}

const DIGEST: &str = "D+z+xVvi4WIm7qTNfUmznGI+Kjo=";

#[tokio::test]
#[ignore = "needs zookeeper"]
async fn services_in_a_real_zookeeper_are_reachable_while_they_have_nodes() {
    let (early, late) = (TestBackend::ok("early"), TestBackend::ok("late"));
    let zookeeper = Zookeeper::start().await;
    let mut writer = zookeeper.writer().await;
    for path in ["/dubbo", "/dubbo/early", "/dubbo/early/providers", "/dubbo/hidden", "/dubbo/late-not-yet"] {
        writer.create(path, "").await;
    }
    writer.create(&format!("/dubbo/early/providers/{}", early.address()), "").await;
    let servers = zookeeper.address.to_string();
    let keys = format!("zookeeper = {{ path = \"/dubbo/{{service}}/providers\", servers = [{servers:?}] }}");
    let running = services::start_with(&keys);
    services::comes_to(&running, "/early/", 200).await;
    let node = format!("/dubbo/late/providers/{}", late.address());
    let created = ["/dubbo/late", "/dubbo/late/providers", &node];
    services::come_and_go(&running, async |comes| {
        if comes {
            for path in created {
                writer.create(path, "").await;
            }
        } else {
            for path in created.iter().rev() {
                writer.delete(path).await;
            }
        }
    })
    .await;
}
