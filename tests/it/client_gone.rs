//! A client that disappears takes its request with it: the backend is told, and no count is left behind.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::harness::{Client, Keys, TestBackend, TestProxy, eventually, soon};

async fn nothing_is_left(proxy: &TestProxy, backend: &TestBackend) {
    eventually(|| proxy.in_flight() == 0).await;
    eventually(|| proxy.exchanges() == 0).await;
    eventually(|| proxy.connections() == [0]).await;
    eventually(|| backend.open() == 0).await;
}

/// Ends the connection, well or by a reset.
fn leave(client: Client, reset: bool) {
    match reset {
        true => client.reset(),
        false => drop(client),
    }
}

#[tokio::test]
async fn before_the_response() {
    let backend = TestBackend::scripted(async |peer| {
        peer.request().await;
        peer.gone().await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let requests = if reset { 2 } else { 1 };
        eventually(|| backend.requests() == requests && proxy.in_flight() == 1).await;
        leave(client, reset);
        nothing_is_left(&proxy, &backend).await;
    }
}

#[tokio::test]
async fn with_something_refused_behind_its_request() {
    let backend = TestBackend::scripted(async |peer| {
        peer.request().await;
        peer.gone().await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\nnot HTTP\r\n").await;
        eventually(|| proxy.in_flight() == 1).await;
        leave(client, reset);
        nothing_is_left(&proxy, &backend).await;
    }
}

#[tokio::test]
async fn in_the_middle_of_its_body() {
    let backend = TestBackend::scripted(async |peer| {
        if let Some(head) = peer.head().await {
            assert!(peer.body(&head).await.is_none(), "a body cut short is not a whole one");
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for framing in ["content-length: 100", "transfer-encoding: chunked"] {
        for reset in [false, true] {
            let mut client = proxy.client().await;
            let requests = backend.requests();
            client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n5\r\nhello\r\n")).await;
            eventually(|| backend.requests() > requests).await;
            leave(client, reset);
            nothing_is_left(&proxy, &backend).await;
        }
    }
}

#[tokio::test]
async fn in_the_middle_of_the_response() {
    let backend = TestBackend::scripted(async |peer| {
        if peer.request().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            peer.gone().await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 200);
        assert_eq!(client.exact(10).await, b"5\r\nhello\r\n");
        assert_eq!(proxy.in_flight(), 1, "to the end of the body");
        leave(client, reset);
        nothing_is_left(&proxy, &backend).await;
    }
}

#[tokio::test]
async fn in_the_middle_of_a_response_that_goes_on() {
    let backend = TestBackend::scripted(async |peer| {
        if peer.request().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
            let piece = vec![b'x'; 1 << 16];
            while peer.stream.write(&piece).await.is_ok() {}
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.exact(100_000).await;
        leave(client, reset);
        nothing_is_left(&proxy, &backend).await;
    }
}

#[tokio::test]
async fn while_its_next_requests_wait() {
    let backend = TestBackend::scripted(async |peer| {
        peer.request().await;
        peer.gone().await;
    });
    let route = r#"timeouts = { response_head = "200ms" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        let requests = backend.requests();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3)).await;
        eventually(|| backend.requests() > requests).await;
        leave(client, reset);
        // It is seen although further requests wait.
        nothing_is_left(&proxy, &backend).await;
    }
}

#[tokio::test]
async fn a_hundred_at_any_moment() {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let backend = TestBackend::scripted(async move |peer| {
        while peer.request().await.is_some() {
            told.notified().await;
            peer.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
            tokio::task::yield_now().await;
            peer.write("world").await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let clients: Vec<_> = (0..100)
        .map(|i| {
            let (address, go) = (proxy.address(), Arc::clone(&go));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                for _ in 0..i % 7 {
                    go.notify_one();
                    tokio::task::yield_now().await;
                }
                leave(client, i % 3 == 0);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && proxy.connections() == [0]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let asked = async {
        loop {
            go.notify_waiters();
            go.notify_one();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        response = client.response() => assert_eq!(response.text(), "helloworld"),
        () = asked => {}
    }
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn when_its_body_went_on_beside_a_response_that_goes_on() {
    // The client goes in the middle of its body, or behind it, while the backend has nothing to say.
    for whole in [false, true] {
        let backend = TestBackend::scripted(async |peer| {
            let Some(head) = peer.head().await else { return };
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            peer.body(&head).await;
            peer.write("5\r\nworld\r\n").await;
            peer.gone().await;
        });
        let proxy = TestProxy::over(&[&backend]).await;
        for reset in [false, true] {
            let mut client = proxy.client().await;
            client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345").await;
            assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 200);
            assert_eq!(client.exact(10).await, b"5\r\nhello\r\n");
            if whole {
                client.send("67890").await;
                assert_eq!(client.exact(10).await, b"5\r\nworld\r\n");
            }
            leave(client, reset);
            nothing_is_left(&proxy, &backend).await;
        }
    }
}

#[tokio::test]
async fn when_its_body_ended_beside_a_response_that_is_silent() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let backend = TestBackend::scripted(async move |peer| {
        let Some(head) = peer.head().await else { return };
        peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        tell.send(peer.body(&head).await.is_some()).unwrap();
        peer.gone().await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for reset in [false, true] {
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345").await;
        assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 200);
        assert_eq!(client.exact(10).await, b"5\r\nhello\r\n");
        client.send("67890").await;
        assert_eq!(soon(told.recv()).await, Some(true));
        leave(client, reset);
        nothing_is_left(&proxy, &backend).await;
    }
}
