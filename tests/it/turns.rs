//! A client that has much to do at once leaves the worker to the others in between.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Keys, TestBackend, TestProxy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_together_and_cost_no_backend_take_turns() {
    let backend = TestBackend::ok("ok");
    let tables = "[[route]]\npath = \"/own\"\nrespond = { status = 204 }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables, ..Keys::default() }).await;
    let (mut from, mut to) = TcpStream::connect(proxy.address()).await.unwrap().into_split();
    let sending = tokio::spawn(async move {
        let many = "GET /own HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2_000);
        while to.write_all(many.as_bytes()).await.is_ok() {}
    });
    let taking = tokio::spawn(async move {
        let mut space = vec![0; 256 * 1024];
        while from.read(&mut space).await.is_ok_and(|bytes| bytes > 0) {}
    });
    let mut polite = proxy.client().await;
    let (began, mut answered) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(polite.get("/").await.status(), 200);
        answered += 1;
    }
    // A turn of 128 answers takes a few milliseconds. If all that has come were answered in one, there would be ten.
    assert!(answered > 30, "{answered} answers in 2 s");
    assert!(!sending.is_finished() && !taking.is_finished(), "the greedy one was served all the time");
    sending.abort();
    taking.abort();
}
