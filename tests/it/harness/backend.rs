use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::message::{Head, Message, Stream};

/// A backend of its own thread, on a port that is its own until it is dropped, whether it listens or not.
///
/// What it does with a connection is a script: see [`TestBackend::scripted`]. A panic in a script is raised again where the
/// backend is stopped or dropped.
pub(crate) struct TestBackend {
    address: SocketAddr,
    counts: Arc<Counts>,
    /// Bound and never listening, so that nobody else gets the port while the backend does not listen.
    _port: Socket,
    run: Box<dyn Fn(std::net::TcpListener, oneshot::Receiver<()>) -> JoinHandle<()> + Send + Sync>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// How a connection goes on after a hand-written response.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    /// It takes the next request.
    Keep,
    /// It stays open and nothing more is read or written.
    Hold,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    open: AtomicUsize,
    heads: Mutex<VecDeque<Head>>,
}

/// So many heads are kept to be looked at.
const HEADS: usize = 256;

/// A connection as a script sees it: that of a client of the backend.
pub(crate) struct Peer {
    pub(crate) stream: Stream,
    /// Which connection of the backend this is, from 0.
    pub(crate) number: usize,
    counts: Arc<Counts>,
}

impl Peer {
    /// Reads the head of a request; `None` when there is none any more, or the connection broke.
    pub(crate) async fn head(&mut self) -> Option<Head> {
        let head = self.stream.head().await.ok().flatten()?;
        let mut heads = self.counts.heads.lock().unwrap();
        if heads.len() == HEADS {
            heads.pop_front();
        }
        heads.push_back(head.clone());
        drop(heads);
        self.counts.requests.fetch_add(1, SeqCst);
        Some(head)
    }

    /// Reads a whole request; `None` when there is none any more, or the connection broke.
    pub(crate) async fn request(&mut self) -> Option<Message> {
        let head = self.head().await?;
        self.body(&head).await
    }

    /// Reads the body of a request whose head was read.
    pub(crate) async fn body(&mut self, head: &Head) -> Option<Message> {
        self.stream.request_body(head).await.ok()
    }

    /// Writes bytes. What cannot be written is noticed by the next read.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write(bytes).await;
    }

    /// Writes a response with a length.
    pub(crate) async fn respond(&mut self, head: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len());
        self.write([head.as_bytes(), body].concat()).await;
    }

    /// Waits until the other side closes or breaks, and throws away what comes before.
    pub(crate) async fn gone(&mut self) {
        while let Ok(true) = self.stream.more().await {
            self.stream.buffer.clear();
        }
    }

    /// The connection ends by a reset when the script does.
    pub(crate) fn reset(&mut self) {
        SockRef::from(&self.stream.tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, SeqCst);
    }
}

impl TestBackend {
    /// Runs `script` for each connection; when it returns, the connection is closed.
    pub(crate) fn scripted<S>(script: S) -> Self
    where
        S: AsyncFn(&mut Peer) + Send + Sync + 'static,
    {
        let mut backend = Self::idle(script);
        backend.restart();
        backend
    }

    /// Answers 200 with `name`.
    pub(crate) fn ok(name: &str) -> Self {
        Self::fixed(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()))
    }

    /// Answers whole requests with these bytes.
    pub(crate) fn fixed(response: impl Into<Vec<u8>>) -> Self {
        let response = response.into();
        Self::scripted(async move |peer| {
            while peer.request().await.is_some() {
                peer.write(&response).await;
            }
        })
    }

    /// Answers with what it got, as JSON: `method`, `target`, `line`, `headers` and `trailers` as lists of pairs in their
    /// order, `body`.
    pub(crate) fn echo() -> Self {
        Self::scripted(async |peer| {
            while let Some(Message { head, body, trailers }) = peer.request().await {
                let echo = serde_json::json!({
                    "method": head.method(),
                    "target": head.target(),
                    "line": head.line,
                    "headers": head.fields,
                    "trailers": trailers,
                    "body": String::from_utf8_lossy(&body),
                });
                let body = if head.method() == "HEAD" { String::new() } else { echo.to_string() };
                peer.respond("200 OK\r\ncontent-type: application/json", body).await;
            }
        })
    }

    /// Answers 200 with `name` after so long.
    pub(crate) fn slow(name: &str, after: Duration) -> Self {
        let name = name.to_owned();
        Self::scripted(async move |peer| {
            while peer.request().await.is_some() {
                tokio::time::sleep(after).await;
                peer.respond("200 OK", &name).await;
            }
        })
    }

    /// Refuses connections.
    pub(crate) fn refusing() -> Self {
        Self::idle(async |_| {})
    }

    /// Writes these bytes once the head of a request was read, and does not read its body.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>, after: After) -> Self {
        let bytes = bytes.into();
        Self::scripted(async move |peer| {
            while peer.head().await.is_some() {
                peer.write(&bytes).await;
                match after {
                    After::Keep => {}
                    After::Hold => return std::future::pending().await,
                    After::Close => return,
                    After::Reset => return peer.reset(),
                }
            }
        })
    }

    /// Switches to another protocol when asked to, a WebSocket for instance, and then sends back what comes, until the other
    /// side closes its direction. Answers 400 to anything else.
    pub(crate) fn upgrading() -> Self {
        Self::scripted(async |peer| {
            let Some(head) = peer.head().await else { return };
            let Some(protocol) = head.get("upgrade") else {
                return peer.respond("400 Bad Request", "no upgrade").await;
            };
            peer.write(format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
            ))
            .await;
            loop {
                let bytes = std::mem::take(&mut peer.stream.buffer);
                peer.write(bytes).await;
                if !matches!(peer.stream.more().await, Ok(true)) {
                    return;
                }
            }
        })
    }

    fn idle<S>(script: S) -> Self
    where
        S: AsyncFn(&mut Peer) + Send + Sync + 'static,
    {
        let (port, address) = take_port();
        let counts = Arc::<Counts>::default();
        let (script, counted) = (Arc::new(script), Arc::clone(&counts));
        let run = Box::new(move |listener, stop| {
            let (script, counts) = (Arc::clone(&script), Arc::clone(&counted));
            std::thread::Builder::new()
                .name(format!("backend-{}", address.port()))
                .spawn(move || serve(listener, stop, script, counts))
                .unwrap()
        });
        Self { address, counts, _port: port, run, running: None }
    }

    /// The same at another address, from now on.
    pub(crate) fn moved_to(mut self, address: SocketAddr) -> Self {
        self.kill();
        let port = socket();
        port.bind(&address.into()).unwrap();
        (self.address, self._port) = (address, port);
        self.restart();
        self
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests whose head was read, since the beginning.
    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(SeqCst)
    }

    /// Connections accepted, since the beginning.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(SeqCst)
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(SeqCst)
    }

    /// The heads of the last 256 requests, in their order.
    pub(crate) fn heads(&self) -> Vec<Head> {
        self.counts.heads.lock().unwrap().iter().cloned().collect()
    }

    /// The head of the last request.
    #[track_caller]
    pub(crate) fn last_head(&self) -> Head {
        self.heads().pop().expect("a request")
    }

    /// Stops listening and drops every connection, as a process that is killed. Raises the panic of a script again.
    pub(crate) fn kill(&mut self) {
        let Some((stop, thread)) = self.running.take() else { return };
        drop(stop);
        if let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// Listens, again or for the first time, on the same port. Counts go on.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let listener = listen(self.address).expect("its own port");
        let (stop, stopped) = oneshot::channel();
        self.running = Some((stop, (self.run)(listener, stopped)));
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    // Two sockets may then be bound to a port as long as at most one listens, and that one was bound last.
    socket.set_reuse_address(true).unwrap();
    socket
}

/// An address on loopback that nothing else is given, as long as the socket lives.
pub(crate) fn take_port() -> (Socket, SocketAddr) {
    let port = socket();
    port.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = port.local_addr().unwrap().as_socket().unwrap();
    (port, address)
}

/// An address on loopback where nothing listens, for a process that binds it without sharing. It lies below the ports that the system
/// gives to outgoing connections, or one of those would have it now and then by the time the process starts.
pub(crate) fn free_address() -> SocketAddr {
    const FIRST: u32 = 20_000;
    const PORTS: u32 = 12_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two runs at a time begin at different places.
    let first = std::process::id().wrapping_mul(101);
    let candidates = (0..PORTS).map(|_| {
        let number = first.wrapping_add(NEXT.fetch_add(1, SeqCst)) % PORTS;
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(FIRST + number).unwrap()))
    });
    let free = candidates.into_iter().find(|address| std::net::TcpListener::bind(address).is_ok());
    free.expect("a port without a listener")
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket();
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn serve<S>(listener: std::net::TcpListener, stop: oneshot::Receiver<()>, script: Arc<S>, counts: Arc<Counts>)
where
    S: AsyncFn(&mut Peer) + 'static,
{
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut peers = JoinSet::new();
        let mut stop = stop;
        loop {
            tokio::select! {
                _ = &mut stop => {
                    while let Some(ended) = peers.try_join_next() {
                        raise(ended);
                    }
                    return;
                }
                Some(ended) = peers.join_next() => raise(ended),
                accepted = listener.accept() => {
                    let (tcp, _) = accepted.unwrap();
                    tcp.set_nodelay(true).unwrap();
                    let number = counts.connections.fetch_add(1, SeqCst);
                    counts.open.fetch_add(1, SeqCst);
                    let mut peer = Peer { stream: Stream::new(tcp), number, counts: Arc::clone(&counts) };
                    let script = Arc::clone(&script);
                    peers.spawn_local(async move { script(&mut peer).await });
                }
            }
        }
    });
}

fn raise(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}
