//! Names at a real name server, Knot DNS (Debian's package `knot`): its zones change, and it fails in its own ways.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use isobar::telemetry::events::EventKind;
use isobar::{Isobar, Running};

use crate::harness::{Client, Scratch, TestBackend, eventually, free_address};

/// A Knot of this test's own, with the zone `test.`.
struct Knot {
    address: SocketAddr,
    dir: Scratch,
    serial: u32,
    process: Child,
}

impl Knot {
    fn start(records: &str) -> Self {
        let (address, dir) = (free_address(), Scratch::new());
        let run = dir.path("").display().to_string();
        let zone = |name: &str| format!("  - domain: {name}\n    file: {name}zone\n");
        // The second zone has no file: Knot answers SERVFAIL for it.
        let text = format!(
            "server:\n  listen: {}@{}\n  rundir: {run}\n  udp-max-payload: 1232\n\
             database:\n  storage: {run}\n\
             log:\n  - target: stderr\n    any: error\n\
             template:\n  - id: default\n    storage: {run}\n    zonefile-load: whole\n    journal-content: none\n    semantic-checks: off\n\
             zone:\n{}{}",
            address.ip(),
            address.port(),
            zone("test."),
            zone("broken.")
        );
        dir.write("knot.conf", text);
        let mut knot = Self { address, process: Self::run(&dir), dir, serial: 0 };
        knot.write(records);
        // Before the process looks for it, or by the signal after.
        std::thread::sleep(Duration::from_millis(300));
        knot.signal("HUP");
        knot
    }

    fn run(dir: &Scratch) -> Child {
        let log = fs::File::create(dir.path("log")).unwrap();
        let mut command = Command::new("knotd");
        command.args(["-c".as_ref(), dir.path("knot.conf").as_os_str()]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log).spawn().expect("knotd, of Debian's package knot")
    }

    fn write(&mut self, records: &str) {
        self.serial += 1;
        let soa = format!(
            "$ORIGIN test.\n$TTL 1\n@ SOA ns.test. root.test. {} 60 60 3600 1\n@ NS ns\nns A {}\n",
            self.serial,
            self.address.ip()
        );
        self.dir.write("test.zone", format!("{soa}{records}\n"));
    }

    /// From now on these are the records of the zone.
    fn set(&mut self, records: &str) {
        self.write(records);
        self.signal("HUP");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([format!("-{signal}"), self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(knot: &Knot, upstream: &str) -> Running {
    let text = format!(
        "workers = 1\n[dns]\nnameservers = [\"{}\"]\nsearch = [\"search.test\"]\ntimeout = \"500ms\"\nattempts = 2\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n{upstream}\n",
        knot.address
    );
    Isobar::builder().config_text(text).admin(false).start().unwrap()
}

fn backends(running: &Running) -> Vec<String> {
    let snapshot = running.handle().snapshot();
    let roster = snapshot.upstream("u").unwrap().roster();
    let mut backends: Vec<_> = roster.backends().iter().map(|it| it.state.address.to_string()).collect();
    backends.sort_unstable();
    backends
}

fn condition(running: &Running) -> Option<(&'static str, String)> {
    let told = running.handle().events().listen_after(0).since;
    told.iter().rev().find_map(|event| match &event.kind {
        EventKind::Discovery { to, evidence, .. } => Some((*to, evidence.clone())),
        _ => None,
    })
}

async fn ok(running: &Running) {
    let mut client = Client::connect(running.listener_addresses()[0]).await;
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
#[ignore = "needs Knot DNS"]
async fn a_zone_changes_and_each_change_is_followed() {
    let backend = TestBackend::ok("a");
    let port = backend.address().port();
    let mut knot = Knot::start("u A 127.0.0.1\nu A 127.0.0.2\nalias CNAME u");
    let running = start(&knot, &format!("backends = [\"alias.test:{port}\"]"));
    let at = |last: u32| format!("alias.test@127.0.0.{last}:{port}");
    eventually(|| backends(&running) == [at(1), at(2)]).await;
    ok(&running).await;
    let mut took = Vec::new();
    for last in 1..10 {
        knot.set(&format!("u A 127.0.0.{last}\nalias CNAME u"));
        let begun = Instant::now();
        eventually(|| backends(&running) == [at(last)]).await;
        took.push(begun.elapsed());
    }
    // The TTL is a second.
    assert!(took.iter().all(|it| *it < Duration::from_millis(2500)), "{took:?}");
    // More than fits into a datagram.
    let many: String = (0..200).map(|n| format!("u A 127.1.0.{n}\n")).collect();
    knot.set(&format!("{many}\nalias CNAME u"));
    eventually(|| backends(&running).len() == 200).await;
    knot.set("u A 127.0.0.1\nu AAAA ::1\nalias CNAME u");
    eventually(|| backends(&running).contains(&at(1)) && backends(&running).len() <= 2).await;
    ok(&running).await;
}

#[tokio::test]
#[ignore = "needs Knot DNS"]
async fn services_are_followed() {
    let pool = ["a", "b"].map(TestBackend::ok);
    let record = |backend: &TestBackend, priority: u32| {
        format!("_h._tcp SRV {priority} 5 {} {priority}\n{priority} A 127.0.0.1\n", backend.address().port())
    };
    let mut knot = Knot::start(&format!("{}{}", record(&pool[0], 1), record(&pool[1], 2)));
    let source = "[[upstream.u.discovery]]\ndns = { name = \"_h._tcp.test\", records = \"srv\" }";
    let running = start(&knot, source);
    let shown = |at: usize| format!("{}.test@{}", at + 1, pool[at].address());
    eventually(|| backends(&running) == [shown(0), shown(1)]).await;
    for _ in 0..4 {
        ok(&running).await;
    }
    assert_eq!(pool.each_ref().map(TestBackend::requests), [4, 0], "the second is of the next tier");
    knot.set(&record(&pool[1], 2));
    eventually(|| backends(&running) == [shown(1)]).await;
    ok(&running).await;
}

#[tokio::test]
#[ignore = "needs Knot DNS"]
async fn its_bad_days_cost_no_request() {
    let backend = TestBackend::ok("a");
    let port = backend.address().port();
    let mut knot = Knot::start("u A 127.0.0.1");
    let running = start(&knot, &format!("backends = [\"u.test:{port}\"]"));
    let known = [format!("u.test@127.0.0.1:{port}")];
    eventually(|| backends(&running) == known).await;
    let is = |state: &'static str| condition(&running).is_some_and(|(to, _)| to == state);
    // No such name; then the name without an address.
    for records in ["v A 127.0.0.1", "u TXT text"] {
        knot.set(records);
        eventually(|| is("holding")).await;
        assert_eq!(backends(&running), known);
        ok(&running).await;
        knot.set("u A 127.0.0.1");
        eventually(|| is("current")).await;
    }
    // It hangs, and goes on.
    knot.signal("STOP");
    eventually(|| is("failing")).await;
    ok(&running).await;
    knot.signal("CONT");
    eventually(|| is("current")).await;
    // It is killed, and comes back.
    knot.kill();
    eventually(|| is("failing")).await;
    ok(&running).await;
    assert_eq!(backends(&running), known);
    knot.process = Knot::run(&knot.dir);
    eventually(|| is("current")).await;
    // Zones that it has not, and one that it could not load.
    for (name, says) in [("u.elsewhere", "REFUSED"), ("u.broken", "SERVFAIL")] {
        let running = start(&knot, &format!("backends = [\"{name}:{port}\"]"));
        eventually(|| condition(&running).is_some_and(|(_, told)| told.contains(says))).await;
        assert_eq!(backends(&running), [""; 0]);
    }
}
