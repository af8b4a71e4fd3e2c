//! Counts come back by dropping: whatever a client does at whatever moment, and whatever a backend does to it, nothing stays
//! counted as in flight.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use isobar::telemetry::metrics::{Counter, ListenerMetrics};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Client, Peer, TestBackend, TestProxy, backends, eventually};

/// What a client asks for. The target tells the backend how to answer.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Get,
    /// With a body of so many bytes and their length.
    Post(usize),
    /// The same where it may be sent again, if it is short enough to be kept.
    Put(usize),
    /// With a body in chunks of so many bytes.
    Chunked(usize),
    /// For another protocol, with the first bytes of it at once.
    Upgrade,
    /// Where no connection can be made: neither accepted nor refused.
    Unreachable,
    /// Where connections are refused.
    Refused,
}

/// How a backend answers.
#[derive(Clone, Copy, Debug)]
struct Answer {
    think_ms: u64,
    /// Of 30 000 bytes, how many are sent before the end.
    bytes: usize,
    end: End,
}

/// How a backend, or a client, ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As it should: all of it is sent, or read.
    Well,
    /// The connection is closed.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing further happens. For a client: it sends no more and waits.
    Stall,
}

/// A client from its first byte to its end.
#[derive(Clone, Debug)]
struct Plan {
    ask: Ask,
    answer: Answer,
    /// Requests that it sends and reads well before this one.
    before: usize,
    /// Which part of the request's bytes is sent, in 1/1000.
    sent: usize,
    /// In pieces of this size.
    piece: usize,
    /// Bytes of the answer that are read before the end.
    read: usize,
    /// How long it waits before it ends.
    wait_ms: u64,
    end: End,
}

const WHOLE: usize = 30_000;

fn plan() -> impl Strategy<Value = Plan> {
    let ask = prop_oneof![
        4 => Just(Ask::Get),
        2 => (1..60_000_usize).prop_map(Ask::Post),
        3 => (1..60_000_usize).prop_map(Ask::Put),
        2 => (1..60_000_usize).prop_map(Ask::Chunked),
        2 => Just(Ask::Upgrade),
        1 => Just(Ask::Unreachable),
        1 => Just(Ask::Refused),
    ];
    let end = || prop_oneof![3 => Just(End::Well), 2 => Just(End::Close), 2 => Just(End::Reset), 1 => Just(End::Stall)];
    let bytes = prop_oneof![Just(0), 1..WHOLE];
    let answer = (0..12_u64, bytes, end()).prop_map(|(think_ms, bytes, end)| Answer { think_ms, bytes, end });
    let sent = prop_oneof![3 => Just(1000_usize), 1 => 0..1000_usize];
    let read = prop_oneof![Just(0_usize), 1..200_usize, 1..WHOLE];
    (ask, answer, 0..3_usize, sent, prop_oneof![Just(usize::MAX), 1..3000_usize], read, 0..15_u64, end()).prop_map(
        |(ask, answer, before, sent, piece, read, wait_ms, end)| Plan {
            ask,
            answer,
            before,
            sent,
            piece,
            read,
            wait_ms,
            end,
        },
    )
}

impl Plan {
    fn request(&self) -> Vec<u8> {
        let Answer { think_ms, bytes, end } = self.answer;
        let target = format!("think={think_ms}&bytes={bytes}&end={end:?}");
        let head = |method: &str, path: &str, more: &str| {
            format!("{method} {path}?{target} HTTP/1.1\r\nhost: test\r\n{more}\r\n").into_bytes()
        };
        match self.ask {
            Ask::Get => head("GET", "/", ""),
            Ask::Unreachable => head("GET", "/unreachable", ""),
            Ask::Refused => head("GET", "/refused", ""),
            Ask::Upgrade => {
                [&head("GET", "/", "connection: upgrade\r\nupgrade: echo\r\n")[..], b"first bytes"].concat()
            }
            Ask::Post(len) => [head("POST", "/", &format!("content-length: {len}\r\n")), vec![b'x'; len]].concat(),
            Ask::Put(len) => [head("PUT", "/", &format!("content-length: {len}\r\n")), vec![b'x'; len]].concat(),
            Ask::Chunked(size) => {
                let mut request = head("POST", "/", "transfer-encoding: chunked\r\n");
                for _ in 0..3 {
                    request.extend(format!("{size:x}\r\n{}\r\n", "y".repeat(size)).bytes());
                }
                [request, b"0\r\n\r\n".to_vec()].concat()
            }
        }
    }

    async fn follow(self, address: SocketAddr) {
        let mut client = Client::connect(address).await;
        for _ in 0..self.before {
            assert_eq!(client.get("/?think=0&bytes=30000&end=Well").await.body.len(), WHOLE);
        }
        let request = self.request();
        let sent = request.len() * self.sent / 1000;
        for piece in request[..sent].chunks(self.piece) {
            // The other side may have had enough.
            let taken = tokio::time::timeout(Duration::from_secs(5), client.stream.write(piece)).await;
            if !matches!(taken, Ok(Ok(()))) {
                break;
            }
        }
        let read =
            async { while client.stream.buffer.len() < self.read && matches!(client.stream.more().await, Ok(true)) {} };
        let _ = tokio::time::timeout(Duration::from_millis(self.wait_ms + 20), read).await;
        tokio::time::sleep(Duration::from_millis(self.wait_ms)).await;
        match self.end {
            End::Close => {}
            End::Reset => client.reset(),
            End::Well => {
                let all = async { while matches!(client.stream.more().await, Ok(true)) {} };
                let _ = tokio::time::timeout(Duration::from_millis(100), all).await;
            }
            End::Stall => {
                client.finish_if_open().await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    }
}

impl Client {
    /// Sends no more, where the other side has not ended the connection already.
    async fn finish_if_open(&mut self) {
        use tokio::io::AsyncWriteExt;
        let _ = self.stream.tcp.shutdown().await;
    }
}

/// A backend that does as the target says.
async fn as_told(peer: &mut Peer) {
    while let Some(head) = peer.head().await {
        let value = |key: &str| {
            let from = head.target().find(key).map(|at| &head.target()[at + key.len()..]).unwrap_or_default();
            from.split('&').next().unwrap_or_default()
        };
        let think = value("think=").parse().unwrap_or(0);
        let bytes: usize = value("bytes=").parse().unwrap_or(WHOLE);
        let end = value("end=");
        let upgrade = head.get("upgrade").is_some();
        // One that means to end early does not wait for the body either.
        if end == "Well" && !upgrade && peer.body(&head).await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(think)).await;
        if upgrade {
            peer.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
            peer.write(vec![b't'; bytes]).await;
        } else if end == "Well" {
            peer.respond("200 OK", vec![b'z'; WHOLE]).await;
            continue;
        } else if bytes > 0 {
            peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {WHOLE}\r\n\r\n")).await;
            peer.write(vec![b'z'; bytes]).await;
        }
        match end {
            "Reset" => return peer.reset(),
            "Close" => return,
            _ => return peer.gone().await,
        }
    }
}

/// A socket whose queue is full: the kernel lets further clients wait.
struct Unreachable {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Unreachable {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok();
        let queued = std::iter::from_fn(connect).take(64).collect();
        Self { address, _listener: socket.into(), _queued: queued }
    }
}

#[test]
fn nothing_stays_counted_whatever_is_cancelled_when() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (a, b) = (TestBackend::scripted(as_told), TestBackend::scripted(as_told));
    let (refusing, unreachable) = (TestBackend::refusing(), Unreachable::new());
    // Each version has other backends, so that requests outlive the roster that they were picked from.
    let pools = [&[&a, &b][..], &[&a], &[&b], &[&b, &a]].map(backends);
    let version = |n: usize| {
        format!(
            r#"
        workers = 2
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "told"
        timeouts = {{ response_head = "300ms", body_idle = "300ms", tunnel_idle = "300ms" }}
        [[route]]
        path = "/unreachable"
        upstream = "unreachable"
        [[route]]
        path = "/refused"
        upstream = "refused"
        [upstream.told]
        strategy = "least_connections"
        backends = {}
        retries = {{ attempt_timeout = "{}ms", body_buffer = "30KiB", hedge = {{ percentile = 50, budget_percent = 100 }} }}
        [upstream.unreachable]
        connect_timeout = "60ms"
        backends = ["{}"]
        [upstream.refused]
        backends = {}
        "#,
            pools[n % pools.len()],
            [20, 100][n % 2],
            unreachable.address,
            backends(&[&refusing])
        )
    };
    let proxy = runtime.block_on(TestProxy::with_config(version(0)));
    let listener = proxy.handle().listeners()[0].clone();
    let states = [proxy.state("told", &a), proxy.state("told", &b)];
    // The moments differ from run to run: there is nothing to shrink.
    let config = Config {
        cases: std::env::var("PROPTEST_CASES").map_or(72, |cases| cases.parse().unwrap()),
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    let run = |(plans, reloads): (Vec<Plan>, Vec<(u64, usize)>)| {
        runtime.block_on(async {
            let mut clients = tokio::task::JoinSet::new();
            for plan in plans {
                clients.spawn(plan.follow(proxy.address()));
            }
            for (after_ms, n) in reloads {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                proxy.apply(version(n)).await.unwrap();
            }
            while let Some(ended) = clients.join_next().await {
                ended.unwrap();
            }
            eventually(|| proxy.in_flight() == 0 && proxy.connections() == [0, 0]).await;
            eventually(|| states.iter().all(|state| state.in_flight() == 0)).await;
            eventually(|| listener.open.load(Relaxed) == 0).await;
            let sum = |counter: fn(&ListenerMetrics) -> &Counter| proxy.counted(counter);
            eventually(|| sum(|it| &it.requests) == sum(|it| &it.ended)).await;
            eventually(|| sum(|it| &it.accepted) == sum(|it| &it.closed)).await;
            eventually(|| sum(|it| &it.tunnels_opened) == sum(|it| &it.tunnels_closed)).await;
        });
        Ok(())
    };
    let reloads = prop::collection::vec((0..20_u64, 0..pools.len()), 0..4);
    TestRunner::new(config).run(&(prop::collection::vec(plan(), 1..24), reloads), run).unwrap();

    // It was not all for nothing. How often each is so is chance: 15 retries, give or take 4.
    assert!(proxy.counted(|it| &it.tunnels_opened) > 5 && proxy.snapshot().generation > 5);
    assert!(states.iter().map(|state| state.metrics.sum(|it| &it.broken)).sum::<u64>() > 5);
    let told = proxy.snapshot().upstream("told").unwrap().state.clone();
    let retries = isobar::telemetry::metrics::UpstreamMetrics::all_retries(&told.metrics);
    assert!(retries > 0);
    let unreached = proxy.snapshot().upstream("unreachable").unwrap().roster().backends()[0].state.clone();
    assert!(unreached.metrics.sum(|it| &it.connect_failures) > 0, "connections that nobody accepts were waited for");
}
