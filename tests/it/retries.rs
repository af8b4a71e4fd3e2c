//! What may be sent again is, where it has not been; what may not is delivered once.

use isobar::telemetry::metrics::UpstreamMetrics;

use crate::harness::{After, Keys, TestBackend, TestProxy, eventually};

/// The first request of each connection is answered, the next one read and not answered.
fn fickle() -> TestBackend {
    TestBackend::scripted(async |peer| {
        if peer.request().await.is_some() {
            peer.respond("200 OK", "first").await;
            peer.request().await;
        }
    })
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere() {
    let (refusing, ok) = (TestBackend::refusing(), TestBackend::echo());
    let proxy = TestProxy::over(&[&refusing, &ok]).await;
    for _ in 0..5 {
        // By turns, of which a retry takes none: one of each kind begins at the one that refuses.
        for _ in 0..2 {
            assert_eq!(proxy.get("/").await.status(), 200);
        }
        for _ in 0..2 {
            assert_eq!(proxy.post("/", "hello").await.json()["body"], "hello");
        }
    }
    assert_eq!(ok.requests(), 20);
}

#[tokio::test]
async fn no_more_backends_are_tried_than_retries_allow() {
    let pool: Vec<_> = (0..5).map(|_| TestBackend::refusing()).collect();
    let pool: Vec<_> = pool.iter().collect();
    for (upstream, attempts) in [("", 3), ("retries = 0", 1), ("retries = 7", 5)] {
        let proxy = TestProxy::with_keys(&pool, Keys { upstream, ..Keys::default() }).await;
        assert_eq!(proxy.get("/").await.status(), 502);
        let roster = proxy.snapshot().upstreams[0].roster();
        let picks: Vec<_> =
            roster.backends().iter().map(|backend| backend.state.metrics.sum(|metrics| &metrics.picks)).collect();
        assert_eq!(picks.iter().sum::<u64>(), attempts, "{upstream}");
        assert!(picks.iter().all(|&picks| picks <= 1), "none twice: {picks:?}");
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn an_idle_connection_that_the_backend_closed_costs_nothing() {
    let backend = TestBackend::raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", After::Close);
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.text(), "ok");
        eventually(|| backend.open() == 0).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
        let response = client.response().await;
        eventually(|| backend.open() == 0).await;
        // A request that is not idempotent is safe too, where none of it was written; else it is told, not repeated.
        assert!(response.status() == 200 || response.status() == 502);
    }
}

#[tokio::test]
async fn a_reused_connection_that_breaks_is_replaced_once_for_what_is_idempotent() {
    let backend = fickle();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for i in 0..5 {
        assert_eq!(client.get(&format!("/{i}")).await.text(), "first");
    }
    // Each but the first was sent to the connection of the one before, and again to a new one.
    assert_eq!((backend.requests(), backend.connections()), (9, 5));
    let lines: Vec<_> = backend.heads().into_iter().map(|head| head.line).collect();
    assert_eq!(lines[1], lines[2]);
    // The second sending is the first, with all that the proxy adds, once.
    let heads = backend.heads();
    assert_eq!(heads[1].fields, heads[2].fields);
    assert_eq!(heads[2].all("x-forwarded-for"), ["127.0.0.1"]);
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_reused_connection_that_breaks_does_not_get_a_post_delivered_twice() {
    for body in ["", "hello"] {
        let (backend, other) = (fickle(), TestBackend::refusing());
        let proxy = TestProxy::over(&[&backend, &other]).await;
        let mut client = proxy.client().await;
        assert_eq!(client.get("/").await.text(), "first");
        let post = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        client.send(post).await;
        assert_eq!(client.response().await.status(), 502);
        assert_eq!(backend.heads().iter().filter(|head| head.method() == "POST").count(), 1);
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_sends_what_is_idempotent_elsewhere() {
    for after in [After::Close, After::Reset] {
        let (broken, ok) = (TestBackend::raw("", after), TestBackend::echo());
        let proxy = TestProxy::over(&[&broken, &ok]).await;
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
            let requests = (broken.requests(), ok.requests());
            // By turns: this one begins at the broken one.
            assert_eq!(proxy.request(method, "/x?y", &[("x", "y")], "").await.status(), 200, "{method}");
            assert_eq!((broken.requests(), ok.requests()), (requests.0 + 1, requests.1 + 1), "{method}");
            let head = ok.last_head();
            assert_eq!((head.method(), head.target(), head.get("x")), (method, "/x?y", Some("y")));
            assert_eq!(head.all("x-forwarded-for"), ["127.0.0.1"]);
            assert_eq!(
                UpstreamMetrics::all_retries(&proxy.snapshot().upstreams[0].state.metrics) as usize,
                broken.requests()
            );
            // The retry took no turn: the next one is of the other.
            assert_eq!(proxy.get("/").await.status(), 200);
            assert_eq!((broken.requests(), ok.requests()), (requests.0 + 1, requests.1 + 2), "{method}");
        }
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_does_not_repeat_what_is_not_idempotent() {
    for (method, body) in [("POST", ""), ("POST", "hello"), ("PATCH", "hello")] {
        let (broken, ok) = (TestBackend::raw("", After::Close), TestBackend::echo());
        let proxy = TestProxy::over(&[&broken, &ok]).await;
        assert_eq!(proxy.request(method, "/", &[], body).await.status(), 502, "{method} {body}");
        assert_eq!((broken.requests(), ok.requests()), (1, 0), "{method} {body}");
    }
}

#[tokio::test]
async fn nothing_is_sent_again_once_there_is_an_answer() {
    for bytes in ["H", "HTTP/1.1 200 OK\r\n"] {
        let (broken, ok) = (TestBackend::raw(bytes, After::Close), TestBackend::ok("ok"));
        let proxy = TestProxy::over(&[&broken, &ok]).await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.response().await.status(), 502, "{bytes:?}");
        assert_eq!((broken.requests(), ok.requests()), (1, 0), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_small_answer_that_breaks_off_is_none_yet() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe";
    for (method, upstream, whole) in [
        ("GET", "", true),
        // Not to be sent twice.
        ("POST", "", false),
        ("GET", "retries = { response_buffer = 4 }", false),
        ("GET", "retries = { on = [\"connect_failure\"] }", false),
        ("GET", "retries = 0", false),
    ] {
        let (broken, ok) = (TestBackend::raw(cut, After::Close), TestBackend::ok("ok"));
        let proxy = TestProxy::with_keys(&[&broken, &ok], Keys { upstream, ..Keys::default() }).await;
        let mut client = proxy.client().await;
        client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        match whole {
            true => assert_eq!(client.response().await.text(), "ok"),
            false => assert_eq!(client.cut().await.body, b"he"),
        }
        assert_eq!((broken.requests(), ok.requests()), (1, usize::from(whole)), "{method} {upstream}");
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_backend_that_is_killed_and_comes_back() {
    let (mut a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    // It would be ejected, and come back little by little.
    let keys = Keys { upstream: "outlier_detection = { enabled = false }", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&a, &b], keys).await;
    let mut client = proxy.client().await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.status(), 200);
    }
    a.kill();
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "b");
    }
    a.restart();
    let before = a.requests();
    for _ in 0..10 {
        assert_eq!(client.get("/").await.status(), 200);
    }
    assert_eq!(a.requests(), before + 5);
    eventually(|| proxy.in_flight() == 0).await;
}
