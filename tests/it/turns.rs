//! A client that has much to do at once leaves the worker to the others in between.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Keys, TestBackend, TestProxy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_together_and_cost_no_backend_take_turns() {
    let backend = TestBackend::ok("ok");
    let tables = "[[route]]\npath = \"/own\"\nrespond = { status = 204 }";
    // Behind one that asks for another protocol the others are held back.
    for fields in ["", "connection: upgrade\r\nupgrade: x\r\n"] {
        let proxy = TestProxy::with_keys(&[&backend], Keys { tables, ..Keys::default() }).await;
        let (mut from, mut to) = TcpStream::connect(proxy.address()).await.unwrap().into_split();
        let taken = Arc::new(AtomicUsize::new(0));
        let sending = tokio::spawn(async move {
            let many = format!("GET /own HTTP/1.1\r\nhost: a\r\n{fields}\r\n").repeat(2_000);
            while to.write_all(many.as_bytes()).await.is_ok() {}
        });
        let counted = Arc::clone(&taken);
        let taking = tokio::spawn(async move {
            let mut space = vec![0; 256 * 1024];
            while let Ok(bytes @ 1..) = from.read(&mut space).await {
                counted.fetch_add(bytes, SeqCst);
            }
        });
        let mut polite = proxy.client().await;
        let (began, mut answered) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(2) {
            assert_eq!(polite.get("/").await.status(), 200);
            answered += 1;
        }
        let each = taken.load(SeqCst) / answered;
        assert!(each > 0 && each < 100_000, "{each} bytes of answers to the greedy one between two to the polite");
        assert!(!sending.is_finished() && !taking.is_finished(), "the greedy one was served all the time");
        sending.abort();
        taking.abort();
    }
}
