//! No backend gets more than it takes, whoever finds all of them full waits in line, and nobody waits too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use isobar::config::UpstreamName;
use isobar::telemetry::metrics::{Counter, UpstreamMetrics};

use crate::harness::{Client, Keys, TestBackend, TestProxy, eventually};

/// Answers when it is let, and knows how many requests it had at a time at most.
struct Gated {
    backend: TestBackend,
    gate: Arc<Semaphore>,
    most: Arc<AtomicUsize>,
}

impl Gated {
    fn new(after: Duration) -> Self {
        Self::open(after, Semaphore::MAX_PERMITS)
    }

    /// Answers as many as are let.
    fn shut() -> Self {
        Self::open(Duration::ZERO, 0)
    }

    fn open(after: Duration, permits: usize) -> Self {
        let (gate, now, most) =
            (Arc::new(Semaphore::new(permits)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (its_gate, its_most) = (Arc::clone(&gate), Arc::clone(&most));
        let backend = TestBackend::scripted(async move |peer| {
            while peer.request().await.is_some() {
                /// Counted down also when the script is dropped.
                struct Here<'a>(&'a AtomicUsize);
                impl Drop for Here<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, SeqCst);
                    }
                }
                its_most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                let here = Here(&now);
                tokio::select! {
                    permit = its_gate.acquire() => permit.unwrap().forget(),
                    () = peer.gone() => return,
                }
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
                drop(here);
                peer.respond("200 OK", "ok").await;
            }
        });
        Self { backend, gate, most }
    }

    fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

fn limited(pool: &[&TestBackend], workers: usize, upstream: &str, tables: &str) -> String {
    let text = Keys { upstream, tables, ..Keys::default() }.text(pool);
    text.replace("workers = 1", &format!("workers = {workers}"))
}

fn waiting(proxy: &TestProxy) -> u32 {
    proxy.snapshot().upstream("u").unwrap().state.room.queue.len()
}

fn counted(proxy: &TestProxy, counter: impl Fn(&UpstreamMetrics) -> &Counter) -> u64 {
    proxy.snapshot().upstream("u").unwrap().state.metrics.sum(counter)
}

/// Sends a GET and does not wait for its answer.
async fn sent(proxy: &TestProxy) -> Client {
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client
}

/// So many that one after the other come to where they wait.
async fn in_line(proxy: &TestProxy, clients: u32) -> Vec<Client> {
    let mut line = Vec::new();
    for place in 1..=clients {
        line.push(sent(proxy).await);
        eventually(|| waiting(proxy) == place).await;
    }
    line
}

#[tokio::test]
async fn no_backend_sees_a_fifth_request_and_waiting_is_fair() {
    let pool = [Gated::new(Duration::from_millis(3)), Gated::new(Duration::from_millis(3))];
    let queue = "max_in_flight = 4\nqueue = { timeout = \"20s\" }";
    let proxy = TestProxy::with_config(limited(&[&pool[0].backend, &pool[1].backend], 2, queue, "")).await;
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let mut client = proxy.client().await;
        clients.spawn(async move {
            let mut waits = Vec::new();
            for _ in 0..30 {
                let start = Instant::now();
                assert_eq!(client.get("/").await.status(), 200);
                waits.push(start.elapsed());
            }
            waits
        });
    }
    let (mut all, mut means) = (Vec::new(), Vec::new());
    while let Some(waits) = clients.join_next().await {
        let waits = waits.unwrap();
        means.push(waits.iter().sum::<Duration>() / waits.len() as u32);
        all.extend(waits);
    }
    assert!(
        proxy.connections().len() == 2 && pool.iter().all(|it| it.most() <= 4),
        "{} {}",
        pool[0].most(),
        pool[1].most()
    );
    assert_eq!(pool.iter().map(Gated::most).max(), Some(4), "the limit is used");
    // Who came first goes first: nobody waits much longer than others, whichever worker it is at.
    all.sort_unstable();
    means.sort_unstable();
    let (median, last) = (all[all.len() / 2], all[all.len() - 1]);
    assert!(last < median * 6 + Duration::from_millis(50), "median {median:?}, longest {last:?}");
    assert!(means[63] < means[0] * 2 + Duration::from_millis(10), "by client: {:?} to {:?}", means[0], means[63]);
    assert_eq!((waiting(&proxy), counted(&proxy, |it| &it.queue_timeouts)), (0, 0));
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn ten_thousand_clients_that_go_leave_nothing_behind() {
    let gated = Gated::open(Duration::from_millis(5), 0);
    let text = limited(&[&gated.backend], 2, "max_in_flight = 4\nqueue = { timeout = \"60s\" }", "");
    let proxy = TestProxy::with_config(text).await;
    let address = proxy.address();
    let mut tasks = JoinSet::new();
    for task in 0..20_u32 {
        tasks.spawn(async move {
            for turn in 0..500_u32 {
                let mut client = Client::connect(address).await;
                client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                // Some at once, some after they have waited, some perhaps with a lease just taken.
                if (task + turn) % 7 == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                } else if turn % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    // A backend learns late of a client that has gone, and may be at work on more than it is asked: what counts is what it is
    // asked.
    let state = proxy.state("u", &gated.backend);
    while !tasks.is_empty() {
        assert!(state.in_flight() <= 4, "{}", state.in_flight());
        if tokio::time::timeout(Duration::from_millis(1), tasks.join_next()).await.is_ok_and(|it| it.unwrap().is_err())
        {
            panic!("a client failed");
        }
    }
    // Those who have gone may still wait to be accepted.
    eventually(|| proxy.counted(|it| &it.accepted) == 10_000).await;
    eventually(|| waiting(&proxy) == 0 && proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    eventually(|| gated.backend.open() == 0).await;
    assert!(proxy.counted(|it| &it.requests) >= 5_000, "hardly anybody was there");
    gated.most.store(0, SeqCst);
    // All of the limit is still there, and no turn is kept by anybody.
    gated.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        clients.spawn(async move { Client::connect(address).await.get("/").await.status() });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!((waiting(&proxy), gated.most()), (0, 4));
    eventually(|| state.in_flight() == 0).await;
}

#[tokio::test]
async fn who_came_first_goes_first_over_all_workers() {
    let gated = Gated::shut();
    let text = limited(&[&gated.backend], 3, "max_in_flight = 1\nqueue = { timeout = \"20s\" }", "");
    let proxy = TestProxy::with_config(text).await;
    let mut first = sent(&proxy).await;
    eventually(|| gated.backend.requests() == 1).await;
    let mut line = in_line(&proxy, 6).await;
    gated.gate.add_permits(1);
    assert_eq!(first.response().await.status(), 200);
    for client in &mut line {
        // Exactly one is let at a time: the next to be answered is the next in line.
        gated.gate.add_permits(1);
        assert_eq!(client.response().await.status(), 200);
    }
    let histogram: u64 =
        proxy.snapshot().upstream("u").unwrap().state.metrics.iter().flat_map(|it| it.queue_waits.counts()).sum();
    assert_eq!(histogram, 6);
}

#[tokio::test]
async fn who_waits_too_long_and_who_finds_too_many_waiting_are_told() {
    let gated = Gated::shut();
    let text = limited(&[&gated.backend], 1, "max_in_flight = 1\nqueue = { timeout = \"300ms\", length = 2 }", "");
    let proxy = TestProxy::with_config(text).await;
    let mut first = sent(&proxy).await;
    eventually(|| gated.backend.requests() == 1).await;
    let start = Instant::now();
    let mut line = in_line(&proxy, 2).await;
    let full = proxy.get("/").await;
    assert_eq!((full.status(), full.header("retry-after")), (503, Some("1")));
    assert!(full.text().contains("too many requests wait"), "{}", full.text());
    for client in &mut line {
        let late = client.response().await;
        assert_eq!((late.status(), late.header("retry-after")), (503, Some("1")));
        assert!(late.text().contains("no backend had room in time"), "{}", late.text());
    }
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!((counted(&proxy, |it| &it.queue_full), counted(&proxy, |it| &it.queue_timeouts)), (1, 2));
    gated.gate.add_permits(1);
    assert_eq!(first.response().await.status(), 200);
    assert_eq!(gated.backend.requests(), 1, "who was told so was not sent");
}

#[tokio::test]
async fn without_a_line_who_finds_all_full_is_told_at_once() {
    let gated = Gated::shut();
    let text = limited(&[&gated.backend], 1, "max_in_flight = 2\nqueue = { length = 0 }", "");
    let proxy = TestProxy::with_config(text).await;
    let _held = [sent(&proxy).await, sent(&proxy).await];
    eventually(|| gated.backend.requests() == 2).await;
    assert_eq!(proxy.get("/").await.status(), 503);
}

#[tokio::test]
async fn in_a_line_that_stands_the_adaptive_order_serves_who_came_last() {
    let gated = Gated::shut();
    let queue = "max_in_flight = 1\nqueue = { timeout = \"20s\", order = \"adaptive\", target = \"1900ms\", interval = \"2s\" }";
    let proxy = TestProxy::with_config(limited(&[&gated.backend], 2, queue, "")).await;
    let mut first = sent(&proxy).await;
    eventually(|| gated.backend.requests() == 1).await;
    let mut early = in_line(&proxy, 1).await;
    tokio::time::sleep(Duration::from_millis(1_400)).await;
    let mut middle = sent(&proxy).await;
    eventually(|| waiting(&proxy) == 2).await;
    // One waits for the interval at most and not for the timeout, and by then the line has stood for so long.
    assert_eq!(early[0].response().await.status(), 503);
    let mut last = sent(&proxy).await;
    eventually(|| waiting(&proxy) == 2).await;
    gated.gate.add_permits(2);
    assert_eq!(first.response().await.status(), 200);
    assert_eq!(last.response().await.status(), 200);
    eventually(|| gated.backend.requests() == 3).await;
    gated.gate.add_permits(1);
    assert_eq!(middle.response().await.status(), 200);
}

#[tokio::test]
async fn those_in_line_stay_there_over_reloads_and_get_what_a_reload_gives() {
    let gated = Gated::shut();
    let text = |limit: &str, more: &str| {
        limited(&[&gated.backend], 2, &format!("max_in_flight = {limit}\nqueue = {{ timeout = \"25s\" }}{more}"), "")
    };
    let proxy = TestProxy::with_config(text("2", "")).await;
    let mut clients = vec![sent(&proxy).await, sent(&proxy).await];
    eventually(|| gated.backend.requests() == 2).await;
    clients.extend(in_line(&proxy, 6).await);
    // The same upstream, and a changed one on the same state.
    proxy.apply(text("2", "") + "\n[[route]]\npath = \"/x\"\nrespond = { status = 204 }\n").await.unwrap();
    proxy.apply(text("2", "\nretries = 1")).await.unwrap();
    assert_eq!((waiting(&proxy), proxy.in_flight(), gated.backend.requests()), (6, 2, 2));
    // Raised, those are served that have waited.
    proxy.apply(text("4", "")).await.unwrap();
    eventually(|| gated.backend.requests() == 4 && waiting(&proxy) == 4).await;
    // Lowered, nobody is served before enough have ended, though all in line came under the higher limit.
    proxy.apply(text("1", "")).await.unwrap();
    gated.gate.add_permits(3);
    eventually(|| proxy.in_flight() == 1).await;
    assert_eq!((waiting(&proxy), gated.backend.requests()), (4, 4));
    // Without a limit all go.
    proxy.apply(text("\"unlimited\"", "").replace("queue = ", "# ")).await.unwrap();
    eventually(|| gated.backend.requests() == 8).await;
    gated.gate.add_permits(5);
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(gated.most(), 5);
    eventually(|| proxy.in_flight() == 0).await;
    assert_eq!(proxy.snapshot().upstream("u").unwrap().state.name, UpstreamName::from("u"));
}

#[tokio::test]
async fn a_retry_respects_limits_and_gives_up_its_place_before_it_waits() {
    // Each request goes to the one that refuses first or second; the other takes one at a time.
    let (refusing, gated) = (TestBackend::refusing(), Gated::new(Duration::from_millis(2)));
    let text = limited(&[&refusing, &gated.backend], 2, "max_in_flight = 1\nqueue = { timeout = \"20s\" }", "");
    let proxy = TestProxy::with_config(text).await;
    let address = proxy.address();
    let mut clients = JoinSet::new();
    for _ in 0..30 {
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            for _ in 0..10 {
                assert_eq!(client.get("/").await.status(), 200);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!((gated.most(), gated.backend.requests()), (1, 300));
    eventually(|| proxy.in_flight() == 0 && waiting(&proxy) == 0).await;
}

#[tokio::test]
async fn a_backend_has_its_own_limit_where_it_has_one() {
    let (a, b) = (Gated::shut(), Gated::shut());
    let own = format!(
        "backends = [\"{}\", {{ address = \"{}\", max_in_flight = 3 }}]",
        a.backend.address(),
        b.backend.address()
    );
    let text = limited(&[], 1, "max_in_flight = 1", "").replace("backends = []", &own);
    let proxy = TestProxy::with_config(text).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(sent(&proxy).await);
    }
    eventually(|| (a.backend.requests(), b.backend.requests()) == (1, 3)).await;
    held.push(sent(&proxy).await);
    eventually(|| waiting(&proxy) == 1).await;
}

#[tokio::test]
async fn there_are_never_more_connections_than_may_be_over_all_workers() {
    let gated = Gated::new(Duration::from_millis(1));
    let text = limited(&[&gated.backend], 3, "max_connections = 2\nqueue = { timeout = \"20s\" }\nretries = 0", "");
    let proxy = TestProxy::with_config(text).await;
    let state = proxy.state("u", &gated.backend);
    let address = proxy.address();
    let mut clients = JoinSet::new();
    for _ in 0..24 {
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            for _ in 0..20 {
                assert_eq!(client.get("/").await.status(), 200);
            }
        });
    }
    let mut most = 0;
    while clients.try_join_next().map(Result::unwrap).is_some() || !clients.is_empty() {
        most = most.max(state.connections());
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    assert_eq!((most, gated.most()), (2, 2));
    assert_eq!(gated.backend.requests(), 480);
    // All idle at some worker; each of the others gets one all the same.
    for _ in 0..12 {
        assert_eq!(proxy.get("/").await.status(), 200);
        assert!(state.connections() <= 2);
    }
    eventually(|| gated.backend.open() == state.connections() as usize).await;
}

#[tokio::test]
async fn the_adaptive_limit_holds_for_all_backends_together() {
    let (a, b) = (Gated::shut(), Gated::shut());
    let limit = "adaptive_limit = { initial = 3, min = 3, max = 3 }\nqueue = { timeout = \"20s\" }";
    let proxy = TestProxy::with_config(limited(&[&a.backend, &b.backend], 1, limit, "")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(sent(&proxy).await);
    }
    eventually(|| a.backend.requests() + b.backend.requests() == 3).await;
    held.extend(in_line(&proxy, 2).await);
    a.gate.add_permits(10);
    b.gate.add_permits(10);
    for client in &mut held {
        assert_eq!(client.response().await.status(), 200);
    }
    let state = Arc::clone(&proxy.snapshot().upstream("u").unwrap().state);
    eventually(|| state.room.in_flight.in_use() == 0).await;
    assert_eq!(state.adaptive_limit(), 3);
}
