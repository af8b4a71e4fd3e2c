//! Backends fail in every way there is, under load: clients that may be answered by another do not notice, and nothing that
//! must not be done twice is.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::{Client, TestBackend, TestProxy, eventually, soon};

/// Clients, each with a request every 100 ms: 300 a second.
const CLIENTS: usize = 30;
const EVERY: Duration = Duration::from_millis(100);

/// What a backend's answer takes while it is well.
const LATENCY: Duration = Duration::from_millis(2);

const BODY_BYTES: usize = 3000;

/// How a backend that listens behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    Well,
    Hangs,
    HalfFails,
    Slow,
    ResetsInTheBody,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    OneIsKilled,
    OneFlaps,
    OneNeverAnswers,
    OneFailsHalf,
    OneIsSlow,
    OneResetsInTheBody,
    AllButOneDie,
    AllDieAndComeBack,
}

const CASES: [Case; 8] = [
    Case::OneIsKilled,
    Case::OneFlaps,
    Case::OneNeverAnswers,
    Case::OneFailsHalf,
    Case::OneIsSlow,
    Case::OneResetsInTheBody,
    Case::AllButOneDie,
    Case::AllDieAndComeBack,
];

/// How often a backend has seen each request.
type Seen = Arc<Mutex<HashMap<String, u32>>>;

struct Pool {
    backends: Vec<TestBackend>,
    modes: Vec<Arc<AtomicU8>>,
    seen: Seen,
}

impl Pool {
    fn new() -> Self {
        let seen = Seen::default();
        let (mut backends, mut modes) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let mode = Arc::new(AtomicU8::new(Mode::Well as u8));
            backends.push(backend(Arc::clone(&mode), Arc::clone(&seen)));
            modes.push(mode);
        }
        Self { backends, modes, seen }
    }

    fn is(&self, backend: usize, mode: Mode) {
        self.modes[backend].store(mode as u8, SeqCst);
    }
}

fn backend(mode: Arc<AtomicU8>, seen: Seen) -> TestBackend {
    let turn = AtomicUsize::new(0);
    TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            let target = message.head.target();
            let mode = mode.load(SeqCst);
            if mode == Mode::Hangs as u8 {
                return std::future::pending().await;
            }
            if target == "/health" {
                peer.respond("200 OK", "").await;
                continue;
            }
            *seen.lock().unwrap().entry(target.to_owned()).or_default() += 1;
            sleep(if mode == Mode::Slow as u8 { LATENCY * 20 } else { LATENCY }).await;
            if mode == Mode::HalfFails as u8 && turn.fetch_add(1, SeqCst).is_multiple_of(2) {
                peer.respond("500 Internal Server Error", "no").await;
            } else if mode == Mode::ResetsInTheBody as u8 {
                peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\nbegun")).await;
                sleep(Duration::from_millis(1)).await;
                return peer.reset();
            } else {
                peer.respond("200 OK", "x".repeat(BODY_BYTES)).await;
            }
        }
    })
}

/// As an operator would have it who knows that a 500 of these backends is worth another try.
fn config(pool: &Pool, generation: usize) -> String {
    let backends: Vec<_> = pool.backends.iter().map(|backend| format!("\"{}\"", backend.address())).collect();
    format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\nmax_headers = {max}\n[[route]]\nupstream = \"u\"\ntimeouts = {{ response_head = \"2s\" }}\n\
         [upstream.u]\nbackends = [{backends}]\nconnect_timeout = \"500ms\"\n\
         [upstream.u.retries]\non = [\"connect_failure\", \"reset\", \"timeout\", 500, 502, 503, 504]\nattempt_timeout = \"500ms\"\n\
         [upstream.u.outlier_detection]\ncount_server_errors = true\nejection_time = \"5s\"\n\
         [upstream.u.health_check]\npath = \"/health\"\ninterval = \"500ms\"\ntimeout = \"300ms\"\n",
        max = 60 + generation % 2,
        backends = backends.join(", "),
    )
}

/// What clients saw.
#[derive(Default)]
struct Tally {
    gets: usize,
    posts: usize,
    get_errors: Vec<String>,
    post_errors: Vec<String>,
    took: Vec<Duration>,
}

/// One client: a request every so often, on a connection that is made anew when it breaks.
async fn ask(proxy: std::net::SocketAddr, number: usize, stop: Arc<AtomicBool>, tally: Arc<Mutex<Tally>>) {
    let mut client = Client::connect(proxy).await;
    for n in 0.. {
        if stop.load(SeqCst) {
            return;
        }
        let next = sleep(EVERY);
        let post = n % 3 == 2;
        let target = format!("/{}/{number}/{n}", if post { "post" } else { "get" });
        let text = match post {
            true => format!("POST {target} HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello"),
            false => format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n"),
        };
        let begun = Instant::now();
        let outcome = exchange(&mut client, &text).await;
        let took = begun.elapsed();
        {
            let tally = &mut *tally.lock().unwrap();
            tally.took.push(took);
            *(if post { &mut tally.posts } else { &mut tally.gets }) += 1;
            if let Err(error) = &outcome {
                (if post { &mut tally.post_errors } else { &mut tally.get_errors }).push(error.clone());
            }
        }
        if outcome.is_err() {
            client = Client::connect(proxy).await;
        }
        next.await;
    }
}

async fn exchange(client: &mut Client, text: &str) -> Result<(), String> {
    if !client.try_send(text).await {
        return Err("the connection was closed".to_owned());
    }
    match soon(client.stream.response("GET")).await {
        Err(cut) => match cut.head {
            Some(_) => Err(format!("cut after {} bytes", cut.body.len())),
            None => Err("no answer".to_owned()),
        },
        Ok(response) if response.status() != 200 => Err(response.status().to_string()),
        Ok(response) if response.body.len() != BODY_BYTES => Err("another body".to_owned()),
        Ok(_) => Ok(()),
    }
}

/// Lets `case` happen for so long.
async fn happen(case: Case, pool: &mut Pool, lasts: Duration) {
    match case {
        Case::OneIsKilled => {
            pool.backends[0].kill();
            sleep(lasts).await;
            pool.backends[0].restart();
        }
        Case::OneFlaps => {
            let until = Instant::now() + lasts;
            while Instant::now() < until {
                pool.backends[0].kill();
                sleep(Duration::from_millis(500)).await;
                pool.backends[0].restart();
                sleep(Duration::from_millis(500)).await;
            }
        }
        Case::OneNeverAnswers | Case::OneFailsHalf | Case::OneIsSlow | Case::OneResetsInTheBody => {
            let mode = match case {
                Case::OneNeverAnswers => Mode::Hangs,
                Case::OneFailsHalf => Mode::HalfFails,
                Case::OneIsSlow => Mode::Slow,
                _ => Mode::ResetsInTheBody,
            };
            pool.is(0, mode);
            sleep(lasts).await;
            pool.is(0, Mode::Well);
        }
        Case::AllButOneDie => {
            pool.backends[0].kill();
            pool.backends[1].kill();
            sleep(lasts).await;
            pool.backends[0].restart();
            pool.backends[1].restart();
        }
        Case::AllDieAndComeBack => {
            for backend in &mut pool.backends {
                backend.kill();
            }
            sleep(lasts / 2).await;
            for backend in &mut pool.backends {
                backend.restart();
            }
            sleep(lasts / 2).await;
        }
    }
}

/// A case under load, told as a line of a table.
async fn endure(case: Case, lasts: Duration, reloads: bool) -> String {
    let mut pool = Pool::new();
    let proxy = Arc::new(TestProxy::with_config(config(&pool, 0)).await);
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(ask(proxy.address(), number, Arc::clone(&stop), Arc::clone(&tally)));
        // Not all at the same moment.
        sleep(EVERY / CLIENTS as u32).await;
    }
    let reloading = reloads.then(|| {
        let texts: Vec<_> = (0..2).map(|generation| config(&pool, generation)).collect();
        let (proxy, stop) = (Arc::clone(&proxy), Arc::clone(&stop));
        tokio::spawn(async move {
            for n in 1.. {
                if stop.load(SeqCst) {
                    return n;
                }
                proxy.apply(texts[n % 2].clone()).await.expect("a good configuration");
                sleep(Duration::from_millis(300)).await;
            }
            0
        })
    });
    sleep(Duration::from_millis(500)).await;
    happen(case, &mut pool, lasts).await;
    sleep(Duration::from_millis(500)).await;
    stop.store(true, SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    if let Some(reloading) = reloading {
        assert!(reloading.await.unwrap() > 2);
    }
    eventually(|| proxy.in_flight() == 0).await;

    let tally = std::mem::take(&mut *tally.lock().unwrap());
    let seen = pool.seen.lock().unwrap();
    let twice = |kind: &str| seen.iter().filter(|(target, times)| target.starts_with(kind) && **times > 1).count();
    let mut took = tally.took.clone();
    took.sort();
    let mut line = String::new();
    write!(
        line,
        "| {case:?} | {} | {} | {} | {} | {:.0?} | {} | {} |",
        tally.gets,
        tally.get_errors.len(),
        tally.posts,
        tally.post_errors.len(),
        took[took.len() * 99 / 100],
        twice("/get"),
        twice("/post"),
    )
    .unwrap();
    if case != Case::AllDieAndComeBack {
        assert_eq!(tally.get_errors, [""; 0], "{line}");
    }
    assert_eq!(twice("/post"), 0, "{line}");
    line
}

async fn endure_all(lasts: Duration, reloads: bool) {
    println!("| case | GETs | errors | POSTs | errors | p99 | GETs seen twice | POSTs seen twice |");
    for case in CASES {
        println!("{}", endure(case, lasts, reloads).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice() {
    endure_all(Duration::from_millis(1500), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 2 minutes; FAULTS_SECONDS says how long each case lasts"]
async fn clients_do_not_notice_for_long_nor_over_reloads() {
    let seconds = std::env::var("FAULTS_SECONDS").map_or(6, |seconds| seconds.parse().expect("a number"));
    endure_all(Duration::from_secs(seconds), false).await;
    endure_all(Duration::from_secs(seconds), true).await;
}
