//! Connections of the client: over TCP, with TLS or without, or over a Unix socket.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::tls::Trust;

/// Where a client connects to, whatever the address of its requests says.
#[derive(Clone, Debug)]
pub enum To {
    /// An address.
    Address(SocketAddr),
    /// A Unix socket.
    Socket(PathBuf),
    /// A server by its name, which is looked up for each connection, or by its IP address.
    Server {
        /// The name or the address, the latter without brackets.
        host: Arc<str>,
        /// The port.
        port: u16,
        /// How it is believed to be the one; `None` is without TLS.
        tls: Option<Trust>,
    },
}

/// How long one of several addresses of a server may keep the others waiting.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_secs(1);

/// Connects to the first address of a server that can be connected to.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut addresses = lookup_host((host, port)).await?.peekable();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    while let Some(address) = addresses.next() {
        let connecting = TcpStream::connect(address);
        let connected = match addresses.peek() {
            Some(_) => timeout(NEXT_ADDRESS_AFTER, connecting).await.unwrap_or_else(|late| Err(late.into())),
            None => connecting.await,
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to a server for what speaks another protocol than HTTP/1.1, which TLS then asks for (ALPN).
///
/// # Errors
/// When there is no connection, or none that is believed.
pub async fn open(mut to: To, protocol: &[u8]) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
    if let To::Server { tls: Some(trust), .. } = &mut to {
        Arc::make_mut(&mut trust.0).alpn_protocols = vec![protocol.to_vec()];
    }
    connect_to(to).await
}

async fn connect_to(to: To) -> io::Result<FetchStream> {
    Ok(match to {
        To::Address(address) => FetchStream::Tcp(TcpStream::connect(address).await?),
        To::Socket(path) => FetchStream::Unix(UnixStream::connect(path).await?),
        To::Server { host, port, tls: None } => FetchStream::Tcp(connect(&host, port).await?),
        To::Server { host, port, tls: Some(trust) } => {
            let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
            let tcp = connect(&host, port).await?;
            FetchStream::Tls(Box::new(TlsConnector::from(trust.0).connect(name, tcp).await?))
        }
    })
}

/// Connects to one place.
#[derive(Clone, Debug)]
pub(super) struct Connector(To);

impl Connector {
    pub(super) fn new(to: To) -> Self {
        Self(to)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<FetchStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let to = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(connect_to(to).await?)) })
    }
}

/// A connection.
#[derive(Debug)]
pub(super) enum FetchStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for FetchStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for FetchStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for FetchStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
