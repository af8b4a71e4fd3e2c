//! Bodies so large that they go from socket to socket without passing through the process.

use crate::harness::{TestBackend, TestProxy, body_of, eventually, soon};

const LARGE: usize = 1_500_000;

#[tokio::test]
async fn a_connection_goes_on_behind_large_bodies() {
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(request) = peer.request().await {
            peer.respond("200 OK", &request.body).await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for len in [LARGE, 0, 5, LARGE + 1, 300_000, 1] {
        let body = body_of(len);
        let next = "GET /next HTTP/1.1\r\nhost: test\r\n\r\n";
        // The next request comes right behind the body.
        let head = format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {len}\r\n\r\n");
        let sent = [head.as_bytes(), &body, next.as_bytes()].concat();
        client.send(&sent).await;
        let response = client.response().await;
        assert_eq!(response.status(), 200);
        assert!(response.body == body, "{len} bytes, as they were sent");
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!((backend.connections(), backend.requests()), (1, 12));
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_none() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let backend = TestBackend::scripted(async move |peer| {
        let head = peer.head().await.unwrap();
        tell.send(peer.body(&head).await.is_some()).unwrap();
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {LARGE}\r\n\r\n")).await;
        client.send(body_of(LARGE - 200_000)).await;
        match reset {
            true => client.reset(),
            false => drop(client),
        }
        assert_eq!(soon(told.recv()).await, Some(false), "the backend sees that it is not whole");
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_upload_is_over() {
    // It reads a part, answers, and goes on reading; or it answers and closes.
    for goes_on in [true, false] {
        let backend = TestBackend::scripted(async move |peer| {
            while let Some(head) = peer.head().await {
                peer.write("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
                if !goes_on {
                    return;
                }
                if peer.body(&head).await.is_none() {
                    return;
                }
            }
        });
        let proxy = TestProxy::over(&[&backend]).await;
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {LARGE}\r\n\r\n")).await;
        client.send(body_of(600_000)).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (413, "no"));
        if goes_on {
            client.send(&body_of(LARGE)[600_000..]).await;
            assert_eq!(client.get("/").await.status(), 413);
            assert_eq!(backend.connections(), 1);
        }
        eventually(|| proxy.in_flight() == 0).await;
    }
}
