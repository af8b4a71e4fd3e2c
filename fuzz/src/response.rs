//! A backend that answers with any bytes in any pieces, in HTTP/1.1 or with any frames of HTTP/2, before clients of both: each of
//! two requests gets one response, well-formed, either the one that a strict reader finds in what the backend has said, or one of
//! the proxy's own; nothing that was cut short looks whole, and nothing is left for the next request.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http2::Answers;
use crate::inside::{self, Inside, Scene};
use crate::strict::{self, Message, Tail};

const TEXT: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
                    [upstream.u]\nbackends = [\"BACKEND\"]\noutlier_detection = { enabled = false }\n\
                    retry_budget = { percent = 100, per_second = 1000 }\n";

thread_local! {
    static HTTP1: Inside = Inside::new(TEXT);
    static HTTP2: Inside = Inside::new(&format!("{TEXT}protocol = \"http2\"\n"));
}

/// Has a backend answer what `data` says.
pub fn check(data: &[u8]) {
    let [kind, cuts, rest @ ..] = data else { return };
    let (cuts, rest) = rest.split_at(usize::from(cuts % 8).min(rest.len()));
    let asks = Asks { kind: *kind };
    match asks.backend_speaks_http2() {
        false => http1(rest, cuts, asks),
        true => http2(rest, cuts, asks),
    }
}

/// What the client asks for, and how.
#[derive(Clone, Copy)]
struct Asks {
    kind: u8,
}

impl Asks {
    fn backend_speaks_http2(self) -> bool {
        self.kind & 1 != 0
    }

    fn client_speaks_http2(self) -> bool {
        self.kind & 2 != 0
    }

    fn http10(self) -> bool {
        self.kind & 4 != 0
    }

    fn method(self) -> &'static str {
        ["GET", "HEAD", "POST", "GET"][usize::from(self.kind >> 3 & 3)]
    }

    fn takes_trailers(self) -> bool {
        self.kind & 32 != 0
    }
}

/// What a client has got.
struct Got {
    status: u16,
    body: Vec<u8>,
    /// Whether it looks whole.
    whole: bool,
}

impl Got {
    /// Whether it is the proxy's own: what it says when it has got nothing that it can pass on. To HEAD it says it without words.
    fn is_own(&self, asks: Asks) -> bool {
        let words = self.body.starts_with(format!("{} ", self.status).as_bytes());
        [502, 504].contains(&self.status) && (words || (asks.method() == "HEAD" && self.body.is_empty()))
    }
}

fn http1(bytes: &[u8], cuts: &[u8], asks: Asks) {
    let said = said(bytes, asks.method() == "HEAD");
    let keeps = said.as_ref().is_some_and(|said| said.whole && !said.until_close);
    let backend = {
        let (bytes, cuts) = (Rc::<[u8]>::from(bytes), Rc::<[u8]>::from(cuts));
        move |tcp: TcpStream| {
            let (bytes, cuts) = (Rc::clone(&bytes), Rc::clone(&cuts));
            async move { answer(tcp, &bytes, &cuts, keeps).await }
        }
    };
    let got = RefCell::default();
    HTTP1.with(|inside| inside.play(backend, async |scene| ask(&scene, asks, &got).await));
    for got in got.into_inner() {
        let told = || format!("{} {:?}, of {:?} in {:?}", got.status, text(&got.body), said, text(bytes));
        if got.is_own(asks) {
            continue;
        }
        // A reader may be less strict, as long as it is strict enough for what it passes on to be well-formed.
        let Some(said) = &said else { continue };
        assert_eq!(got.status, said.status(), "another response: {}", told());
        assert!(!got.whole || said.whole, "what was cut short looks whole: {}", told());
        match got.whole {
            true => assert_eq!(got.body, said.body, "another body: {}", told()),
            false => assert!(said.body.starts_with(&got.body), "another body: {}", told()),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The response that a strict reader finds.
fn said(bytes: &[u8], to_head: bool) -> Option<Message> {
    let mut at = 0;
    loop {
        let message = strict::response(bytes, at, to_head, true).ok()??;
        match message.status() {
            101 | 200.. => return Some(message),
            _ => at = message.end,
        }
    }
}

/// Answers each request with the same bytes, or the first one and then ends the connection.
async fn answer(tcp: TcpStream, bytes: &[u8], cuts: &[u8], keeps: bool) {
    let (mut from, mut to) = tcp.into_split();
    let (mut asked, mut answered) = (Vec::new(), 0);
    loop {
        let (requests, tail) = strict::requests(&asked);
        assert!(!matches!(tail, Tail::Broken(_)), "a backend got {tail:?}: {:?}", text(&asked));
        if requests.get(answered).is_some_and(|request| request.whole) {
            answered += 1;
            if !inside::send(&mut to, bytes, cuts).await || !keeps {
                break;
            }
            continue;
        }
        if !inside::read(&mut from, &mut asked).await {
            break;
        }
    }
    let _ = to.shutdown().await;
    while inside::read(&mut from, &mut asked).await {}
}

/// Asks twice, one after the other, and keeps what comes.
async fn ask(scene: &Rc<Scene>, asks: Asks, got: &RefCell<Vec<Got>>) {
    match asks.client_speaks_http2() {
        false => ask_by_http1(scene, asks, got).await,
        true => ask_by_http2(scene, asks, got).await,
    }
}

async fn ask_by_http1(scene: &Rc<Scene>, asks: Asks, got: &RefCell<Vec<Got>>) {
    let (mut from, mut to) = scene.connect();
    let (mut came, mut at) = (Vec::new(), 0);
    for _ in 0..2 {
        let method = asks.method();
        let version = if asks.http10() { "HTTP/1.0\r\nconnection: keep-alive" } else { "HTTP/1.1" };
        let te = if asks.takes_trailers() { "te: trailers\r\n" } else { "" };
        let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
        let request = format!("{method} / {version}\r\nhost: a\r\n{te}{body}");
        if to.write_all(request.as_bytes()).await.is_err() {
            break;
        }
        let (mut over, mut reset) = (false, false);
        let answer = loop {
            let told = || format!("{:?}", text(&came));
            let read =
                strict::response(&came, at, method == "HEAD", over).unwrap_or_else(|why| panic!("{why}: {}", told()));
            match read {
                Some(answer) if answer.status() < 200 && answer.status() != 101 => {
                    assert!(!asks.http10(), "informational, in HTTP/1.0: {}", told());
                    at = answer.end;
                    continue;
                }
                Some(answer) if answer.whole || over => break Some((answer, reset)),
                None if over => {
                    let rest = &came[at..];
                    // A head that was cut: its client knows.
                    assert!(rest.is_empty() || rest.len() < 8 || rest.starts_with(b"HTTP/1."), "{}", told());
                    break None;
                }
                _ => {}
            }
            match from.read_buf(&mut came).await {
                Ok(1..) => {}
                Ok(0) => over = true,
                Err(_) => (over, reset) = (true, true),
            }
        };
        let Some((answer, reset)) = answer else { break };
        // Of what was cut short, all that came is a part.
        at = if answer.whole { answer.end } else { came.len() };
        let version: &[u8] = if asks.http10() { b"HTTP/1.0" } else { b"HTTP/1.1" };
        assert_eq!(answer.parts()[0], version);
        assert_ne!(answer.status(), 101, "nobody asked for another protocol");
        assert!(asks.takes_trailers() || answer.trailers.is_empty(), "trailers that nobody takes");
        for name in ["keep-alive", "proxy-connection", "upgrade"] {
            assert!(answer.all(name).is_empty(), "{name} passed: {:?}", text(&came));
        }
        let closes = answer.all("connection").contains(&&b"close"[..]) || answer.until_close;
        // The end of a connection by a reset is no end of a body.
        let whole = answer.whole && !(answer.until_close && reset);
        got.borrow_mut().push(Got { status: answer.status(), body: answer.body.clone(), whole });
        if closes || over {
            break;
        }
    }
    let _ = to.shutdown().await;
    while inside::read(&mut from, &mut came).await {}
    let answers = got.borrow();
    let rest = &came[at..];
    assert!(
        rest.is_empty() || answers.len() < 2 && rest.starts_with(b"HTTP/1."),
        "behind the answers: {:?}",
        text(rest)
    );
}

async fn ask_by_http2(scene: &Rc<Scene>, asks: Asks, got: &RefCell<Vec<Got>>) {
    let (from, to) = scene.connect();
    let tcp = from.reunite(to).expect("halves of one");
    let (sender, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    let driven = tokio::task::spawn_local(connection);
    for _ in 0..2 {
        let Ok(mut ready) = sender.clone().ready().await else { break };
        let post = asks.method() == "POST";
        let mut request = http::Request::builder().method(asks.method()).uri("http://a/");
        if asks.takes_trailers() {
            request = request.header("te", "trailers");
        }
        let (answer, mut body) = ready.send_request(request.body(()).expect("a request"), !post).expect("a stream");
        if post {
            let _ = body.send_data(Bytes::from_static(b"body"), true);
        }
        let answer = match answer.await {
            Ok(answer) => answer,
            // It was reset: its client knows.
            Err(error) => {
                assert!(error.is_reset() && error.is_remote(), "a response that is not one of HTTP/2: {error}");
                continue;
            }
        };
        let (parts, mut body) = answer.into_parts();
        let (mut all, mut whole) = (Vec::new(), true);
        while let Some(piece) = body.data().await {
            match piece {
                Ok(piece) => {
                    let _ = body.flow_control().release_capacity(piece.len());
                    all.extend_from_slice(&piece);
                }
                Err(error) => {
                    assert!(error.is_reset() && error.is_remote(), "a body that is not one of HTTP/2: {error}");
                    whole = false;
                    break;
                }
            }
        }
        if whole {
            whole = match body.trailers().await {
                Ok(_) => true,
                Err(error) => {
                    assert!(error.is_reset() && error.is_remote(), "trailers that are none of HTTP/2: {error}");
                    false
                }
            };
        }
        got.borrow_mut().push(Got { status: parts.status.as_u16(), body: all, whole });
    }
    drop(sender);
    let _ = driven.await;
}

fn http2(data: &[u8], cuts: &[u8], asks: Asks) {
    let Ok(answers) = Answers::of(data) else { return };
    let answers = Rc::new(answers);
    let backend = {
        let (answers, cuts) = (Rc::clone(&answers), Rc::<[u8]>::from(cuts));
        move |tcp: TcpStream| {
            let (answers, cuts) = (Rc::clone(&answers), Rc::clone(&cuts));
            async move {
                let (mut from, mut to) = tcp.into_split();
                let mut asked = Vec::new();
                while !Answers::are_wanted(&asked) {
                    if !inside::read(&mut from, &mut asked).await {
                        return;
                    }
                }
                inside::send(&mut to, &answers.bytes, &cuts).await;
                let _ = to.shutdown().await;
                while inside::read(&mut from, &mut asked).await {}
            }
        }
    };
    let got = RefCell::default();
    HTTP2.with(|inside| inside.play(backend, async |scene| ask(&scene, asks, &got).await));
    for got in got.into_inner() {
        if got.is_own(asks) {
            continue;
        }
        let bodiless = asks.method() == "HEAD" || [204, 304].contains(&got.status);
        let told = || format!("{} {:?} {}, of {:#?}", got.status, text(&got.body), got.whole, answers.streams);
        assert!(answers.say(got.status, &got.body, got.whole, bodiless), "what no stream has said: {}", told());
    }
}
