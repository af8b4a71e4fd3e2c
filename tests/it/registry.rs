//! What the tests of registries have in common: an isobar whose upstream is found, and requests all the time.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::telemetry::events::EventKind;
use isobar::{Isobar, Running};
use tokio::task::JoinSet;

use crate::harness::{Client, TestBackend, eventually, soon};

/// An isobar with a route to `u`, of which this is the source.
pub(crate) fn start(source: &str) -> Running {
    let text = format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nstrategy = \"weighted_round_robin\"\nretries = 0\noutlier_detection = {{ enabled = false }}\n\
         [[upstream.u.discovery]]\n{source}\n"
    );
    Isobar::builder().config_text(text).start().unwrap()
}

/// Address and weight of each backend, sorted.
pub(crate) fn backends(running: &Running) -> Vec<(String, u16)> {
    let snapshot = running.handle().snapshot();
    let roster = snapshot.upstream("u").unwrap().roster();
    let mut all: Vec<_> = roster.backends().iter().map(|it| (it.state.address.to_string(), it.weight)).collect();
    all.sort();
    all
}

fn of<'b>(expected: impl IntoIterator<Item = &'b TestBackend>) -> Vec<(String, u16)> {
    let mut expected: Vec<_> = expected.into_iter().map(|backend| (backend.address().to_string(), 1)).collect();
    expected.sort();
    expected
}

/// Waits until these are the backends.
pub(crate) async fn has<'b>(running: &Running, expected: impl IntoIterator<Item = &'b TestBackend>) {
    let expected = of(expected);
    eventually(|| backends(running) == expected).await;
}

pub(crate) fn has_now<'b>(running: &Running, expected: impl IntoIterator<Item = &'b TestBackend>) -> bool {
    backends(running) == of(expected)
}

/// The conditions that the source has been in, as they were told.
pub(crate) fn conditions(running: &Running) -> Vec<&'static str> {
    let told = running.handle().events().listen_after(0).since;
    let told = told.iter().filter_map(|event| match &event.kind {
        EventKind::Discovery { to, .. } => Some(*to),
        _ => None,
    });
    told.collect()
}

pub(crate) async fn comes_to(running: &Running, condition: &str) {
    eventually(|| conditions(running).last() == Some(&condition)).await;
}

/// About 300 requests a second, each of which must be answered 200.
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    clients: JoinSet<usize>,
}

impl Load {
    pub(crate) fn begin(running: &Running) -> Self {
        let (address, ends) = (running.listener_addresses()[0], Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for _ in 0..3 {
            let ends = Arc::clone(&ends);
            clients.spawn(async move {
                let (mut client, mut asked) = (Client::connect(address).await, 0);
                while !ends.load(SeqCst) {
                    assert_eq!(client.get("/").await.status(), 200, "request {asked}");
                    asked += 1;
                    tokio::time::sleep(Duration::from_millis(9)).await;
                }
                asked
            });
        }
        Self { ends, clients }
    }

    /// How many were asked.
    pub(crate) async fn end(mut self) -> usize {
        self.ends.store(true, SeqCst);
        let mut asked = 0;
        while let Some(done) = soon(self.clients.join_next()).await {
            asked += done.unwrap();
        }
        asked
    }
}

/// How long each of a hundred changes took to be seen, and says so.
#[derive(Default)]
pub(crate) struct Took(Vec<Duration>);

impl Took {
    pub(crate) fn since(&mut self, begun: Instant) {
        self.0.push(begun.elapsed());
    }

    pub(crate) fn end_within_a_second(mut self) {
        assert_eq!(self.0.len(), 100);
        self.0.sort();
        println!("seen after: half {:?}, 99 of 100 {:?}, all {:?}", self.0[49], self.0[98], self.0[99]);
        assert!(self.0[98] < Duration::from_secs(1), "{:?}", self.0);
    }
}

/// A server of a test's own, which ends with it.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn run(command: &mut Command, hint: &str) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{error}: is it there? {hint}")))
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Has it hang (`STOP`) or go on (`CONT`).
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
