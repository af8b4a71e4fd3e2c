use std::cell::Cell;
use std::future::poll_fn;
use std::time::Duration;

use http_body::Frame;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::send::TURN_BYTES;
use super::*;
use crate::backend::BackendState;
use crate::config::{Address, PoolConfig, Table};
use crate::exchange::body::BodySource;
use crate::file_descriptors::DescriptorRoom;

/// A client that has sent its body, all of it.
struct Sent(Cell<Option<Bytes>>);

impl BodySource for Sent {
    fn poll_piece(&self, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.0.take().map(|piece| Ok(Frame::data(piece))))
    }
    fn is_done(&self) -> bool {
        let piece = self.0.take();
        let done = piece.is_none();
        self.0.set(piece);
        done
    }
    fn left(&self) -> Option<u64> {
        let piece = self.0.take();
        let left = piece.as_ref().map_or(0, Bytes::len) as u64;
        self.0.set(piece);
        Some(left)
    }
    fn want(&self, _: bool) {}
    fn splices(&self) -> bool {
        false
    }
    fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
}

/// A body of so many pieces of one byte: all of them there, or each after a pause.
struct Crumbs {
    left: Cell<usize>,
    pause: Option<RefCell<tokio::time::Interval>>,
}

impl BodySource for Crumbs {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(pause) = &self.pause {
            ready!(pause.borrow_mut().poll_tick(cx));
        }
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        Poll::Ready((left > 0).then(|| Ok(Frame::data(Bytes::from_static(b"z")))))
    }
    fn is_done(&self) -> bool {
        self.left.get() == 0
    }
    fn left(&self) -> Option<u64> {
        None
    }
    fn want(&self, _: bool) {}
    fn splices(&self) -> bool {
        false
    }
    fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
}

/// What a backend has got of them, once it has all.
async fn eaten(backend: &mut TcpStream) -> usize {
    let mut written = Vec::new();
    while !written.ends_with(b"\r\n0\r\n\r\n") {
        assert!(backend.read_buf(&mut written).await.unwrap() > 0, "cut short");
    }
    // None in the head.
    written.iter().filter(|&&byte| byte == b'z').count()
}

struct Nobody;

impl Informed for Nobody {
    fn go_on(&self) {}

    fn informational(&self, _: &[u8]) {}
}

/// A backend and a connection to it.
async fn link() -> (TcpStream, Rc<Link>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (backend, _) = listener.accept().await.unwrap();
    let state = BackendState::new("u".into(), Address::Ip(([127, 0, 0, 1], 1).into()), 1);
    (
        backend,
        Link::new(
            Socket::Plain(tcp),
            0,
            Rc::default(),
            (Connected::try_new(&state).unwrap(), Rc::<DescriptorRoom>::default().hold()),
            None,
            Wear::new(&PoolConfig::of_defaults(), 0, || 0),
        ),
    )
}

/// A backend that has answered a POST of 4 MB before it has read it, the connection to it, and the rest of the body.
async fn answered_early() -> (TcpStream, Rc<Link>, RequestBody) {
    let (mut backend, link) = link().await;
    // Smaller than the body: its only piece is taken from the client at once, and waits for room.
    SockRef::from(link.0.borrow().socket.tcp()).set_send_buffer_size(4096).unwrap();
    let sent = Rc::new(Sent(Cell::new(Some(Bytes::from(vec![b'u'; BODY])))));
    let mut body = RequestBody::streamed(sent, Rc::new(()));
    let (parts, ()) = http::Request::post("/").header("host", "a").body(()).unwrap().into_parts();
    link.begin(&parts.into(), &body, false);
    backend.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let status = poll_fn(|cx| link.poll_response(cx, &mut body, &Nobody)).await.unwrap();
    assert_eq!((status, link.whole()), (StatusCode::OK, Some(Bytes::new())));
    (backend, link, body)
}

const BODY: usize = 4 << 20;

#[tokio::test]
async fn a_body_in_crumbs_takes_turns() {
    const CRUMBS: usize = 50_000;
    // With what frames it, each is six bytes, and no more than a buffer of them is gathered.
    const MOST: usize = (TURN_BYTES + 16 * 1024) / 6 + 1;
    let (mut backend, link) = link().await;
    let crumbs = Rc::new(Crumbs { left: Cell::new(CRUMBS), pause: None });
    let mut body = RequestBody::streamed(Rc::clone(&crumbs) as Rc<dyn BodySource>, Rc::new(()));
    let (parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
    link.begin(&parts.into(), &body, false);
    let mut most = 0;
    poll_fn(|cx| {
        let before = crumbs.left.get();
        assert!(link.poll_response(cx, &mut body, &Nobody).is_pending());
        most = most.max(before - crumbs.left.get());
        if crumbs.is_done() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert!((1..=MOST).contains(&most), "{most} in a turn");
    assert_eq!(eaten(&mut backend).await, CRUMBS);
}

#[tokio::test]
async fn an_upload_in_chunks_that_goes_on_is_not_given_up() {
    const CRUMBS: usize = 20;
    let (mut backend, link) = link().await;
    let pause = Some(RefCell::new(tokio::time::interval(Duration::from_millis(50))));
    let crumbs = Rc::new(Crumbs { left: Cell::new(CRUMBS), pause });
    let mut body = RequestBody::streamed(crumbs, Rc::new(()));
    let (parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
    link.begin(&parts.into(), &body, false);
    backend.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    poll_fn(|cx| link.poll_response(cx, &mut body, &Nobody)).await.unwrap();
    // It takes a second, more than twice as long as it may stand still.
    link.upload(body, Duration::from_millis(400)).await;
    assert!(link.rest(0), "it was given up");
    assert_eq!(eaten(&mut backend).await, CRUMBS);
}

#[tokio::test]
async fn a_connection_is_not_kept_with_the_tail_of_a_request_unwritten() {
    let (_backend, link, _body) = answered_early().await;
    assert!(link.uploading() && !link.rest(0));
}

#[tokio::test]
async fn the_tail_of_a_request_is_sent_beside_an_answer_that_came_first() {
    let (mut backend, link, body) = answered_early().await;
    let reading = tokio::spawn(async move {
        let (mut read, mut piece) = (0, vec![0; 64 * 1024]);
        while read < BODY {
            let bytes = backend.read(&mut piece).await.unwrap();
            assert!(bytes > 0, "cut short after {read}");
            read += piece[..bytes].iter().filter(|&&byte| byte == b'u').count();
        }
        backend
    });
    link.upload(body, Duration::from_secs(5)).await;
    let _backend = reading.await.unwrap();
    assert!(!link.uploading() && link.rest(0));
}
