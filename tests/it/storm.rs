//! Anything at any moment: clients that send valid and broken requests in pieces, pipeline them and go away, and backends
//! that answer early, late, in pieces, in every framing, or break off. Every answer has to be that of its request, every body
//! what was sent, and nothing may be left behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Head, Keys, PATIENCE, Peer, Stream, TestBackend, TestProxy, eventually, soon};

/// Stands for the id of a request that something was done to.
const BROKEN: u64 = u64::MAX;

/// xorshift64*.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        dice.below(2);
        dice.below(2);
        dice
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn size(&mut self) -> usize {
        match self.below(12) {
            0 => 0,
            1..=5 => self.below(100),
            6 | 7 => self.below(5000),
            8 | 9 => self.below(60_000),
            10 => 250_000 + self.below(20_000),
            _ => self.below(900_000),
        }
    }
}

/// The body that belongs to `id`, in one direction.
fn pattern(id: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (id.wrapping_mul(131).wrapping_add(i.wrapping_mul(7)) >> 2) as u8).collect()
}

/// The body in chunks of any size.
fn chunked(body: &[u8], dice: &mut Dice, trailers: bool) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let len = (1 + dice.size()).min(rest.len());
        out.extend_from_slice(format!("{len:x}{}\r\n", if dice.one_in(5) { ";a=b" } else { "" }).as_bytes());
        out.extend_from_slice(&rest[..len]);
        out.extend_from_slice(b"\r\n");
        rest = &rest[len..];
    }
    out.extend_from_slice(if trailers { b"0\r\netag: x\r\n\r\n" } else { b"0\r\n\r\n" });
    out
}

/// Writes in pieces, with pauses. `false` when it cannot.
async fn write(stream: &mut Stream, bytes: &[u8], dice: &mut Dice) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = match dice.below(4) {
            0 => 1 + dice.below(30),
            1 => 1 + dice.below(20_000),
            _ => rest.len(),
        };
        let (piece, after) = rest.split_at(len.min(rest.len()));
        if stream.write(piece).await.is_err() {
            return false;
        }
        rest = after;
        match dice.below(16) {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            1..8 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    true
}

/// One request at a backend; `false` when the connection ends.
async fn answer(peer: &mut Peer, head: &Head) -> bool {
    let id: u64 = head.target()[1..].parse().unwrap_or(BROKEN);
    let mut dice = Dice::new(id ^ 0xBACC);
    if dice.one_in(40) {
        return false;
    }
    let early = dice.one_in(4);
    let goes_on = dice.one_in(2);
    if !early && !whole(peer, head, id).await {
        return false;
    }
    for _ in 0..dice.below(6).saturating_sub(3) {
        peer.write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    }
    let body = pattern(!id, dice.size());
    let status = ["404 Not Found", "204 No Content", "304 Not Modified", "200", "200 OK"][dice.below(30).min(4)];
    let bodiless = head.method() == "HEAD" || status.starts_with("204") || status.starts_with("304");
    let mut out = format!("HTTP/1.1 {status}\r\nx-id: {id}\r\n").into_bytes();
    let (mut keeps, mut framed) = (!dice.one_in(10), true);
    if !keeps {
        out.extend_from_slice(b"connection: close\r\n");
    }
    match dice.below(if bodiless { 2 } else { 3 }) {
        0 => {
            out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            if !bodiless {
                out.extend_from_slice(&body);
            }
        }
        1 => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            if !bodiless {
                let trailers = dice.one_in(4);
                out.extend(chunked(&body, &mut dice, trailers));
            }
        }
        _ => {
            (keeps, framed) = (false, false);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&body);
        }
    }
    if dice.one_in(30) {
        out.truncate(dice.below(out.len()));
        write(&mut peer.stream, &out, &mut dice).await;
        if dice.one_in(2) {
            peer.reset();
        }
        return false;
    }
    if framed && dice.one_in(40) {
        // A second answer to the same request.
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\nx-id: 0\r\ncontent-length: 4\r\n\r\nevil");
    }
    write(&mut peer.stream, &out, &mut dice).await && keeps && (!early || (goes_on && whole(peer, head, id).await))
}

/// Reads the body of a request, which is what its client has sent.
async fn whole(peer: &mut Peer, head: &Head, id: u64) -> bool {
    let Some(message) = peer.body(head).await else { return false };
    if id == BROKEN {
        return true;
    }
    assert!(message.body == pattern(id, message.body.len()), "the body of request {id}");
    let told = head.get("x-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    assert_eq!(message.body.len(), told, "the length of request {id}: {head:?}");
    true
}

/// Requests one after the other without waiting, and their answers. How many answers were whole.
async fn client(address: SocketAddr, seed: u64) -> usize {
    let mut dice = Dice::new(seed);
    let tcp = soon(TcpStream::connect(address)).await.expect("a connection");
    tcp.set_nodelay(true).expect("nodelay");
    let tcp = tcp.into_std().expect("a socket");
    let mut writer = Stream::new(TcpStream::from_std(tcp.try_clone().expect("its twin")).expect("a stream"));
    let mut reader = Stream::new(TcpStream::from_std(tcp).expect("a stream"));
    let (mut sent, mut asked) = (Vec::new(), Vec::new());
    let broken = dice.one_in(8);
    for n in 0..1 + dice.below(8) as u64 {
        let id = seed * 16 + n + 1;
        let method = ["GET", "HEAD", "POST", "POST", "PUT"][dice.below(5)];
        let http10 = dice.one_in(25);
        let mut head =
            format!("{method} /{}{id} HTTP/1.{}\r\nhost: a\r\n", if broken { "no" } else { "" }, u8::from(!http10));
        let mut body = Vec::new();
        if matches!(method, "POST" | "PUT") {
            let plain = pattern(id, dice.size());
            head += &format!("x-length: {}\r\n", plain.len());
            if dice.one_in(4) {
                // It does not wait for what it says it expects.
                head += "expect: 100-continue\r\n";
            }
            if http10 || dice.one_in(2) {
                head += &format!("content-length: {}\r\n", plain.len());
                body = plain;
            } else {
                head += "transfer-encoding: chunked\r\n";
                let trailers = dice.one_in(4);
                body = chunked(&plain, &mut dice, trailers);
            }
        } else if dice.one_in(10) {
            head += "connection: upgrade\r\nupgrade: nothing\r\n";
        }
        if dice.one_in(20) {
            head += "connection: close\r\n";
        }
        sent.extend_from_slice(head.as_bytes());
        sent.extend_from_slice(b"\r\n");
        sent.extend_from_slice(&body);
        asked.push((id, method));
    }
    let mut cut = broken;
    match dice.below(6) {
        _ if broken => {
            let at = dice.below(sent.len());
            sent[at] = b"\r\n x0;"[dice.below(6)];
            // What a broken request comes to is not looked at, only that it does no harm.
            asked.clear();
        }
        0 => sent.extend_from_slice(b"no HTTP\r\n\r\n"),
        1 => {
            cut = true;
            sent.truncate(dice.below(sent.len()));
        }
        _ => {}
    }
    let leaves = (cut || dice.one_in(4)).then(|| Duration::from_millis(dice.below(40) as u64));
    let resets = dice.one_in(2);
    let slow = dice.one_in(6);
    let mut whole = 0;
    let talk = async {
        let send = async {
            write(&mut writer, &sent, &mut dice).await;
            // It is the answers that end a client.
            std::future::pending::<()>().await;
        };
        let read = async {
            if broken {
                let _ = reader.rest(&mut Vec::new()).await;
            }
            for &(id, method) in &asked {
                if slow {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let Ok(response) = reader.response(method).await else { return };
                match response.header("x-id") {
                    Some(of) => assert_eq!(of, id.to_string(), "the answer to another request, seed {seed}"),
                    None => {
                        assert!([400, 408, 501, 502, 504].contains(&response.status()), "{response:?}, seed {seed}")
                    }
                }
                if response.header("x-id").is_some() {
                    assert!(response.body == pattern(!id, response.body.len()), "the body of answer {id}, seed {seed}");
                    whole += 1;
                }
            }
        };
        tokio::select! {
            () = send => {}
            () = read => {}
        }
    };
    let late = tokio::time::timeout(leaves.unwrap_or(PATIENCE), talk).await.is_err();
    assert!(!late || leaves.is_some(), "no answer, seed {seed}");
    match resets {
        true => SockRef::from(&writer.tcp).set_linger(Some(Duration::ZERO)).expect("linger"),
        false => drop(writer.tcp.shutdown().await),
    }
    whole
}

async fn storm(first: u64, lasts: Duration) {
    let backends: Vec<_> = (0..2)
        .map(|_| {
            TestBackend::scripted(async |peer| {
                while let Some(head) = peer.head().await {
                    if !answer(peer, &head).await {
                        return;
                    }
                }
            })
        })
        .collect();
    let listener = "idle_timeout = \"10s\"";
    let proxy = TestProxy::with_keys(&backends.iter().collect::<Vec<_>>(), Keys { listener, ..Keys::default() }).await;
    let (start, next, whole) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let (next, whole) = (Arc::new(next), Arc::new(whole));
    let clients = (0..12).map(|_| {
        let (next, whole, address) = (Arc::clone(&next), Arc::clone(&whole), proxy.address());
        tokio::spawn(async move {
            while start.elapsed() < lasts {
                let seed = first + next.fetch_add(1, SeqCst) as u64;
                whole.fetch_add(client(address, seed).await, SeqCst);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    eventually(|| proxy.in_flight() == 0).await;
    eventually(|| proxy.exchanges() == 0).await;
    eventually(|| proxy.connections() == [0]).await;
    let (clients, whole) = (next.load(SeqCst), whole.load(SeqCst));
    println!("{clients} clients, {whole} whole answers");
    assert!(whole > clients, "{whole} whole answers to {clients} clients");
}

#[tokio::test]
async fn every_answer_is_that_of_its_request() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("STORM_SEED").unwrap_or(1);
    storm(seed, Duration::from_secs(number("STORM_SECONDS").unwrap_or(3))).await;
}
