use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::message::{Cut, Response, Stream};
use super::soon;

/// A client that sends bytes as they are, over one connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: Stream,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let tcp = soon(TcpStream::connect(address)).await.expect("a connection");
        tcp.set_nodelay(true).expect("nodelay");
        Self { stream: Stream::new(tcp) }
    }

    /// Its own address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.stream.tcp.local_addr().expect("an address")
    }

    /// Sends bytes. Panics when the connection is gone.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write(bytes)).await.expect("bytes sent");
    }

    /// Sends bytes, which the other side may refuse to take: whether it took them all.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        soon(self.stream.write(bytes)).await.is_ok()
    }

    /// Reads a whole response to anything but HEAD.
    pub(crate) async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// Reads a whole response to a request with that method: to HEAD it has no body.
    pub(crate) async fn response_to(&mut self, method: &str) -> Response {
        soon(self.stream.response(method)).await.expect("a whole response")
    }

    /// Reads a response that is to be cut short, and fails if it is whole.
    pub(crate) async fn cut(&mut self) -> Cut {
        soon(self.stream.response("GET")).await.expect_err("a response cut short")
    }

    /// Sends a GET and reads its response.
    pub(crate) async fn get(&mut self, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        self.response().await
    }

    /// Reads exactly so many bytes.
    pub(crate) async fn exact(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        soon(self.stream.exact(n, &mut bytes)).await.expect("so many bytes");
        bytes
    }

    /// Reads until the other side closes, well or by a reset.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = soon(self.stream.rest(&mut bytes)).await;
        bytes
    }

    /// Waits until the other side closes without a further byte.
    pub(crate) async fn closed(&mut self) {
        let rest = self.read_to_end().await;
        assert!(rest.is_empty(), "more before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    /// Sends no more, and reads on.
    pub(crate) async fn finish(&mut self) {
        use tokio::io::AsyncWriteExt;
        self.stream.tcp.shutdown().await.expect("a half-closed connection");
    }

    /// Ends the connection by a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream.tcp).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    }
}
