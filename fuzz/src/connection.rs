//! A whole client connection, fed with any bytes in any pieces, before a backend that looks closely: it gets no request that a
//! strict reader does not find in what the client has sent, each of them once, unambiguous and unchanged; each answer is that of
//! its request; and when the connection is over nothing is counted any more.
//!
//! The first byte says which protocol the client speaks: HTTP/1.1, in which all other bytes are what it sends (they may be those of
//! HTTP/2 as well), or HTTP/2, whose frames are made of them, so that it is known what each stream asks for.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use isobar::target::{authority, path, raw_target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http2;
use crate::inside::{self, Inside};
use crate::strict::{self, Message, Tail};

thread_local! {
    static INSIDE: Inside = Inside::new(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npath = \"/fixed\"\nrespond = { status = 200, body = \"fixed\" }\n\
         [[route]]\nupstream = \"u\"\n[upstream.u]\nbackends = [\"BACKEND\"]\n",
    );
}

/// Has a client send what `data` says.
pub fn check(data: &[u8]) {
    let [kind, manner, cuts, rest @ ..] = data else { return };
    let (cuts, rest) = rest.split_at(usize::from(cuts % 8).min(rest.len()));
    match kind % 2 {
        0 => http1(rest, cuts, Manner(*manner)),
        _ => http2(rest, cuts, Manner(*manner)),
    }
}

/// How the backend answers: a bit each, turned by one for each request.
#[derive(Clone, Copy)]
struct Manner(u8);

impl Manner {
    fn of(self, number: usize) -> u8 {
        self.0.rotate_left(number as u32 % 8)
    }
}

/// A request as the backend has got it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) message: Message,
    /// What came behind the agreement to another protocol.
    pub(crate) tunnelled: Option<Vec<u8>>,
}

type Record = Rc<RefCell<Vec<Seen>>>;

/// Reads requests strictly, and answers each with its number.
async fn backend(mut tcp: TcpStream, record: Record, manner: Manner) {
    let mut bytes = Vec::new();
    // The first of these requests in the record.
    let mut places: Vec<usize> = Vec::new();
    let mut answered = 0;
    loop {
        let (requests, tail) = strict::requests(&bytes);
        let told = || String::from_utf8_lossy(&bytes).into_owned();
        assert!(!matches!(tail, Tail::Broken(_) | Tail::Http2), "a backend got {tail:?}: {}", told());
        assert!(requests.len() <= answered + 1, "requests before the answer to the one before: {}", told());
        for (index, message) in requests.iter().enumerate() {
            let seen = Seen { message: message.clone(), tunnelled: None };
            match places.get(index) {
                Some(&place) => record.borrow_mut()[place] = seen,
                None => {
                    places.push(record.borrow().len());
                    record.borrow_mut().push(seen);
                }
            }
        }
        if let Some(message) = requests.get(answered) {
            let place = places[answered];
            let manner = manner.of(place);
            let early = manner & 1 != 0;
            if message.whole || early {
                answered += 1;
                let switches = manner & 2 != 0 && !message.all("upgrade").is_empty();
                let (answer, closes) = answer(message, place, manner, switches);
                let _ = tcp.write_all(&answer).await;
                if switches {
                    let mut rest = bytes[message.end..].to_vec();
                    let _ = tcp.read_to_end(&mut rest).await;
                    record.borrow_mut()[place].tunnelled = Some(rest);
                    return;
                }
                if closes {
                    let _ = tcp.shutdown().await;
                    // What is still sent is part of what is looked at, but nothing behind it is a request.
                    let mut rest = Vec::new();
                    let _ = tcp.read_to_end(&mut rest).await;
                    let before = requests.len();
                    bytes.extend_from_slice(&rest);
                    let (requests, tail) = strict::requests(&bytes);
                    assert!(!matches!(tail, Tail::Broken(_)), "a backend got {tail:?}");
                    assert_eq!(requests.len(), before, "a request on a connection that the backend has closed");
                    record.borrow_mut()[place].message = requests[before - 1].clone();
                    return;
                }
                continue;
            }
        }
        if !matches!(tcp.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    }
}

/// The answer to a request, and whether its connection ends with it.
fn answer(message: &Message, place: usize, manner: u8, switches: bool) -> (Vec<u8>, bool) {
    let mut head = String::new();
    if manner & 4 != 0 {
        head += "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    }
    if switches {
        head += &format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\nx-seen: {place}\r\n\r\n"
        );
        return (head.into_bytes(), false);
    }
    let closes = manner & 8 != 0;
    let close = if closes { "connection: close\r\n" } else { "" };
    let bodiless = message.parts()[0] == b"HEAD";
    let body = format!("answer {place}");
    let (status, framing, framed) = match manner >> 4 & 3 {
        0 => ("200 OK", format!("content-length: {}\r\n", body.len()), body),
        1 => (
            "404 Not Found",
            "transfer-encoding: chunked\r\n".into(),
            format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        ),
        2 if closes => ("200 OK", String::new(), body),
        2 => ("304 Not Modified", String::new(), String::new()),
        _ => ("204 No Content", String::new(), String::new()),
    };
    let framed = if bodiless { String::new() } else { framed };
    head += &format!("HTTP/1.1 {status}\r\nx-seen: {place}\r\n{close}{framing}\r\n{framed}");
    (head.into_bytes(), closes)
}

fn http1(bytes: &[u8], cuts: &[u8], manner: Manner) {
    let (asked, tail) = strict::requests(bytes);
    let record = Record::default();
    let mut came = Vec::new();
    let play = {
        let record = Rc::clone(&record);
        move |tcp| backend(tcp, Rc::clone(&record), manner)
    };
    INSIDE.with(|inside| {
        inside.play(play, async |scene| {
            let (mut from, mut to) = scene.connect();
            inside::send(&mut to, bytes, cuts).await;
            let awaited = asked.iter().filter(|asked| asked.whole).count();
            if tail != Tail::Http2 {
                // Who closes before its answers are there goes without them.
                while answers(&came, &asked, false).0.len() < awaited && !tunnels(&came, &asked) {
                    if !inside::read(&mut from, &mut came).await {
                        break;
                    }
                }
            }
            let _ = to.shutdown().await;
            while inside::read(&mut from, &mut came).await {}
        });
    });
    let record = record.borrow();
    if tail == Tail::Http2 {
        return;
    }
    let told = || format!("{}\nasked: {asked:#?}, {tail:?}\ngot: {record:#?}\ncame: {}", text(bytes), text(&came));
    // What the backend got, in the order of what was asked for.
    let mut next = 0;
    let mut of = Vec::new();
    for seen in record.iter() {
        let fits = |asked: &&Message| same(asked, seen);
        let Some(at) = asked[next..].iter().position(|asked| fits(&asked)) else {
            panic!("a request that nobody sent: {seen:?}, in {}", told());
        };
        of.push(next + at);
        next += at + 1;
    }
    let (answers, over) = answers(&came, &asked, true);
    assert!(over.is_empty(), "more than answers: {}", told());
    // One more tells what is wrong with what is no request.
    let known = asked.len() + usize::from(tail != Tail::Nothing);
    assert!(answers.len() <= known, "{} answers to {} requests: {}", answers.len(), asked.len(), told());
    for (at, answer) in answers.iter().enumerate() {
        if let [place] = answer.all("x-seen")[..] {
            let place: usize = str::from_utf8(place).ok().and_then(|text| text.parse().ok()).expect("a number");
            assert_eq!(of.get(place), Some(&at), "the answer to another request: {}", told());
            let body = format!("answer {place}");
            assert!(!answer.whole || answer.body.is_empty() || answer.body == body.as_bytes(), "{}", told());
        }
        let closes = answer.all("connection").contains(&&b"close"[..]);
        assert!(!closes || at + 1 == answers.len(), "an answer behind the last one: {}", told());
    }
    for (seen, &at) in record.iter().zip(&of) {
        if let Some(tunnelled) = &seen.tunnelled {
            assert_eq!(
                seen.message.end + tunnelled.len(),
                seen.message.end + bytes.len() - asked[at].end,
                "{}",
                told()
            );
            assert_eq!(tunnelled, &bytes[asked[at].end..], "{}", told());
            assert_eq!(at, *of.last().expect("itself"), "a request out of a tunnel: {}", told());
        }
    }
}

fn text(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

/// Whether the backend got what was asked for, and no other.
fn same(asked: &Message, seen: &Seen) -> bool {
    let got = &seen.message;
    let [method, target, _] = asked.parts()[..] else { return false };
    let [got_method, got_target, b"HTTP/1.1"] = got.parts()[..] else { return false };
    let (target, host) = origin(target);
    let host = host.map_or_else(|| asked.all("host").first().map(|host| host.to_vec()), Some);
    let body = match got.whole {
        true => asked.whole && asked.body == got.body,
        false => asked.body.starts_with(&got.body),
    };
    method == got_method
        && forwarded(&target).is_some_and(|target| target == got_target)
        && body
        // HTTP/1.0 need not name one; the upstream's name is what stands there then, and where it is empty.
        && got.all("host") == [canonical(&host.unwrap_or_default()).unwrap_or_default()]
        && got.all("x-forwarded-for") == [b"127.0.0.1"]
}

/// What a host is to the backend; `None` if it is none, and refused.
pub(crate) fn canonical(host: &[u8]) -> Option<Vec<u8>> {
    if host.is_empty() { Some(b"u".to_vec()) } else { authority::canonical(host).map(String::into_bytes) }
}

/// What a target is to the backend: the same but for escapes of what needs none.
pub(crate) fn forwarded(target: &[u8]) -> Option<Vec<u8>> {
    let end = target.iter().position(|&byte| byte == b'?').unwrap_or(target.len());
    let (sent, query) = target.split_at(end);
    // What only a client may leave as it is, it leaves in a path of which nothing else is to be changed.
    let escaped = match http::Uri::try_from(target) {
        Ok(_) => str::from_utf8(sent).ok()?.to_owned(),
        Err(_) => raw_target::escaped(&Bytes::copy_from_slice(target))?.0.split('?').next()?.to_owned(),
    };
    let tidy = path::tidy(&escaped).ok()?;
    let path = if tidy == escaped && str::from_utf8(sent).is_ok() { sent } else { tidy.as_bytes() };
    Some([path, query].concat())
}

/// The target in origin form, and the host that is in it (RFC 9112 §3.2). What stands behind `#` is nobody's.
pub(crate) fn origin(target: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let target = target.split(|&byte| byte == b'#').next().unwrap_or_default();
    let text = target.to_ascii_lowercase();
    let Some(start) = ["http://", "https://"].into_iter().find(|scheme| text.starts_with(scheme.as_bytes())) else {
        // A query alone.
        let slash = if target.starts_with(b"?") { &b"/"[..] } else { b"" };
        return ([slash, target].concat(), None);
    };
    let rest = &target[start.len()..];
    let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let slash = if path.starts_with(b"/") { &b""[..] } else { b"/" };
    ([slash, path].concat(), Some(host.to_vec()))
}

/// The answers in what has come, without informational ones, and what is behind them. With `over`, nothing more comes.
fn answers<'b>(came: &'b [u8], asked: &[Message], over: bool) -> (Vec<Message>, &'b [u8]) {
    let (mut answers, mut at): (Vec<Message>, usize) = (Vec::new(), 0);
    while at < came.len() {
        let told = || text(came);
        // What is refused is answered whatever it was that was asked: a body behind HEAD ends with the connection.
        let to_head = asked.get(answers.len()).is_some_and(|asked| asked.parts()[0] == b"HEAD");
        let read = strict::response(came, at, to_head, over);
        let Some(mut answer) = read.unwrap_or_else(|why| panic!("{why}, at {at} of {}", told())) else { break };
        let refused = to_head && answer.status() >= 400 && answer.all("connection") == [b"close"];
        if refused && !over {
            // Nothing follows but that body.
            answers.push(answer);
            return (answers, &[]);
        }
        if refused && came.len() > answer.end {
            answer = strict::response(came, at, false, over).ok().flatten().expect("the same head");
        }
        if !answer.whole {
            answers.push(answer);
            // Its connection was cut, or the rest is to come.
            return (answers, &[]);
        }
        at = answer.end;
        match answer.status() {
            101 => {
                answers.push(answer);
                return (answers, &[]);
            }
            100..200 => {}
            _ => answers.push(answer),
        }
    }
    let rest = &came[at..];
    // The beginning of a head, on a connection that was cut.
    let begins = b"HTTP/1.".starts_with(&rest[..rest.len().min(7)]) || rest.starts_with(b"HTTP/1.");
    (answers, if begins { &[] } else { rest })
}

fn tunnels(came: &[u8], asked: &[Message]) -> bool {
    answers(came, asked, false).0.last().is_some_and(|answer| answer.status() == 101)
}

fn http2(data: &[u8], cuts: &[u8], manner: Manner) {
    let Ok(script) = http2::Script::of(data) else { return };
    let record = Record::default();
    let mut came = Vec::new();
    let play = {
        let record = Rc::clone(&record);
        move |tcp| backend(tcp, Rc::clone(&record), manner)
    };
    INSIDE.with(|inside| {
        inside.play(play, async |scene| {
            let (mut from, mut to) = scene.connect();
            inside::send(&mut to, &script.bytes, cuts).await;
            while !script.is_answered(&came) && inside::read(&mut from, &mut came).await {}
            let _ = to.shutdown().await;
            while inside::read(&mut from, &mut came).await {}
        });
    });
    http2::is_well_formed(&came);
    let record = record.borrow();
    let mut streams = Vec::new();
    for seen in record.iter() {
        let told = || format!("{seen:?}, of {:#?}", script.streams);
        let [id] = seen.message.all("x-stream")[..] else { panic!("a request that nobody sent: {}", told()) };
        let id: u32 = str::from_utf8(id).ok().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{}", told()));
        assert!(!streams.contains(&id), "a stream's request twice: {}", told());
        streams.push(id);
        let stream = script.streams.iter().find(|stream| stream.id == id);
        let stream = stream.unwrap_or_else(|| panic!("a request of no stream: {}", told()));
        assert!(stream.asks_for(seen), "another request than its stream's: {}", told());
    }
}
