//! The end of a client's connection, in a way that lets the client read what it was sent.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::proxy::Refusal;

/// How long isobar waits for the first request while the connection is to end, and for the next request after an answer that did not
/// announce the end. As nginx's `keepalive_min_timeout`.
pub(super) const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long a client has to take what it was sent last.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How many pieces are thrown away at most.
const LINGER_READS: usize = 1024;

/// A whole response that ends its connection.
pub(super) fn refusal_text(refusal: Refusal) -> String {
    let status = refusal.status();
    let title = status.canonical_reason().unwrap_or("Error");
    let body = refusal.told();
    let retry = if refusal.is_worth_a_retry() { "retry-after: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {} {title}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\
         {retry}date: {}\r\n\r\n{body}",
        status.as_u16(),
        body.len(),
        httpdate::fmt_http_date(std::time::SystemTime::now()),
    )
}

/// Answers any request without TLS, and ends the connection.
pub async fn tell(mut tcp: TcpStream, refusal: Refusal) {
    let text = refusal_text(refusal);
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, tcp.write_all(text.as_bytes())).await {
        end(tcp).await;
    }
}

/// Ends a connection so that the client can read what it was sent: discards what it still sends, for [`LINGER`] at most.
pub(super) async fn end(mut tcp: TcpStream) {
    let linger = async {
        tcp.shutdown().await?;
        let mut space = [0; 4096];
        for _ in 0..LINGER_READS {
            let mut piece = ReadBuf::new(&mut space);
            poll_fn(|cx| tokio::io::AsyncRead::poll_read(Pin::new(&mut tcp), cx, &mut piece)).await?;
            if piece.filled().is_empty() {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, linger).await;
}
