//! Connections to backends that have been used for long or often enough take no further request, and are never cut in one.

use std::time::{Duration, Instant};

use crate::backend_http2::{Backend, Script};
use crate::harness::{Client, Keys, TestBackend, TestProxy, eventually};

async fn client(proxy: &TestProxy) -> Client {
    proxy.client().await
}

#[tokio::test]
async fn a_connection_takes_so_many_requests() {
    let backend = TestBackend::ok("a");
    let keys = Keys { upstream: "pool = { max_requests = 3 }", ..Keys::default() };
    let proxy = TestProxy::with_config(keys.text(&[&backend])).await;
    let mut client = client(&proxy).await;
    for n in 0..10 {
        assert_eq!(client.get("/").await.status(), 200);
        assert_eq!(backend.connections(), n / 3 + 1);
    }
    eventually(|| backend.open() == 1).await;
}

#[tokio::test]
async fn a_connection_that_is_too_old_is_closed_when_it_is_idle_and_goes_on_while_it_is_busy() {
    let backend = TestBackend::slow("a", Duration::from_millis(600));
    let keys = Keys { upstream: "pool = { max_age = \"300ms\" }", ..Keys::default() };
    let proxy = TestProxy::with_config(keys.text(&[&backend])).await;
    let mut client = client(&proxy).await;
    for n in 1..=2 {
        assert_eq!(client.get("/").await.status(), 200);
        assert_eq!(backend.connections(), n);
        eventually(|| backend.open() == 0).await;
    }
    // One that is idle when its time is over.
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_config(keys.text(&[&backend])).await;
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(backend.open(), 1);
    let begun = Instant::now();
    eventually(|| backend.open() == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn without_a_limit_a_connection_is_used_again_and_again() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_config(Keys::default().text(&[&backend])).await;
    let mut client = client(&proxy).await;
    for _ in 0..50 {
        assert_eq!(client.get("/").await.status(), 200);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_connection_of_http2_takes_so_many_requests_and_ends_what_it_has() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("pool = { max_requests = 4 }").await;
    let mut first = client(&proxy).await;
    for _ in 0..12 {
        assert_eq!(first.get("/").await.status(), 200);
    }
    assert_eq!((backend.requests(), backend.connections()), (12, 3));
}

#[tokio::test]
async fn a_connection_of_http2_that_is_too_old_begins_no_stream() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("pool = { max_age = \"300ms\" }").await;
    let mut held = client(&proxy).await;
    held.send("GET /held HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| backend.requests() == 1).await;
    let mut other = client(&proxy).await;
    assert_eq!(other.get("/").await.status(), 200);
    let before = backend.connections();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(other.get("/").await.status(), 200);
    assert_eq!(backend.connections(), before + 1);
    // The stream on the old one is as it was.
    assert_eq!(backend.open(), 2);
}
