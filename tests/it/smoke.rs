//! The harness itself, and the plainest thing a proxy does.

use crate::harness::{TestBackend, TestProxy, body_of, eventually};

#[tokio::test]
async fn takes_turns() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy = TestProxy::over(&[&a, &b]).await;
    let mut client = proxy.client().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.text(), "a");
        assert_eq!(client.get("/").await.text(), "b");
    }
    assert_eq!((a.requests(), b.requests()), (5, 5));
    assert_eq!((a.connections(), b.connections()), (1, 1));
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_backend_comes_back_on_its_port() {
    let mut backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    assert_eq!(proxy.post("/x?y", "hello").await.json()["body"], "hello");
    backend.kill();
    assert_eq!(proxy.get("/").await.status(), 502);
    backend.restart();
    assert_eq!(proxy.get("/x").await.json()["target"], "/x");
    assert_eq!(body_of(1000).len(), 1000);
}

#[test]
#[should_panic = "what the script says"]
fn the_panic_of_a_script_is_raised_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut backend = TestBackend::scripted(async |_| panic!("what the script says"));
        let proxy = TestProxy::over(&[&backend]).await;
        proxy.get("/").await;
        backend.kill();
    });
}
