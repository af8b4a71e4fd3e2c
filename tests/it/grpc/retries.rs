//! Calls that are made again.

use crate::harness::{TestProxy, soon};

use super::{Backend, Call, Client, Keys, answer, over_with, proxy, rest, status};

/// Two backends, a proxy that calls again after these, and a client of it.
async fn retrying(upstream: &str) -> ([Backend; 2], TestProxy, Client) {
    let backends = [Backend::new().await, Backend::new().await];
    let keys = format!("outlier_detection = {{ enabled = false }}\n{upstream}");
    let proxy = proxy(&[&backends[0], &backends[1]], Keys { upstream: &keys, ..Keys::default() }).await;
    let client = Client::connect(&proxy).await;
    (backends, proxy, client)
}

/// The next call, at whichever of the two.
async fn either([a, b]: &mut [Backend; 2]) -> Call {
    tokio::select! {
        call = a.call() => call,
        call = b.call() => call,
    }
}

fn retries(proxy: &TestProxy) -> u64 {
    isobar::telemetry::metrics::UpstreamMetrics::all_retries(&proxy.snapshot().upstream("u").unwrap().state.metrics)
}

#[tokio::test]
async fn a_call_is_made_again_after_a_status_that_is_named() {
    let (mut backends, proxy, client) = retrying("retries = { grpc_statuses = [\"unavailable\"] }").await;
    let response = client.unary(&[("grpc-timeout", "20S")]).await;
    let mut first = either(&mut backends).await;
    let told = first.timeout().unwrap();
    assert_eq!(first.message().await.as_deref(), Some(&b"question"[..]));
    first.refuse(14);
    let mut second = either(&mut backends).await;
    assert!(second.timeout().unwrap() < told, "less is left");
    assert_eq!(second.head.headers["x-isobar-attempt"], "2");
    assert_eq!(second.message().await.as_deref(), Some(&b"question"[..]));
    assert_eq!(proxy.in_flight(), 1);
    second.finish(0);
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"answer"[..], 0));
    over_with(&proxy).await;
    assert_eq!((backends[0].asked(), backends[1].asked(), retries(&proxy)), (1, 1, 1));
}

#[tokio::test]
async fn the_last_answer_passes_where_all_refuse() {
    let (mut backends, proxy, client) = retrying("retries = { max = 5, grpc_statuses = [\"unavailable\"] }").await;
    let response = client.unary(&[]).await;
    either(&mut backends).await.refuse(14);
    either(&mut backends).await.refuse(14);
    assert_eq!(client.refused(response).await.0, 14);
    over_with(&proxy).await;
    assert_eq!((backends[0].asked(), backends[1].asked()), (1, 1));
}

#[tokio::test]
async fn a_call_is_not_made_again_where_that_may_not_be() {
    for (case, upstream) in [
        ("not named", "retries = { grpc_statuses = [\"aborted\"] }"),
        ("none named", ""),
        ("no retries", "retries = { max = 0, grpc_statuses = [\"unavailable\"] }"),
        ("in trailers", "retries = { grpc_statuses = [\"unavailable\"] }"),
        ("pushed back", "retries = { grpc_statuses = [\"unavailable\"] }"),
        ("not kept", "retries = { body_buffer = 4, grpc_statuses = [\"unavailable\"] }"),
        (
            "no budget",
            "retries = { grpc_statuses = [\"unavailable\"] }\nretry_budget = { percent = 0, per_second = 0 }",
        ),
    ] {
        let (mut backends, proxy, client) = retrying(upstream).await;
        let response = client.unary(&[]).await;
        let mut call = either(&mut backends).await;
        assert_eq!(call.message().await.as_deref(), Some(&b"question"[..]));
        match case {
            "in trailers" => call.finish(14),
            "pushed back" => {
                let fields = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "5000")];
                call.respond.send_response(answer(&fields), true).unwrap();
            }
            _ => call.refuse(14),
        }
        let response = soon(response).await.unwrap();
        let head = response.headers().clone();
        let (_, trailers) = rest(response.into_body()).await.unwrap();
        assert_eq!(status(if case == "in trailers" { &trailers } else { &head }), 14, "{case}");
        over_with(&proxy).await;
        assert_eq!((backends[0].asked() + backends[1].asked(), retries(&proxy)), (1, 0), "{case}");
    }
}

#[tokio::test]
async fn a_route_may_name_other_statuses() {
    let backends = [Backend::new().await, Backend::new().await];
    let (route, upstream) =
        ("retries = { grpc_statuses = [\"aborted\"] }", "retries = { grpc_statuses = [\"unavailable\"] }");
    let proxy = proxy(&[&backends[0], &backends[1]], Keys { route, upstream, ..Keys::default() }).await;
    let (mut backends, client) = (backends, Client::connect(&proxy).await);
    let response = client.unary(&[]).await;
    either(&mut backends).await.refuse(10);
    either(&mut backends).await.refuse(14);
    assert_eq!(client.refused(response).await.0, 14);
    over_with(&proxy).await;
    assert_eq!(retries(&proxy), 1);
}
