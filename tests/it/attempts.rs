//! When a request is tried again, and when not: each condition, what of a body is sent again, and who waits for whom.

use std::time::{Duration, Instant};

use isobar::telemetry::metrics::{RetryCause, UpstreamMetrics};

use crate::harness::{After, Keys, TestBackend, TestProxy, eventually};

/// Answers whole requests with that status and a body.
fn failing(status: &str, more: &str, body: &str) -> TestBackend {
    TestBackend::fixed(format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{body}", body.len()))
}

/// Reads whole requests and closes the connection in place of an answer.
fn closing() -> TestBackend {
    TestBackend::scripted(async |peer| drop(peer.request().await))
}

fn upstream(keys: &str) -> Keys<'_> {
    Keys { upstream: keys, ..Keys::default() }
}

fn retries(proxy: &TestProxy, cause: RetryCause) -> u64 {
    proxy.snapshot().upstreams[0].state.metrics.sum(|metrics| &metrics.retries[cause as usize])
}

#[tokio::test]
async fn answers_of_gateways_are_tried_again_elsewhere() {
    for status in ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"] {
        let (bad, ok) = (failing(status, "", "no"), TestBackend::echo());
        let proxy = TestProxy::over(&[&bad, &ok]).await;
        let mut client = proxy.client().await;
        for n in 1..=4_usize {
            // By turns, of which a retry takes none: every second one begins at the bad one.
            assert_eq!(client.get("/").await.status(), 200, "{status}");
            assert_eq!((bad.requests(), ok.requests()), (n.div_ceil(2), n));
            let further = (n % 2 == 1).then_some("2");
            assert_eq!(
                (bad.last_head().get("x-isobar-attempt"), ok.last_head().get("x-isobar-attempt")),
                (None, further)
            );
        }
        // The unwanted answer had come whole, and left its connection fit for the next request.
        assert_eq!((bad.connections(), ok.connections()), (1, 1));
        assert_eq!(retries(&proxy, RetryCause::Status), 2);
        assert_eq!(proxy.snapshot().upstreams[0].state.metrics.sum(|metrics| &metrics.retried_well), 2);
        eventually(|| proxy.in_flight() == 0).await;
    }
}

/// Half of the requests begin at each backend, however many are tried again.
#[tokio::test]
async fn what_is_tried_again_takes_no_turn_of_the_round() {
    let detection = "outlier_detection = { enabled = false }\nretry_budget = { percent = 100, per_second = 1000 }";
    for strategy in ["round_robin", "weighted_round_robin"] {
        let pool = [failing("503 Service Unavailable", "", "no"), TestBackend::ok("b"), TestBackend::ok("c")];
        let keys = format!("strategy = \"{strategy}\"\nretries = {{ backoff = {{ base = \"1ms\" }} }}\n{detection}");
        let proxy = TestProxy::with_keys(&pool.each_ref(), upstream(&keys)).await;
        let mut client = proxy.client().await;
        for _ in 0..90 {
            assert_eq!(client.get("/").await.status(), 200);
        }
        let first = |backend: &TestBackend| {
            backend.heads().iter().filter(|head| head.get("x-isobar-attempt").is_none()).count()
        };
        assert_eq!(pool.each_ref().map(first), [30, 30, 30], "{strategy}");
        // And what fails at one is spread over the others: 15 each, but for chance.
        let further = pool[1].requests() - 30;
        assert!((3..=27).contains(&further), "{strategy}: {further} of 30");
    }
}

#[tokio::test]
async fn other_answers_are_answers() {
    for status in ["500 Internal Server Error", "501 Not Implemented", "429 Too Many Requests", "404 Not Found"] {
        let (bad, ok) = (failing(status, "", "mine"), TestBackend::ok("ok"));
        let proxy = TestProxy::over(&[&bad, &ok]).await;
        assert_eq!(proxy.get("/").await.text(), "mine", "{status}");
        assert_eq!((bad.requests(), ok.requests()), (1, 0), "{status}");
    }
    let (bad, ok) = (failing("500 Internal Server Error", "", "mine"), TestBackend::ok("ok"));
    let proxy = TestProxy::with_keys(&[&bad, &ok], upstream("retries = { on = [500] }")).await;
    assert_eq!(proxy.get("/").await.text(), "ok");
}

#[tokio::test]
async fn an_answer_to_what_may_not_be_repeated_stands() {
    for (method, body) in [("POST", ""), ("POST", "hello"), ("PATCH", "hello")] {
        let (bad, ok) = (failing("503 Service Unavailable", "", "busy"), TestBackend::ok("ok"));
        let proxy = TestProxy::over(&[&bad, &ok]).await;
        assert_eq!(proxy.request(method, "/", &[], body).await.text(), "busy", "{method} {body}");
        assert_eq!((bad.requests(), ok.requests()), (1, 0));
        // Whoever sends a key says that it may.
        let key = [("Idempotency-Key", "a1")];
        let (bad, ok) = (failing("503 Service Unavailable", "", "busy"), TestBackend::echo());
        let proxy = TestProxy::over(&[&bad, &ok]).await;
        assert_eq!(proxy.request(method, "/", &key, body).await.json()["body"], body, "{method} {body}");
        assert_eq!((bad.requests(), ok.requests()), (1, 1));
    }
}

#[tokio::test]
async fn the_last_answer_there_is_reaches_the_client() {
    let (a, b) = (failing("503 Service Unavailable", "x: a\r\n", "a"), failing("502 Bad Gateway", "x: b\r\n", "b"));
    let proxy = TestProxy::over(&[&a, &b]).await;
    let response = proxy.get("/").await;
    assert_eq!((response.status(), response.text(), response.header("x")), (502, "b", Some("b")));
    assert_eq!((a.requests(), b.requests()), (1, 1));
    assert_eq!(proxy.snapshot().upstreams[0].state.metrics.sum(|metrics| &metrics.retried_in_vain), 1);
    // Also where it is the only backend, and at once.
    let alone = TestProxy::over(&[&a]).await;
    assert_eq!(alone.get("/").await.text(), "a");
    assert_eq!(retries(&alone, RetryCause::Status), 0);
    eventually(|| proxy.in_flight() + alone.in_flight() == 0).await;
}

#[tokio::test]
async fn an_unwanted_answer_that_has_not_ended_is_given_up() {
    let bad = TestBackend::raw("HTTP/1.1 503 Busy\r\ncontent-length: 100000\r\n\r\nbegun", After::Hold);
    let ok = TestBackend::ok("ok");
    let proxy = TestProxy::over(&[&bad, &ok]).await;
    assert_eq!(proxy.get("/").await.text(), "ok");
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn retry_after_is_waited_for_up_to_a_limit() {
    for (asked, expected, wait) in [("0", "ok", 0), ("1", "ok", 1), ("2", "busy", 0), ("nonsense", "ok", 0)] {
        let field = format!("retry-after: {asked}\r\n");
        let (bad, ok) = (failing("503 Service Unavailable", &field, "busy"), TestBackend::ok("ok"));
        let proxy = TestProxy::over(&[&bad, &ok]).await;
        let start = Instant::now();
        let response = proxy.get("/").await;
        assert_eq!(response.text(), expected, "{asked}");
        assert!(start.elapsed() >= Duration::from_secs(wait), "{asked}: {:?}", start.elapsed());
        if expected == "busy" {
            assert_eq!(response.header("retry-after"), Some(asked));
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_during_a_wait_ends_everything() {
    let bad = failing("503 Service Unavailable", "retry-after: 5\r\n", "busy");
    let other = TestBackend::ok("ok");
    let keys = upstream("retries = { backoff = { retry_after_max = \"10s\" } }");
    let proxy = TestProxy::with_keys(&[&bad, &other], keys).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| bad.requests() == 1).await;
    drop(client);
    let start = Instant::now();
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    assert!(start.elapsed() < Duration::from_secs(4), "before the wait was over");
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn a_body_that_was_kept_is_sent_again() {
    let closing = closing();
    let ok = TestBackend::echo();
    let keys = upstream("retries = { body_buffer = \"1KiB\" }");
    let proxy = TestProxy::with_keys(&[&closing, &ok], keys).await;
    let body = "x".repeat(1024);
    let chunked = format!("400\r\n{body}\r\n0\r\n\r\n");
    let response = proxy.request("PUT", "/", &[], &body).await;
    assert_eq!(response.json()["body"], body);
    let mut client = proxy.client().await;
    // Takes the turn of the one that answers.
    client.get("/").await;
    client.send(format!("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunked}")).await;
    assert_eq!(client.response().await.json()["body"], body);
    // In pieces, with the client in the middle of it when the first backend breaks.
    client.get("/").await;
    client.send("DELETE / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    client.send("def").await;
    assert_eq!(client.response().await.json()["body"], "abcdef");
    // An empty one needs no memory.
    client.get("/").await;
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert_eq!(client.response().await.json()["body"], "");
    assert_eq!((closing.requests(), ok.requests()), (4, 7));
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_backend_that_breaks_in_the_middle_of_a_body_costs_nothing_of_it() {
    // Closes before the body has come.
    let early = TestBackend::raw("", After::Reset);
    let ok = TestBackend::echo();
    let proxy = TestProxy::over(&[&early, &ok]).await;
    let mut client = proxy.client().await;
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    eventually(|| ok.requests() == 1).await;
    client.send("def").await;
    assert_eq!(client.response().await.json()["body"], "abcdef");
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_body_that_was_not_kept_is_sent_once() {
    let body = "x".repeat(1025);
    let chunked = format!("401\r\n{body}\r\n0\r\n\r\n");
    let length = format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n{body}");
    let chunked = format!("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunked}");
    for (keys, request) in [
        ("retries = { body_buffer = \"1KiB\" }", &length),
        ("retries = { body_buffer = \"1KiB\" }", &chunked),
        ("retries = { body_buffer = 0 }", &length),
        ("retries = 0", &length),
    ] {
        for bad in [closing(), failing("503 Service Unavailable", "", "busy")] {
            let ok = TestBackend::echo();
            let proxy = TestProxy::with_keys(&[&bad, &ok], upstream(keys)).await;
            let mut client = proxy.client().await;
            client.send(request).await;
            assert!([502, 503].contains(&client.response().await.status()), "{keys}");
            assert_eq!((bad.requests(), ok.requests()), (1, 0), "{keys}");
        }
    }
    // Of none of it anything was sent: whatever its length.
    let (refusing, ok) = (TestBackend::refusing(), TestBackend::echo());
    let proxy = TestProxy::with_keys(&[&refusing, &ok], upstream("retries = { body_buffer = 0 }")).await;
    assert_eq!(proxy.post("/", &body).await.json()["body"], body);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_up_for_another() {
    let (silent, ok) = (TestBackend::raw("", After::Hold), TestBackend::ok("ok"));
    let keys = upstream("retries = { attempt_timeout = \"200ms\" }");
    let proxy = TestProxy::with_keys(&[&silent, &ok], keys).await;
    let start = Instant::now();
    let mut client = proxy.client().await;
    assert_eq!(client.get("/").await.text(), "ok");
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(client.get("/").await.text(), "ok", "by its turn");
    assert_eq!(proxy.request("PUT", "/", &[], "hello").await.text(), "ok");
    assert_eq!((silent.requests(), ok.requests()), (2, 3));
    assert_eq!(retries(&proxy, RetryCause::Timeout), 2);
    assert_eq!(proxy.state("u", &silent).metrics.sum(|metrics| &metrics.timeouts), 2);
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn the_last_attempt_has_all_the_time_of_the_route() {
    let after = Duration::from_millis(500);
    let (slow, slower) = (TestBackend::slow("slow", after), TestBackend::slow("slower", after));
    let keys = upstream("retries = { max = 1, attempt_timeout = \"100ms\" }");
    // No further attempt; or nobody else; or what may not be repeated.
    let proxy = TestProxy::with_keys(&[&slow, &slower], keys).await;
    assert_eq!(proxy.get("/").await.text(), "slower");
    assert_eq!(proxy.post("/", "hello").await.text(), "slower", "by its turn");
    let proxy = TestProxy::with_keys(&[&slow], keys).await;
    assert_eq!(proxy.get("/").await.text(), "slow");
    assert_eq!((slow.requests(), slower.requests()), (2, 2));
    // The route's own time ends it.
    let route = "timeouts = { response_head = \"250ms\" }";
    let proxy = TestProxy::with_keys(&[&slow], Keys { route, ..keys }).await;
    let start = Instant::now();
    assert_eq!(proxy.get("/").await.status(), 504);
    assert!(start.elapsed() >= Duration::from_millis(250) && start.elapsed() < after, "{:?}", start.elapsed());
}

#[tokio::test]
async fn only_what_is_named_is_tried_again() {
    let pool = || [failing("503 Service Unavailable", "", "busy"), closing(), TestBackend::refusing()];
    for (on, tried) in [
        ("503", [true, false, false]),
        ("\"reset\"", [false, true, false]),
        ("\"connect_failure\"", [false, false, true]),
    ] {
        for (bad, again) in pool().into_iter().zip(tried) {
            let ok = TestBackend::ok("ok");
            let text = format!("retries = {{ on = [{on}] }}");
            let proxy = TestProxy::with_keys(&[&bad, &ok], upstream(&text)).await;
            assert_eq!(proxy.get("/").await.status() == 200, again, "{on}");
            assert_eq!(UpstreamMetrics::all_retries(&proxy.snapshot().upstreams[0].state.metrics), u64::from(again));
        }
    }
}

#[tokio::test]
async fn a_route_has_rules_of_its_own() {
    let (bad, ok) = (failing("503 Service Unavailable", "", "busy"), TestBackend::ok("ok"));
    let tables = "[[route]]\npath_prefix = \"/once\"\nupstream = \"u\"\nretries = 0\n";
    let proxy = TestProxy::with_keys(&[&bad, &ok], Keys { tables, ..Keys::default() }).await;
    assert_eq!(proxy.get("/once").await.text(), "busy");
    assert_eq!(proxy.get("/once").await.text(), "ok");
    assert_eq!(proxy.get("/").await.text(), "ok");
    assert_eq!((bad.requests(), ok.requests()), (2, 2));
}

/// A further attempt may go to a backend that a reload has removed since the exchange began: it is cut like the others.
#[tokio::test]
async fn a_further_attempt_at_a_removed_backend_is_cut_at_the_drain_limit() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let first = TestBackend::scripted(async move |peer| {
        peer.request().await;
        let _ = gone.clone().wait_for(|go| *go).await;
    });
    let removed = TestBackend::raw("", After::Hold);
    let limit = "drain_limit = \"400ms\"\n";
    let text = |pool: &[&TestBackend]| format!("{limit}{}", Keys::default().text(pool));
    let proxy = TestProxy::with_config(text(&[&first, &removed])).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| first.requests() == 1).await;
    proxy.apply(text(&[&first])).await.unwrap();
    go.send_replace(true);
    eventually(|| removed.requests() == 1).await;
    client.closed().await;
    eventually(|| proxy.exchanges() == 0).await;
    assert_eq!(proxy.counted(|listener| &listener.cut), 1);
}
