//! From an accepted socket to one that HTTP is spoken on: the TLS handshake, where the listener has one.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rustls::server::Acceptor;
use rustls::{Error, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConfig};
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsStream};
use tracing::debug;

use super::Listener;
use super::closing::{FIRST_REQUEST, end, tell};
use super::refused_log::{self, PLAIN};
use crate::config::Misdirected;
use crate::exchange::SniName;
use crate::exchange::deadline::{Phase, Watch};
use crate::proxy::Proxy;
use crate::socket::Socket;
use crate::telemetry::metrics::{HandshakeFailure, handshake_index};
use crate::tls::Tls;

/// A client's stream that HTTP is spoken on, whatever it came by.
pub struct ClientStream {
    /// The bytes.
    pub socket: Socket,
    /// The client's address.
    pub peer: SocketAddr,
    /// The host that the client has named in its handshake, where that makes a difference.
    pub sni_name: Option<SniName>,
    /// What backends are told of the client's certificate.
    pub identity: Vec<(HeaderName, HeaderValue)>,
}

/// The stream of a connection, once the handshake is over; `None` when it has failed, which is counted. The worker of `proxy` serves it.
/// Where the listener has TLS, the handshake is made with that of the moment.
pub(super) async fn stream(
    (tcp, peer): (TcpStream, SocketAddr),
    listener: &Listener,
    watch: &Watch,
    proxy: &Proxy,
) -> Option<ClientStream> {
    match listener.tls.load_full() {
        None => Some(ClientStream { socket: Socket::Plain(tcp), peer, sni_name: None, identity: Vec::new() }),
        // In a box for as long as it takes: a connection has room, to its end, for all that it may once wait for.
        Some(tls) => {
            let socket = Box::pin(secure(tcp, (listener, &tls), watch, proxy)).await?;
            let (identity, sni_name) = (identity(&socket), sni_name(&socket, tls));
            Some(ClientStream { socket, peer, sni_name, identity })
        }
    }
}

async fn secure(tcp: TcpStream, (listener, tls): (&Listener, &Tls), watch: &Watch, proxy: &Proxy) -> Option<Socket> {
    watch.enter(Phase::Handshake, tls.settings.handshake_timeout);
    let peer = tcp.peer_addr();
    let metrics = listener.metrics.of(proxy.worker);
    match shake(tcp, tls, watch).await {
        Ok(stream) => {
            let connection = stream.get_ref().1;
            let new = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
            metrics.handshakes[handshake_index(new, resumed)].add(1);
            Some(Socket::Tls(stream))
        }
        Err(FailedHandshake { failure, error, tcp }) => {
            metrics.handshake_failures[failure as usize].add(1);
            let client = peer.as_ref().ok().map(ToString::to_string);
            debug!(listener = %listener.name(), client, reason = failure.as_str(), error, "TLS handshake failed");
            match (tcp, failure) {
                (Some(tcp), HandshakeFailure::PlainHttp) => {
                    if let Ok(peer) = peer {
                        refused_log::turned_away(proxy, (listener, peer), PLAIN, true);
                    }
                    tell(tcp, PLAIN).await;
                }
                // The alert is written. What is unread would turn the end into a reset, which may overtake it.
                (Some(tcp), _) => end(tcp).await,
                (None, _) => {}
            }
            None
        }
    }
}

/// What backends are told of the client's certificate.
fn identity(socket: &Socket) -> Vec<(HeaderName, HeaderValue)> {
    let Socket::Tls(tls) = socket else { return Vec::new() };
    let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    shown.map(crate::tls::identity).unwrap_or_default()
}

/// The host that the client has named, where that makes a difference.
fn sni_name(socket: &Socket, tls: Arc<Tls>) -> Option<SniName> {
    let Socket::Tls(stream) = socket else { return None };
    let TlsStream::Server(stream) = &**stream else { return None };
    let name = stream.get_ref().1.server_name()?;
    if tls.settings.misdirected == Misdirected::Allow {
        return None;
    }
    let named = name.to_owned();
    Some(SniName::new(name, Box::new(move |host| tls.may_ask_for(&named, host))))
}

/// A handshake that came to nothing.
struct FailedHandshake {
    failure: HandshakeFailure,
    error: Option<String>,
    /// The socket, where the client is still to be told.
    tcp: Option<TcpStream>,
}

impl From<HandshakeFailure> for FailedHandshake {
    fn from(failure: HandshakeFailure) -> Self {
        Self { failure, error: None, tcp: None }
    }
}

async fn shake(tcp: TcpStream, tls: &Tls, watch: &Watch) -> Result<Box<TlsStream<TcpStream>>, FailedHandshake> {
    // A silent client takes no turn from the others.
    let first = in_time(watch, || !has_unread(&tcp), first_byte(&tcp)).await?;
    match first {
        Ok(Some(byte)) if byte.is_ascii_alphabetic() => {
            // The first byte of TLS is 22: a letter begins a method of HTTP.
            return Err(FailedHandshake { tcp: Some(tcp), ..HandshakeFailure::PlainHttp.into() });
        }
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => return Err(HandshakeFailure::Closed.into()),
    }
    let failed = |error: io::Error, tcp| {
        let failure = failure(&error);
        // A client that has gone, or has sent an alert itself, is told nothing.
        let tcp = Option::filter(tcp, |_| !matches!(failure, HandshakeFailure::Closed | HandshakeFailure::Alert));
        FailedHandshake { failure, error: Some(error.to_string()), tcp }
    };
    // Nor does a client that has sent only a part of its hello.
    let mut hello = LazyConfigAcceptor::new(Acceptor::default(), tcp);
    let hello = match in_time(watch, || false, &mut hello).await? {
        Ok(said) => said,
        Err(error) => return Err(failed(error, hello.take_io())),
    };
    // The semaphore is never closed.
    let _turn = in_time(watch, || false, tls.turns.acquire()).await?.map_err(|_| HandshakeFailure::Closed)?;
    let answered = answer(hello, Arc::clone(&tls.server));
    in_time(watch, || false, answered).await?.map_err(|(error, tcp)| failed(error, Some(tcp)))
}

/// Shakes hands with a client that has said hello.
async fn answer(
    hello: StartHandshake<TcpStream>,
    server: Arc<ServerConfig>,
) -> Result<Box<TlsStream<TcpStream>>, (io::Error, TcpStream)> {
    // Whether the client is asked for another key share, and so gets a further answer (RFC 8446 §4.1.4).
    let again = Cell::new(false);
    let shaken = pin!(async {
        // Works out the answer at once, and not when it is polled: in its turn.
        let handshake = hello.into_stream_with(server, |connection| {
            again.set(connection.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest));
        });
        // In a box at once: it is large, and would be moved each time that it is handed on.
        handshake.into_fallible().await.map(|stream| Box::new(TlsStream::Server(stream)))
    });
    one_a_turn(shaken, &again).await
}

thread_local! {
    /// The turns for work at handshakes on this worker.
    static AT_WORK: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Has all who wait for this worker had their turn before the next answer to a client's hello is worked out: that is nearly all the work there
/// is in a handshake, and takes as long as ten requests. What comes behind takes turns too where there may be an answer `again`.
async fn one_a_turn<T>(mut handshake: impl Future<Output = T> + Unpin, again: &Cell<bool>) -> T {
    let at_work = AT_WORK.with(Arc::clone);
    loop {
        // It is never closed.
        let turn = Arc::clone(&at_work).acquire_owned().await;
        let worked = poll_fn(|cx| Poll::Ready(Pin::new(&mut handshake).poll(cx))).await;
        // Apart, so that this task is woken by its client alone.
        spawn_local(async move {
            tokio::task::yield_now().await;
            drop(turn);
        });
        match worked {
            Poll::Ready(done) => return done,
            Poll::Pending if !again.get() => return handshake.await,
            Poll::Pending => {}
        }
        let mut woken = false;
        poll_fn(|_| if std::mem::replace(&mut woken, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// The first byte that the client sends, which stays unread.
async fn first_byte(tcp: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    poll_fn(|cx| {
        let mut byte = ReadBuf::new(&mut byte);
        tcp.poll_peek(cx, &mut byte).map_ok(|bytes| byte.filled().first().copied().filter(|_| bytes > 0))
    })
    .await
}

/// Whether the client has sent something. Asks the socket: the event loop may not have told yet.
fn has_unread(tcp: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    matches!(SockRef::from(tcp).peek(&mut byte), Ok(1..))
}

/// Waits until the deadline. Where `leaves` says so, only a little longer while the connection is to end when it is idle.
async fn in_time<T>(
    watch: &Watch,
    leaves: impl Fn() -> bool,
    what: impl Future<Output = T>,
) -> Result<T, HandshakeFailure> {
    let mut what = pin!(what);
    let mut leaving = false;
    poll_fn(|cx| {
        watch.register(cx);
        if let Poll::Ready(done) = what.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if watch.is_cut() {
            return Poll::Ready(Err(HandshakeFailure::Closed));
        }
        if watch.draining() && leaves() {
            if !leaving {
                // What a client that has just connected says first may be on its way.
                leaving = true;
                watch.enter(watch.phase(), FIRST_REQUEST);
            } else if watch.expired() {
                return Poll::Ready(Err(HandshakeFailure::Closed));
            }
        }
        if watch.expired() { Poll::Ready(Err(HandshakeFailure::Timeout)) } else { Poll::Pending }
    })
    .await
}

/// Why a handshake has failed.
fn failure(error: &io::Error) -> HandshakeFailure {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return HandshakeFailure::Closed;
    };
    match error {
        // rustls has no kind of its own for it.
        Error::General(what) if what == "no server certificate chain resolved" => HandshakeFailure::NoCertificate,
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon)
        | Error::NoCertificatesPresented
        | Error::InvalidCertificate(_)
        | Error::InvalidCertRevocationList(_) => HandshakeFailure::ClientCertificate,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::Incompatible,
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        _ => HandshakeFailure::Protocol,
    }
}

/// How long the end of a connection may take to be told.
pub(super) const CLOSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;

    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// Counts how often an answer was begun: it is asked for a certificate each time.
    #[derive(Debug)]
    struct CountingResolver(AtomicUsize, Arc<CertifiedKey>);

    impl ResolvesServerCert for CountingResolver {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            self.0.fetch_add(1, SeqCst);
            Some(Arc::clone(&self.1))
        }
    }

    /// A client with what it has said first.
    async fn hello(provider: &Arc<CryptoProvider>) -> (TcpStream, ClientConnection, StartHandshake<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let config = ClientConfig::builder_with_provider(Arc::clone(provider)).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut tls = ClientConnection::new(Arc::new(config), "t.example".try_into().unwrap()).unwrap();
        say(&client, &mut tls);
        let server = listener.accept().await.unwrap().0;
        (client, tls, LazyConfigAcceptor::new(Acceptor::default(), server).await.unwrap())
    }

    /// Sends what there is to be said at once, before anybody else runs.
    fn say(client: &TcpStream, tls: &mut ClientConnection) {
        let mut said = Vec::new();
        tls.write_tls(&mut said).unwrap();
        assert_eq!(client.try_write(&said).unwrap(), said.len());
    }

    /// Waits until so many answers were begun, of which there is one between two turns.
    async fn begun(answers: &CountingResolver, until: usize) {
        let (mut before, mut turns) = (answers.0.load(SeqCst), 0);
        let first = before;
        while before < until {
            assert!(turns < 1000, "{before} begun");
            yield_now().await;
            let seen = answers.0.load(SeqCst);
            assert!(seen - before <= 1, "{} at once", seen - before);
            (before, turns) = (seen, turns + 1);
        }
        assert!(turns >= until - first, "{turns} turns");
    }

    #[tokio::test]
    async fn one_answer_is_worked_out_between_two_turns_of_others() {
        const HANDSHAKES: usize = 20;
        let ours = rustls::crypto::aws_lc_rs::default_provider();
        let made = rcgen::generate_simple_self_signed(["t.example".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let key = CertifiedKey::from_der(vec![made.cert.der().clone()], key, &ours).unwrap();
        let answers = Arc::new(CountingResolver(AtomicUsize::new(0), Arc::new(key)));
        // What clients do not guess: each is asked for another key share, and so gets two answers.
        let provider =
            CryptoProvider { kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1], ..ours.clone() };
        let server = ServerConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
        let server = server.unwrap().with_no_client_auth().with_cert_resolver(Arc::clone(&answers) as _);
        let (server, ours) = (Arc::new(server), Arc::new(ours));
        let tasks = LocalSet::new();
        tasks
            .run_until(async {
                let (mut clients, mut hellos) = (Vec::new(), Vec::new());
                for _ in 0..HANDSHAKES {
                    let (client, tls, hello) = hello(&ours).await;
                    clients.push((client, tls));
                    hellos.push(hello);
                }
                for hello in hellos {
                    spawn_local(answer(hello, Arc::clone(&server)));
                }
                begun(&answers, HANDSHAKES).await;
                for (client, tls) in &mut clients {
                    let mut asked = vec![0; 1024];
                    while !tls.wants_write() {
                        let bytes = client.read(&mut asked).await.unwrap();
                        tls.read_tls(&mut &asked[..bytes]).unwrap();
                        tls.process_new_packets().unwrap();
                    }
                }
                for (client, tls) in &mut clients {
                    say(client, tls);
                }
                begun(&answers, 2 * HANDSHAKES).await;
            })
            .await;
    }

    #[tokio::test]
    async fn who_goes_while_it_is_worked_at_keeps_no_turn() {
        let tasks = LocalSet::new();
        tasks
            .run_until(async {
                let gone = spawn_local(async { one_a_turn(std::future::pending::<()>(), &Cell::new(false)).await });
                yield_now().await;
                gone.abort();
                let next =
                    tokio::time::timeout(Duration::from_secs(5), one_a_turn(std::future::ready(7), &Cell::new(false)))
                        .await;
                assert_eq!(next, Ok(7));
            })
            .await;
    }
}
