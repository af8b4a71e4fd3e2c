//! What log, metrics, outlier detection, circuit breaker and health checks make of calls.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use isobar::exchange::body::BodyError;
use isobar::middleware::{Middleware, RequestView, Step};
use tokio::net::TcpListener;

use crate::harness::{Log, Scratch, TestProxy, eventually, soon};
use crate::middleware::kind;
use crate::wrapped_bodies::Made;

use super::{Backend, Client, Keys, counted, over_with, proxy, rest, state, status, text, with};

#[tokio::test]
async fn log_and_metrics_have_the_status_wherever_it_comes_from() {
    let scratch = Scratch::new();
    let log = scratch.path("access.log");
    let tables = format!(
        "[access_log]\nenabled = true\nformat = \"json\"\noutput = {log:?}\n[admin]\naddress = \"127.0.0.1:0\""
    );
    let (mut backend, proxy, client) = with(Keys { upstream: "retries = 0", tables: &tables, ..Keys::default() }).await;
    // In trailers, in the head, of the proxy's own, and none.
    let response = client.unary(&[]).await;
    backend.call().await.finish(9);
    rest(soon(response).await.unwrap().into_body()).await.unwrap();
    let response = client.unary(&[]).await;
    backend.call().await.refuse(5);
    client.refused(response).await;
    let response = client.unary(&[]).await;
    backend.call().await.respond.send_reset(Reason::INTERNAL_ERROR);
    client.refused(response).await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    call.answer().send_data(Bytes::from_static(b"answer"), true).unwrap();
    rest(soon(response).await.unwrap().into_body()).await.unwrap();
    // A call that is cancelled, and a request that is none.
    let (response, mut send) = client.call(&[]).await;
    let _call = backend.call().await;
    send.send_reset(Reason::CANCEL);
    assert!(soon(response).await.is_err());
    over_with(&proxy).await;
    let (response, _) = client.begin(Request::get("http://a.example/").body(()).unwrap(), true).await;
    backend.call().await.respond.send_response(Response::new(()), true).unwrap();
    soon(response).await.unwrap();
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually(|| read().lines().count() == 6).await;
    let lines: Vec<serde_json::Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        lines.iter().map(|line| (line["status"].as_u64().unwrap(), line["grpc_status"].as_u64())).collect();
    assert_eq!(told, [(200, Some(9)), (200, Some(5)), (200, Some(14)), (200, Some(2)), (499, Some(1)), (200, None)]);
    assert_eq!((&lines[2]["reason"], &lines[4]["reason"]), (&"backend_broke_off".into(), &"client_gone".into()));
    for (code, count) in [(9, 1), (5, 1), (14, 1), (2, 1), (1, 1), (0, 0)] {
        assert_eq!(counted(&proxy, code), count, "{code}");
    }
    let mut admin = crate::harness::Client::connect(proxy.admin_address()).await;
    admin.send("GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let metrics = admin.response().await;
    let series = "isobar_upstream_grpc_calls_total{upstream=\"u\",status=\"failed_precondition\"} 1";
    assert!(metrics.text().lines().any(|line| line == series), "{}", metrics.text());
}

#[tokio::test]
async fn outlier_detection_looks_at_statuses() {
    let keys = "retries = 0\noutlier_detection = { consecutive_gateway_errors = 3, consecutive_local_errors = 3 }";
    for (case, ejects) in [("trailers", true), ("alone", true), ("broken", true), ("deadline", false), ("late", false)]
    {
        let mut backends = [Backend::new().await, Backend::new().await];
        let proxy = proxy(&[&backends[0], &backends[1]], Keys { upstream: keys, ..Keys::default() }).await;
        let client = Client::connect(&proxy).await;
        let address = backends[0].address;
        // Six by turns, three of them there.
        for _ in 0..6 {
            let fields: &[_] = if case == "late" { &[("grpc-timeout", "30m")] } else { &[] };
            let response = client.unary(fields).await;
            let [first, second] = &mut backends;
            let mut call = tokio::select! {
                call = first.call() => (true, call),
                call = second.call() => (false, call),
            };
            match (call.0, case) {
                (false, _) => call.1.finish(0),
                (_, "trailers") => call.1.finish(14),
                (_, "alone") => call.1.refuse(14),
                (_, "deadline") => call.1.refuse(4),
                (_, "late") => {
                    assert_eq!(client.refused(response).await.0, 4);
                    continue;
                }
                (_, _) => call.1.answer().send_reset(Reason::INTERNAL_ERROR),
            }
            let response = soon(response).await.unwrap();
            let _ = rest(response.into_body()).await;
        }
        over_with(&proxy).await;
        let ejected = || state(&proxy, &backends[0]).outlier.history().is_ejected();
        if ejects {
            eventually(ejected).await;
        } else {
            let streaks = state(&proxy, &backends[0]).outlier.streaks();
            assert_eq!((streaks.gateway, streaks.local), (0, 0), "{case} at {address}");
            assert!(!ejected());
        }
    }
}

/// Breaks a request's body off at a piece that says so.
#[derive(Debug)]
struct Picky;

impl Middleware for Picky {
    fn on_request<'a>(&'a self, mut request: RequestView<'a>) -> Step<'a> {
        let error = || BodyError::Middleware(io::Error::other("as the test wants"));
        request.wrap_body(move |mut body| {
            Box::pin(Made(move |cx: &mut Context<'_>| {
                body.as_mut().poll_frame(cx).map(|piece| match piece {
                    Some(Ok(frame)) if frame.data_ref().is_some_and(|data| data == "fail") => Some(Err(error())),
                    piece => piece,
                })
            }))
        });
        Step::Continue
    }
}

/// The stream to a backend is reset then, which is not that backend's doing.
#[tokio::test]
async fn uploads_that_isobar_breaks_off_are_not_held_against_a_backend() {
    let tables = "[middleware.m.picky]\n";
    let idle = "timeouts = { grpc_idle = \"500ms\" }";
    for (case, listener, route, reason) in [
        ("limit", "max_body = \"1KiB\"", "", "body_too_large"),
        ("wrapper", "", "middleware = [\"m\"]", "middleware_failed"),
        ("slow", "", idle, "client_too_slow"),
        ("backend", "", "", "backend_cut_short"),
    ] {
        let (mut backend, log) = (Backend::new().await, Log::new());
        let tables = &format!("{tables}{}", log.table("json"));
        let text = text(&[&backend], Keys { listener, route, tables, ..Keys::default() });
        let proxy = TestProxy::with_middleware(text, &[("picky", kind(|_| Picky))]).await;
        let client = Client::connect(&proxy).await;
        let fields: &[_] = if case == "slow" { &[("content-length", "100000")] } else { &[] };
        let (response, mut send) = client.call(fields).await;
        let mut call = backend.call().await;
        let mut answers = call.answer();
        let body = soon(response).await.unwrap().into_body();
        let rest = tokio::spawn(rest(body));
        match case {
            "limit" => send.send_data(Bytes::from(vec![b'x'; 600]), false).unwrap(),
            "wrapper" => send.send_data(Bytes::from_static(b"fail"), false).unwrap(),
            // Too slow, and not silent. The messages are empty.
            "slow" => {
                while send.send_data(Bytes::from_static(&[0; 5]), false).is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            _ => answers.send_reset(Reason::INTERNAL_ERROR),
        }
        let ends = soon(rest).await.unwrap();
        match case {
            "limit" => assert_eq!(status(&ends.unwrap().1), 8),
            "wrapper" => assert_eq!(status(&ends.unwrap().1), 13),
            "slow" => assert!(ends.is_err(), "{ends:?}"),
            _ => assert_eq!(status(&ends.unwrap().1), 14),
        }
        over_with(&proxy).await;
        let streaks = state(&proxy, &backend).outlier.streaks();
        assert_eq!((streaks.gateway, streaks.local) != (0, 0), case == "backend", "{case}");
        let line: serde_json::Value = serde_json::from_str(&log.lines(1).await[0]).unwrap();
        assert_eq!(line["reason"], reason, "{line}");
    }
}

#[tokio::test]
async fn deadlines_of_clients_open_no_circuit_breaker() {
    // Connects, and never shakes hands.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaker = "circuit_breaker = { min_calls = 2, failure_percent = 1, open_for = \"60s\", open_max = \"60s\" }";
    let proxy = TestProxy::with_config(format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         backends = [\"{}\"]\nprotocol = \"http2\"\nretries = 0\n{breaker}\ntls = {{ insecure_skip_verify = true }}\n",
        silent.local_addr().unwrap()
    ))
    .await;
    let client = Client::connect(&proxy).await;
    for _ in 0..6 {
        let response = client.unary(&[("grpc-timeout", "20m")]).await;
        assert_eq!(client.refused(response).await.0, 4);
    }
    over_with(&proxy).await;
}

#[tokio::test]
async fn health_checks_ask_the_health_service() {
    let check = "health_check = { type = \"grpc\", service = \"s\", interval = \"20ms\", unhealthy_after = 1, healthy_after = 1 }";
    let (mut backend, proxy, client) = with(Keys { upstream: check, ..Keys::default() }).await;
    let verdict = || state(&proxy, &backend).health.verdict().as_str();
    let failure = || state(&proxy, &backend).health.look().1.and_then(|last| last.failure);
    eventually(|| verdict() == "healthy").await;
    for (said, words) in [
        (2, "it says that it is NOT_SERVING"),
        (3, "it says that it is SERVICE_UNKNOWN"),
        (10, "the answer of the health service is malformed"),
        (25, "its health service does not know the service: status not_found"),
        (32, "it has no health service: status unimplemented"),
        (34, "status unavailable"),
    ] {
        backend.health.store(said, SeqCst);
        eventually(|| verdict() == "unhealthy" && failure().as_deref() == Some(words)).await;
        backend.health.store(1, SeqCst);
        eventually(|| verdict() == "healthy").await;
    }
    let response = client.unary(&[]).await;
    backend.call().await.finish(0);
    assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
    assert_eq!(backend.asked(), 1, "checks are no calls");
}
