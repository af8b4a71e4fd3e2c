//! The file is rewritten while clients ask and tunnels carry: each request is answered once, and no tunnel is cut.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::harness::{Client, Scratch, TestBackend, TestProxy, eventually, soon};

const CLIENTS: usize = 200;
const TUNNELS: usize = 20;
const BACKENDS: usize = 4;

/// How often each backend has seen each request.
type Seen = Arc<Mutex<HashMap<String, u32>>>;

/// Notes the target of each request and answers with it; echoes in a tunnel.
fn noting(seen: &Seen) -> TestBackend {
    let seen = Arc::clone(seen);
    TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            let target = message.head.target().to_owned();
            if message.head.get("upgrade").is_none() {
                *seen.lock().unwrap().entry(target.clone()).or_default() += 1;
                peer.respond("200 OK", target).await;
                continue;
            }
            peer.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
            loop {
                let bytes = std::mem::take(&mut peer.stream.buffer);
                peer.write(bytes).await;
                if !matches!(peer.stream.more().await, Ok(true)) {
                    return;
                }
            }
        }
    })
}

/// The `n`th version: strategies, weights, backends, routes, upstreams and settings come and go, each with a rhythm of its
/// own, so that they meet in all combinations.
fn version(n: usize, pool: &[TestBackend]) -> String {
    const STRATEGIES: [&str; 6] =
        ["round_robin", "weighted_round_robin", "random", "weighted_random", "least_connections", "power_of_two"];
    let strategy = STRATEGIES[n % STRATEGIES.len()];
    let weighs = matches!(strategy, "weighted_round_robin" | "weighted_random" | "least_connections");
    let backend = |i: usize| match weighs {
        true => format!("{{ address = \"{}\", weight = {} }}", pool[i].address(), 1 + (n + i) % 3),
        false => format!("\"{}\"", pool[i].address()),
    };
    // Two to four of them, beginning anywhere.
    let list: Vec<_> = (0..2 + n / 2 % 3).map(|i| backend((n + i) % BACKENDS)).collect();
    let mut text = format!(
        "workers = 2\ndrain_limit = \"60s\"\n[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\nmax_headers = {max}\n\
         [[route]]\nupstream = \"u\"\n[upstream.u]\nstrategy = \"{strategy}\"\nretries = {retries}\nbackends = [{list}]\n\
         pool = {{ max_idle = {idle} }}\n",
        name = if n % 5 == 4 { "other" } else { "web" },
        max = 60 + n % 7,
        retries = n % 3,
        list = list.join(", "),
        idle = [64, 1, 0, 16][n / 3 % 4],
    );
    if n % 3 == 1 {
        // Some of the requests go by another route, to an upstream of its own.
        let address = pool[n % BACKENDS].address();
        write!(
            text,
            "[[route]]\nlisteners = [\"{}\"]\npath_prefix = \"/1\"\nupstream = \"v{}\"\n[upstream.v{}]\nbackends = [\"{address}\"]\n",
            if n % 5 == 4 { "other" } else { "web" },
            n % 2,
            n % 2,
        )
        .unwrap();
    }
    text
}

/// Asks until it is told to stop, and tells what it asked for.
async fn ask(mut client: Client, number: usize, pause: Duration, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut asked = Vec::new();
    while !stop.load(SeqCst) {
        let target = format!("/{}/{number}/{}", asked.len() % 2, asked.len());
        if asked.len() % 3 == 2 {
            client.send(format!("POST {target} HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello")).await;
        } else {
            client.send(format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        }
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (200, &*target));
        assert_eq!(response.header("connection"), None, "kept connections stay");
        asked.push(target);
        tokio::time::sleep(pause).await;
    }
    asked
}

async fn tunnel(mut client: Client, pause: Duration, stop: Arc<AtomicBool>) -> usize {
    client.send("GET /tunnel HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 101);
    let mut echoes = 0;
    while !stop.load(SeqCst) {
        let text = format!("message {echoes}");
        client.send(&text).await;
        assert_eq!(client.exact(text.len()).await, text.as_bytes(), "a tunnel carries to the end");
        echoes += 1;
        tokio::time::sleep(pause).await;
    }
    echoes
}

/// How a rewritten file comes to be applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Applied {
    /// By its being watched, which takes half a second.
    Noticed,
    /// By being asked to, as often as one likes; the watching goes on beside that.
    Asked,
}

/// Rewrites the file so often, `every` so often, and sees each version served.
async fn rewritten(times: usize, every: Duration, applied: Applied, pause: Duration) {
    let seen = Seen::default();
    let pool: Vec<_> = (0..BACKENDS).map(|_| noting(&seen)).collect();
    let dir = Scratch::new();
    let path = dir.write("lb.toml", version(0, &pool));
    let proxy = TestProxy::with_file(&path);
    let stop = Arc::new(AtomicBool::new(false));
    let (mut clients, mut tunnels) = (JoinSet::new(), JoinSet::new());
    for number in 0..CLIENTS {
        clients.spawn(ask(proxy.client().await, number, pause, Arc::clone(&stop)));
    }
    for _ in 0..TUNNELS {
        tunnels.spawn(tunnel(proxy.client().await, pause, Arc::clone(&stop)));
    }
    eventually(|| proxy.counted(|it| &it.tunnels_opened) == TUNNELS as u64).await;

    let start = Instant::now();
    for n in 1..=times {
        // By turns as an editor that writes in place, and as one that renames.
        match n % 2 {
            0 => drop(dir.write("lb.toml", version(n, &pool))),
            _ => std::fs::rename(dir.write("lb.toml~", version(n, &pool)), &path).unwrap(),
        }
        match applied {
            Applied::Noticed => eventually(|| proxy.snapshot().generation > n as u64).await,
            Applied::Asked => drop(soon(proxy.handle().reload()).await.unwrap()),
        }
        assert_eq!(proxy.handle().status().last_error, None);
        tokio::time::sleep_until((start + every * n as u32).into()).await;
    }
    let took = start.elapsed();
    stop.store(true, SeqCst);

    // None failed, or a client had panicked; none was lost; none was sent twice.
    let mut asked = BTreeMap::new();
    while let Some(targets) = soon(clients.join_next()).await {
        for target in targets.unwrap() {
            assert_eq!(asked.insert(target, 1), None);
        }
    }
    let mut echoes = 0;
    while let Some(count) = soon(tunnels.join_next()).await {
        echoes += count.unwrap();
    }
    let seen: BTreeMap<_, _> = std::mem::take(&mut *seen.lock().unwrap()).into_iter().collect();
    assert!(asked == seen, "{} asked for, {} seen", asked.len(), seen.len());
    println!(
        "{times} rewrites in {took:.1?}: {} requests, {echoes} echoes, 0 failed, 0 lost, 0 duplicated",
        asked.len()
    );
    assert!(asked.len() > 10 * times && echoes > times, "hardly any load");

    let connections = (CLIENTS + TUNNELS) as u64;
    assert_eq!(proxy.counted(|it| &it.accepted), connections, "nobody had to connect again");
    assert_eq!(proxy.counted(|it| &it.requests), asked.len() as u64 + TUNNELS as u64);
    assert!(proxy.handle().status().reloads_applied >= times as u64);
    assert_eq!(proxy.handle().status().reloads_failed, 0);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && proxy.connections() == [0, 0]).await;
    assert_eq!(proxy.counted(|it| &it.tunnels_closed), TUNNELS as u64);
}

#[tokio::test]
async fn loses_nothing_in_four_seconds() {
    rewritten(8, Duration::from_millis(500), Applied::Noticed, Duration::from_millis(60)).await;
}

#[tokio::test]
#[ignore = "takes 30 s"]
async fn loses_nothing_over_a_hundred_rewrites() {
    rewritten(100, Duration::from_millis(300), Applied::Asked, Duration::from_millis(20)).await;
}
