//! What a call is told where isobar or its backend fails.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};

use crate::harness::{TestProxy, free_address, soon};

use super::{Backend, Client, Keys, call, counted, message, over_with, proxy, rest, status, with};

#[tokio::test]
async fn errors_of_the_proxy_are_statuses_for_calls_and_for_nobody_else() {
    let gone = free_address();
    let backend = Backend::new().await;
    let tables = format!(
        "[[route]]\npath_prefix = \"/gone\"\nupstream = \"gone\"\n[[route]]\npath_prefix = \"/none\"\nupstream = \"none\"\n\
         [upstream.gone]\nbackends = [\"{gone}\"]\nprotocol = \"http2\"\nretries = 0\n\
         [upstream.none]\nbackends = [{{ address = \"127.0.0.1:1\", weight = 0 }}]\nprotocol = \"http2\"\nstrategy = \"weighted_random\""
    );
    let (listener, route) = ("max_body = \"8B\"", "path_prefix = \"/pkg.Service\"");
    let proxy = self::proxy(&[&backend], Keys { listener, route, tables: &tables, ..Keys::default() }).await;
    let client = Client::connect(&proxy).await;
    for (path, expected, http, words) in [
        ("/nowhere/M", 12, 404, "no route matches this request"),
        ("/none/M", 14, 503, "no backend is ready"),
        ("/gone/M", 14, 502, "no connection to a backend could be made"),
    ] {
        let (response, _send) = client.begin(call(path, &[]), false).await;
        assert_eq!(client.refused(response).await, (expected, words.to_owned()), "{path}");
        for kind in ["application/grpc-web+proto", "application/json"] {
            let mut plain = call(path, &[]);
            plain.headers_mut().insert("content-type", kind.parse().unwrap());
            let (response, _send) = client.begin(plain, false).await;
            let response = soon(response).await.unwrap();
            assert_eq!((response.status().as_u16(), response.headers().contains_key("grpc-status")), (http, false));
        }
    }
    // A message of nine bytes behind one of eight, in pieces.
    let (response, mut send) = client.call(&[]).await;
    for piece in [&b"\0\0\0\0\x0812345678"[..], b"\0\0\0", b"\0\x09", b"123456789"] {
        let _ = send.send_data(Bytes::from_static(piece), false);
    }
    assert_eq!(client.refused(response).await.0, 8);
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_call_whose_backend_breaks_is_unavailable() {
    let (mut backend, proxy, client) = with(Keys { upstream: "retries = 0", ..Keys::default() }).await;
    let response = client.unary(&[]).await;
    backend.call().await.respond.send_reset(Reason::INTERNAL_ERROR);
    assert_eq!(client.refused(response).await, (14, "the backend broke off before it answered".to_owned()));

    // Behind the head, by a reset and with its connection; never as if it were whole.
    for connection in [false, true] {
        let response = client.unary(&[]).await;
        let mut call = backend.call().await;
        let mut answers = call.answer();
        answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(message(&mut body).await.as_deref(), Some(&b"begun"[..]));
        match connection {
            true => call.connection.abort(),
            false => answers.send_reset(Reason::INTERNAL_ERROR),
        }
        let (bytes, trailers) = rest(body).await.unwrap();
        assert_eq!((bytes.len(), status(&trailers)), (0, 14));
        assert_eq!(trailers["grpc-message"], "the backend broke off its response");
        over_with(&proxy).await;
    }
    assert_eq!(counted(&proxy, 14), 3);

    // One that is no call is reset.
    let (response, _) = client.begin(Request::get("http://a.example/").body(()).unwrap(), true).await;
    let mut plain = backend.call().await;
    let mut answers = plain.respond.send_response(Response::new(()), false).unwrap();
    answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"begun"[..]));
    answers.send_reset(Reason::INTERNAL_ERROR);
    assert_eq!(rest(body).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_call_that_outlives_its_backends_drain_is_unavailable() {
    let text = |address: SocketAddr| {
        format!(
            "workers = 1\ndrain_limit = \"100ms\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
             [upstream.u]\nbackends = [\"{address}\"]\nprotocol = \"http2\"\n"
        )
    };
    let (mut old, new) = (Backend::new().await, Backend::new().await);
    let proxy = TestProxy::with_config(text(old.address)).await;
    let client = Client::connect(&proxy).await;
    let (response, _send) = client.call(&[]).await;
    let mut call = old.call().await;
    let mut answers = call.answer();
    let mut body = soon(response).await.unwrap().into_body();
    answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"begun"[..]));
    proxy.apply(text(new.address)).await.unwrap();
    let (_, trailers) = rest(body).await.unwrap();
    assert_eq!(status(&trailers), 14);
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_call_that_grows_too_large_behind_its_head_is_told_so() {
    let (mut backend, proxy, client) = with(Keys { listener: "max_body = \"1KiB\"", ..Keys::default() }).await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    let _answers = call.answer();
    let body = soon(response).await.unwrap().into_body();
    for _ in 0..2 {
        send.send_data(Bytes::from(vec![b'x'; 600]), false).unwrap();
    }
    let (_, trailers) = rest(body).await.unwrap();
    assert_eq!(status(&trailers), 8);
    assert_eq!(call.reset().await, Reason::CANCEL, "the backend does not take what it has for all");
    over_with(&proxy).await;
}
