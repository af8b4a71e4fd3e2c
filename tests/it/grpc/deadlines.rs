//! How long calls may take, and how long they may be silent.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};

use crate::harness::{TestBackend, TestProxy, soon};

use super::{Client, Keys, call, counted, headers, message, over, over_with, rest, status, with};

#[tokio::test]
async fn calls_that_are_silent_are_not_cut_when_requests_are() {
    let timeouts = "timeouts = { response_head = \"60ms\", body_idle = \"60ms\" }";
    let (mut backend, proxy, client) = with(Keys { route: timeouts, ..Keys::default() }).await;
    // One whose head does not come, one that has begun; each beside a request that is so too, and begins after it.
    let (waiting, mut asks) = client.call(&[]).await;
    let mut waits = backend.call().await;
    let (begun, mut sends) = client.call(&[]).await;
    let mut open = backend.call().await;
    let mut answers = open.answer();
    let mut body = soon(begun).await.unwrap().into_body();
    for answered in [false, true] {
        let get = Request::get("http://a.example/").body(()).unwrap();
        let (response, _) = client.begin(get, true).await;
        let mut plain = backend.call().await;
        if answered {
            let mut slow = plain.respond.send_response(Response::new(()), false).unwrap();
            slow.send_data(Bytes::from_static(b"x"), false).unwrap();
            let cut = rest(soon(response).await.unwrap().into_body()).await.unwrap_err();
            assert_eq!(cut.reason(), Some(Reason::CANCEL));
        } else {
            assert_eq!(soon(response).await.unwrap().status(), 504);
        }
    }
    assert_eq!(proxy.in_flight(), 2);
    asks.send_data(Bytes::from_static(b"still here"), true).unwrap();
    assert_eq!(waits.message().await.as_deref(), Some(&b"still here"[..]));
    waits.finish(0);
    assert_eq!(status(&rest(soon(waiting).await.unwrap().into_body()).await.unwrap().1), 0);
    sends.send_data(Bytes::from_static(b"here too"), false).unwrap();
    assert_eq!(open.message().await.as_deref(), Some(&b"here too"[..]));
    answers.send_data(Bytes::from_static(b"yes"), false).unwrap();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"yes"[..]));
    answers.send_trailers(headers(&[("grpc-status", "0")])).unwrap();
    assert_eq!(status(&rest(body).await.unwrap().1), 0);
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_call_that_is_silent_for_too_long_is_unavailable() {
    let (mut backend, proxy, client) =
        with(Keys { route: "timeouts = { grpc_idle = \"100ms\" }", ..Keys::default() }).await;
    let (response, _send) = client.call(&[]).await;
    let mut call = backend.call().await;
    assert_eq!(client.refused(response).await.0, 14);
    assert_eq!(call.reset().await, Reason::CANCEL);
    over_with(&proxy).await;

    let (response, _send) = client.call(&[]).await;
    let mut call = backend.call().await;
    let mut answers = call.answer();
    answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"begun"[..], 14));
    assert_eq!(soon(poll_fn(|cx| answers.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 14), 2);
}

#[tokio::test]
async fn a_deadline_bounds_the_call_and_its_backend_is_told_less() {
    let (mut backend, proxy, client) = over().await;
    // Before the head.
    let response = client.unary(&[("grpc-timeout", "150m")]).await;
    let mut call = backend.call().await;
    let told = call.timeout().unwrap();
    assert!(told < Duration::from_millis(150) && !told.is_zero(), "{told:?}");
    assert_eq!(client.refused(response).await, (4, "the call took longer than it may".to_owned()));
    assert_eq!(call.reset().await, Reason::CANCEL);
    over_with(&proxy).await;

    // Behind it, however much moves.
    let (response, _send) = client.call(&[("grpc-timeout", "200m")]).await;
    let mut call = backend.call().await;
    let mut answers = call.answer();
    let flood = tokio::spawn(async move {
        while answers.send_data(Bytes::from_static(b"more"), false).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut body = soon(response).await.unwrap().into_body();
    while let Some(_data) = message(&mut body).await {}
    assert_eq!(status(&soon(body.trailers()).await.unwrap().unwrap()), 4);
    soon(flood).await.unwrap();
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 4), 2);
}

#[tokio::test]
async fn deadlines_are_kept_though_the_file_has_long_timeouts_only() {
    // Its watch alone would look every quarter of a second.
    let (mut backend, proxy, client) = over().await;
    let began = std::time::Instant::now();
    let mut shortest = Duration::MAX;
    for _ in 0..10 {
        let asked = std::time::Instant::now();
        let response = client.unary(&[("grpc-timeout", "20m")]).await;
        let _call = backend.call().await;
        assert_eq!(client.refused(response).await.0, 4);
        shortest = shortest.min(asked.elapsed());
    }
    assert!(shortest >= Duration::from_millis(20) && shortest < Duration::from_millis(100), "{shortest:?}");
    assert!(began.elapsed() >= Duration::from_millis(200));
    over_with(&proxy).await;
}

#[tokio::test]
async fn the_route_limits_deadlines() {
    let route = "timeouts = { exchange = \"30s\", grpc_timeout_max = \"10s\" }";
    let (mut backend, proxy, client) = with(Keys { route, ..Keys::default() }).await;
    for (asked, most, least) in [(Some("20S"), 10, 5), (Some("9S"), 9, 4), (None, 30, 20), (Some("1H"), 10, 5)] {
        let fields: Vec<_> = asked.into_iter().map(|asked| ("grpc-timeout", asked)).collect();
        let response = client.unary(&fields).await;
        let call = backend.call().await;
        let told = call.timeout().unwrap();
        assert!(told < Duration::from_secs(most) && told > Duration::from_secs(least), "{asked:?}: {told:?}");
        call.finish(0);
        assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
    }
    over_with(&proxy).await;
}

#[tokio::test]
async fn the_longest_deadline_there_is_can_be_given() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[("grpc-timeout", "99999999H")]).await;
    let call = backend.call().await;
    assert_eq!(call.head.headers["grpc-timeout"], "99999998H");
    call.finish(0);
    assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
    over_with(&proxy).await;
}

#[tokio::test]
async fn deadlines_that_are_none_reach_no_backend() {
    let (backend, proxy, client) = over().await;
    for (timeouts, status, words) in [
        (&["soon"][..], 13, "the grpc-timeout is malformed"),
        (&["123456789S"], 13, "the grpc-timeout is malformed"),
        (&["1S", "2S"], 13, "the grpc-timeout is malformed"),
        (&["0S"], 4, "the call took longer than it may"),
    ] {
        let mut request = call("/pkg.Service/Method", &[]);
        for timeout in timeouts {
            request.headers_mut().append("grpc-timeout", timeout.parse().unwrap());
        }
        let (response, _send) = client.begin(request, false).await;
        assert_eq!(client.refused(response).await, (status, words.to_owned()), "{timeouts:?}");
    }
    over_with(&proxy).await;
    assert_eq!(backend.asked(), 0);
}

#[tokio::test]
async fn an_overdue_call_takes_no_connection() {
    let backend = TestBackend::ok("hello");
    let proxy = TestProxy::over(&[&backend]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let client = Client::connect(&proxy).await;
    for _ in 0..5 {
        // Over once it is looked at, and not at once, as 0 is.
        let response = client.unary(&[("grpc-timeout", "1n")]).await;
        assert_eq!(client.refused(response).await.0, 4);
    }
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!((backend.connections(), backend.requests()), (1, 2));
    over_with(&proxy).await;
}
