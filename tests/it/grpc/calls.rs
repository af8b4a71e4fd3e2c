//! Calls of all four kinds, their ends and their sizes.

use std::future::poll_fn;

use bytes::Bytes;
use h2::Reason;
use http::Response;

use crate::harness::soon;

use super::{Keys, answer, counted, headers, message, over, over_with, rest, status, with};

#[tokio::test]
async fn unary_calls_pass() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[("x-meta", "data"), ("x-bin", "AAEC")]).await;
    let mut call = backend.call().await;
    let head = &call.head.headers;
    assert_eq!(
        (&head["x-meta"], &head["x-bin"], &head["te"]),
        (&"data".parse().unwrap(), &"AAEC".parse().unwrap(), &"trailers".parse().unwrap())
    );
    assert_eq!(head["content-type"], "application/grpc+proto");
    assert!(!head.contains_key("grpc-timeout") && !head.contains_key("content-length"));
    assert_eq!(call.message().await.as_deref(), Some(&b"question"[..]));
    assert_eq!(proxy.in_flight(), 1);
    call.finish(0);
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"answer"[..], 0));
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 0), 1);
}

#[tokio::test]
async fn both_directions_go_on_at_once_and_end_apart() {
    let (mut backend, proxy, client) = over().await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    // The head comes while nothing was sent yet.
    let mut answers = call.answer();
    let mut body = soon(response).await.unwrap().into_body();
    for round in 0..3 {
        let text = Bytes::from(format!("message {round}"));
        send.send_data(text.clone(), false).unwrap();
        assert_eq!(call.message().await, Some(text.clone()));
        answers.send_data(text.clone(), false).unwrap();
        assert_eq!(message(&mut body).await, Some(text));
        assert_eq!(proxy.in_flight(), 1);
    }
    // The client has said all, the backend has not.
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(call.message().await.unwrap_or_default(), Bytes::new());
    assert!(call.body.is_end_stream());
    answers.send_data(Bytes::from_static(b"last"), false).unwrap();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"last"[..]));
    assert_eq!(proxy.in_flight(), 1);
    answers.send_trailers(headers(&[("grpc-status", "0"), ("x-trailing", "yes")])).unwrap();
    let (_, trailers) = rest(body).await.unwrap();
    assert_eq!((status(&trailers), &trailers["x-trailing"]), (0, &"yes".parse().unwrap()));
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_client_that_streams_gets_its_one_answer() {
    let (mut backend, proxy, client) = over().await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    for text in ["one", "two", "three"] {
        send.send_data(Bytes::from(text), false).unwrap();
        assert_eq!(call.message().await, Some(Bytes::from(text)));
    }
    send.send_data(Bytes::new(), true).unwrap();
    call.finish(0);
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"answer"[..], 0));
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_status_alone_passes_as_it_is() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    let fields = [("grpc-status", "5"), ("grpc-message", "no%20such"), ("x-detail", "d")];
    call.respond.send_response(answer(&fields), true).unwrap();
    let response = soon(response).await.unwrap();
    assert!(response.body().is_end_stream());
    let head = response.headers();
    assert_eq!(
        (status(head), &head["grpc-message"], &head["x-detail"]),
        (5, &"no%20such".parse().unwrap(), &"d".parse().unwrap())
    );
    assert!(!head.contains_key("content-length"));
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 5), 1);
}

#[tokio::test]
async fn a_length_does_not_hide_the_status_behind_it() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    let mut send = call.respond.send_response(answer(&[("content-length", "6")]), false).unwrap();
    send.send_data(Bytes::from_static(b"answer"), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"answer"[..]));
    send.send_trailers(headers(&[("grpc-status", "9")])).unwrap();
    assert_eq!(status(&rest(body).await.unwrap().1), 9);
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 9), 1);
}

#[tokio::test]
async fn with_its_status_a_call_is_over_whatever_its_client_has_to_say() {
    let (mut backend, proxy, client) = over().await;
    for alone in [true, false] {
        let (response, mut send) = client.call(&[]).await;
        let mut call = backend.call().await;
        send.send_data(Bytes::from_static(b"begun"), false).unwrap();
        assert_eq!(call.message().await.as_deref(), Some(&b"begun"[..]));
        let mut body = call.body;
        let mut respond = call.respond;
        match alone {
            true => drop(respond.send_response(answer(&[("grpc-status", "7")]), true).unwrap()),
            false => {
                let mut answers = respond.send_response(answer(&[]), false).unwrap();
                answers.send_trailers(headers(&[("grpc-status", "7")])).unwrap();
            }
        }
        let response = soon(response).await.unwrap();
        let head = response.headers().clone();
        let (_, trailers) = rest(response.into_body()).await.unwrap();
        assert_eq!(status(if alone { &head } else { &trailers }), 7);
        // The backend need not wait for the rest, and nobody holds anything for it.
        let broken = soon(body.data()).await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(Reason::CANCEL));
        soon(poll_fn(|cx| send.poll_reset(cx))).await.unwrap();
        over_with(&proxy).await;
    }
    assert_eq!(proxy.counted(|it| &it.http2_resets_proxy), 0);
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_its_backend() {
    let (mut backend, proxy, client) = over().await;
    for answered in [false, true] {
        let (response, mut send) = client.call(&[]).await;
        let mut call = backend.call().await;
        let answers = answered.then(|| call.answer());
        let body = match answered {
            true => Some(soon(response).await.unwrap()),
            false => {
                // Kept: dropping it is what cancels.
                tokio::spawn(response);
                None
            }
        };
        assert_eq!(proxy.in_flight(), 1);
        send.send_reset(Reason::CANCEL);
        let reason = match answers {
            Some(mut answers) => soon(poll_fn(|cx| answers.poll_reset(cx))).await.unwrap(),
            None => call.reset().await,
        };
        assert_eq!(reason, Reason::CANCEL);
        over_with(&proxy).await;
        drop(body);
    }
    assert_eq!(counted(&proxy, 1), 2);
    // The connection to the backend lives, and so does the client's.
    let response = client.unary(&[]).await;
    backend.call().await.finish(0);
    assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_calls_along() {
    let (mut backend, proxy, client) = over().await;
    let (_waiting, mut asks) = client.call(&[]).await;
    let mut waits = backend.call().await;
    let (begun, _sends) = client.call(&[]).await;
    let mut open = backend.call().await;
    let mut answers = open.answer();
    let _begun = soon(begun).await.unwrap();
    asks.send_data(Bytes::from_static(b"half of it"), false).unwrap();
    assert_eq!(waits.message().await.as_deref(), Some(&b"half of it"[..]));
    assert_eq!(proxy.in_flight(), 2);
    drop(client);
    assert_eq!(waits.reset().await, Reason::CANCEL);
    assert_eq!(soon(poll_fn(|cx| answers.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 1), 2);
}

#[tokio::test]
async fn answers_in_plain_http_pass_as_they_are() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    let page = Response::builder().status(503).header("content-type", "text/html").body(()).unwrap();
    let mut send = call.respond.send_response(page, false).unwrap();
    send.send_data(Bytes::from_static(b"<p>busy"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (503, &"text/html".parse().unwrap()));
    assert!(!response.headers().contains_key("grpc-status"));
    assert_eq!(rest(response.into_body()).await.unwrap().0, b"<p>busy");
    over_with(&proxy).await;
    assert_eq!((backend.asked(), counted(&proxy, 14)), (1, 1));
}

#[tokio::test]
async fn a_stream_may_carry_more_than_a_message_may() {
    let (mut backend, proxy, client) = with(Keys { listener: "max_body = \"1KiB\"", ..Keys::default() }).await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    let message = [&b"\0\0\0\x04\0"[..], &[b'x'; 1024]].concat();
    let all = message.repeat(20);
    // In pieces that begin and end anywhere.
    for piece in all.chunks(1000) {
        send.send_data(Bytes::copy_from_slice(piece), false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
    let mut got = 0;
    while let Some(piece) = call.message().await {
        got += piece.len();
    }
    assert_eq!(got, all.len());
    call.finish(0);
    let (_, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!(status(&trailers), 0);
    over_with(&proxy).await;
}
