//! Backends are restarted one after the other, without being drained, under load: as long as one takes connections, no request
//! fails that may be tried again.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::{Client, TestBackend, TestProxy, backends, eventually};

/// Clients that send GETs, and as many that send POSTs.
const CLIENTS: usize = 4;
const EVERY: Duration = Duration::from_millis(5);

/// What a POST is answered that was under way at a backend when it was killed: sent again, it might be done twice.
const BROKE_OFF: &str = "502 Bad Gateway: the backend broke off before it answered\n";

#[derive(Debug)]
struct Case {
    backends: usize,
    /// What the file says beyond the defaults.
    check: &'static str,
    down: Duration,
    /// From the kill of one to that of the next.
    apart: Duration,
}

/// What clients saw.
#[derive(Default)]
struct Tally {
    answered: [usize; 2],
    /// POSTs that went down with a backend.
    lost: usize,
    failed: Vec<String>,
}

impl Tally {
    fn note(&mut self, post: bool, status: u16, text: &str) {
        match (status, post) {
            (200, _) => self.answered[usize::from(post)] += 1,
            (502, true) if text == BROKE_OFF => self.lost += 1,
            _ => self.failed.push(format!("{} {text}", if post { "POST" } else { "GET" })),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gets, posts] = self.answered;
        write!(f, "{gets} GETs and {posts} POSTs answered, {} POSTs lost, failed: {:?}", self.lost, self.failed)
    }
}

async fn ask(proxy: SocketAddr, post: bool, stop: Arc<AtomicBool>, tally: Arc<Mutex<Tally>>) {
    let request = match post {
        true => "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello",
        false => "GET / HTTP/1.1\r\nhost: test\r\n\r\n",
    };
    let mut client = Client::connect(proxy).await;
    while !stop.load(SeqCst) {
        client.send(request).await;
        let response = client.response().await;
        tally.lock().unwrap().note(post, response.status(), response.text());
        sleep(EVERY).await;
    }
}

async fn restart_all(case: &Case) -> Tally {
    let mut pool: Vec<_> = (0..case.backends).map(|_| TestBackend::ok("ok")).collect();
    let text = format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\nbackends = {}\n{}",
        backends(&pool.iter().collect::<Vec<_>>()),
        case.check
    );
    let proxy = TestProxy::with_config(text).await;
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
    let mut clients = JoinSet::new();
    for number in 0..2 * CLIENTS {
        clients.spawn(ask(proxy.address(), number % 2 == 1, Arc::clone(&stop), Arc::clone(&tally)));
    }
    sleep(case.apart / 2).await;
    for backend in &mut pool {
        tokio::task::block_in_place(|| backend.kill());
        sleep(case.down).await;
        backend.restart();
        sleep(case.apart - case.down).await;
    }
    stop.store(true, SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    let tally = std::mem::take(&mut *tally.lock().unwrap());
    println!("{case:?}: {tally}");
    tally
}

async fn no_request_fails(case: &Case) {
    let tally = restart_all(case).await;
    assert!(tally.failed.is_empty(), "{case:?}: {tally}");
    // Of each client one at most was under way.
    assert!(tally.lost <= CLIENTS * case.backends, "{case:?}: {tally}");
    assert!(tally.answered.iter().all(|&answered| answered > 50), "{case:?}: {tally}");
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_backends_one_after_the_other_and_no_request_fails() {
    for check in ["", "health_check = { path = \"/\", interval = \"500ms\" }"] {
        no_request_fails(&Case { backends: 2, check, down: 600 * MS, apart: 1500 * MS }).await;
    }
}

/// The next goes while the one before is not yet known to be back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_backends_in_quick_succession_and_no_request_fails() {
    no_request_fails(&Case { backends: 2, check: "", down: 300 * MS, apart: 310 * MS }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: takes 2 minutes; all of 2, 3 and 5 backends as operators restart them, with all defaults"]
async fn two_three_and_five_backends_with_and_without_checks() {
    for check in ["", "health_check = { path = \"/\" }"] {
        for backends in [2, 3, 5] {
            no_request_fails(&Case { backends, check, down: 2000 * MS, apart: 5000 * MS }).await;
        }
    }
}
