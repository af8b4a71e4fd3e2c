//! Connections that switch to another protocol become tunnels; those that do not go on as HTTP.

use crate::harness::{After, Client, Keys, TestBackend, TestProxy, body_of, eventually, soon};

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

async fn switched(client: &mut Client) {
    switched_to("websocket", client).await;
}

async fn switched_to(protocol: &str, client: &mut Client) {
    let head = soon(client.stream.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 101);
    assert_eq!((head.get("upgrade"), head.get("connection")), (Some(protocol), Some("upgrade")));
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let backend = TestBackend::upgrading();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    let head = backend.last_head();
    assert_eq!((head.get("upgrade"), head.get("connection")), (Some("websocket"), Some("upgrade")));
    assert_eq!(head.get("sec-websocket-version"), Some("13"));
    assert_eq!(head.get("x-forwarded-for"), Some("127.0.0.1"));
    for text in ["a", "hello", "GET / HTTP/1.1\r\n\r\n", "\0\n\r\n\r\n"] {
        client.send(text).await;
        assert_eq!(client.exact(text.len()).await, text.as_bytes());
    }
    assert_eq!((proxy.in_flight(), proxy.exchanges()), (1, 1), "a tunnel is in flight");
    drop(client);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && proxy.connections() == [0]).await;
    eventually(|| backend.open() == 0).await;
    let counted = (proxy.counted(|metrics| &metrics.tunnels_opened), proxy.counted(|metrics| &metrics.tunnels_closed));
    assert_eq!(counted, (1, 1));
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    let backend = TestBackend::upgrading();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    let body = body_of(8_000_000);
    let sent = body.clone();
    let Client { stream } = client;
    let (mut read, mut write) = stream.tcp.into_split();
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = stream.buffer;
    soon(tokio::io::AsyncReadExt::read_to_end(&mut read, &mut back)).await.unwrap();
    assert!(back == body);
    writer.await.unwrap();
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn bytes_ahead_of_the_answer_belong_to_the_tunnel() {
    let backend = TestBackend::upgrading();
    let proxy = TestProxy::over(&[&backend]).await;
    for split in [false, true] {
        let mut client = proxy.client().await;
        match split {
            false => client.send(format!("{ASK}early")).await,
            true => {
                client.send(ASK).await;
                client.send("early").await;
            }
        }
        switched(&mut client).await;
        assert_eq!(client.exact(5).await, b"early");
        client.send("late").await;
        assert_eq!(client.exact(4).await, b"late");
    }
}

#[tokio::test]
async fn bytes_right_behind_the_answer_are_not_lost() {
    let backend = TestBackend::raw(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello",
        After::Close,
    );
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    assert_eq!(client.read_to_end().await, b"hello");
}

#[tokio::test]
async fn a_backend_that_refuses_answers_as_usual() {
    for status in ["200 OK", "400 Bad Request", "426 Upgrade Required", "503 Service Unavailable"] {
        let backend = TestBackend::fixed(format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nno"));
        let proxy = TestProxy::over(&[&backend]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            // What was sent ahead is the next request.
            client.send(format!("{ASK}GET /next HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            for _ in 0..2 {
                let response = client.response().await;
                assert_eq!((response.head.line, response.body), (format!("HTTP/1.1 {status}"), b"no".to_vec()));
            }
        }
        let lines: Vec<_> = backend.heads().into_iter().map(|head| head.line).collect();
        assert_eq!(lines, ["GET /chat HTTP/1.1", "GET /next HTTP/1.1"].repeat(2));
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    }
}

#[tokio::test]
async fn what_is_no_proper_request_to_switch_is_not_passed_on() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    for fields in [
        // HTTP/2 would carry requests past every check.
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
        "connection: upgrade\r\nupgrade: H2C",
        "connection: upgrade\r\nupgrade: h2",
        // Not named in Connection, it is for somebody else.
        "upgrade: websocket",
        "connection: upgrade",
        "connection: xupgrade\r\nupgrade: websocket",
    ] {
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n")).await;
            assert_eq!(client.response().await.status(), 200, "{fields}");
            let head = backend.last_head();
            for name in ["connection", "upgrade", "http2-settings"] {
                assert_eq!(head.get(name), None, "{fields}");
            }
        }
    }
    // HTTP/1.0 cannot switch (RFC 9110 §7.8).
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.0\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 200);
    assert_eq!(backend.last_head().get("upgrade"), None);
}

/// As `docker exec` asks: what is to be done stands in a body, and the other protocol begins behind it.
#[tokio::test]
async fn a_request_with_a_body_may_switch() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(request) = peer.request().await {
            assert_eq!((request.body.as_slice(), request.head.get("upgrade")), (&b"{\"Tty\":1}"[..], Some("tcp")));
            if request.head.target() == "/refuse" {
                peer.respond("409 Conflict", "no").await;
                continue;
            }
            peer.write("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello ").await;
            let mut said = Vec::new();
            peer.stream.exact(5, &mut said).await.unwrap();
            peer.write(said).await;
            peer.gone().await;
            return;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let ask = |target: &str, body: &str| {
        format!("POST {target} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: tcp\r\n{body}")
    };
    for body in
        ["content-length: 9\r\n\r\n{\"Tty\":1}", "transfer-encoding: chunked\r\n\r\n9\r\n{\"Tty\":1}\r\n0\r\n\r\n"]
    {
        let mut client = proxy.client().await;
        // Refused, HTTP goes on with what was sent ahead.
        client.send(ask("/refuse", body) + &ask("/exec", body)).await;
        assert_eq!(client.response().await.status(), 409);
        // What is sent ahead of the answer belongs to the tunnel.
        client.send("wor").await;
        switched_to("tcp", &mut client).await;
        client.send("ld").await;
        assert_eq!(client.exact(11).await, b"hello world");
    }
    // Both clients are gone, and their tunnels with them.
    eventually(|| proxy.in_flight() == 0).await;
}

/// Nothing else tells a client which protocol it has to switch to (RFC 9110 §15.5.22).
#[tokio::test]
async fn the_answer_that_wants_another_protocol_names_it() {
    for (status, named) in [("426 Upgrade Required", Some("websocket")), ("200 OK", None)] {
        let backend = TestBackend::fixed(format!(
            "HTTP/1.1 {status}\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n"
        ));
        let proxy = TestProxy::over(&[&backend]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            let response = client.get("/").await;
            assert_eq!((response.header("upgrade"), response.header("connection")), (named, named.map(|_| "upgrade")));
        }
    }
}

#[tokio::test]
async fn h2_in_a_list_is_not_passed_on() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    for fields in ["upgrade: websocket, h2c", "upgrade: websocket\r\nupgrade: h2c", "upgrade:  ,h2c"] {
        let mut client = proxy.client().await;
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n{fields}\r\n\r\n")).await;
        assert_eq!(client.response().await.status(), 200, "{fields}");
        let head = backend.last_head();
        assert!(head.all("upgrade").iter().all(|protocols| !protocols.contains("h2")), "{fields}: {head:?}");
    }
}

#[tokio::test]
async fn an_answer_nobody_asked_for_is_502() {
    let backend = TestBackend::raw(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nevil",
        After::Hold,
    );
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    let response = client.get("/").await;
    assert_eq!(response.text(), "502 Bad Gateway: the backend answered in another protocol\n");
    assert_eq!(client.get("/").await.status(), 502, "the client's connection goes on");
    assert_eq!(backend.connections(), 2);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_tunnel_where_nothing_moves_is_closed() {
    let backend = TestBackend::upgrading();
    let route = r#"timeouts = { tunnel_idle = "300ms", body_idle = "50ms", response_head = "5s" }"#;
    let keys = Keys { listener: r#"idle_timeout = "50ms""#, route, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    client.send("hello").await;
    assert_eq!(client.exact(5).await, b"hello");
    client.closed().await;
    eventually(|| proxy.in_flight() == 0 && backend.open() == 0).await;
}

#[tokio::test]
async fn an_exchange_limit_does_not_end_a_tunnel() {
    let backend = TestBackend::upgrading();
    let keys = Keys { route: r#"timeouts = { exchange = "200ms" }"#, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    for _ in 0..6 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        client.send("x").await;
        assert_eq!(client.exact(1).await, b"x");
    }
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    // The client's end first: the backend says something still.
    let backend = TestBackend::scripted(async |peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
            let mut all = Vec::new();
            peer.stream.rest(&mut all).await.unwrap();
            assert_eq!(all, b"that is all");
            peer.write("good bye").await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    client.send("that is all").await;
    client.finish().await;
    assert_eq!(client.read_to_end().await, b"good bye");
    eventually(|| proxy.in_flight() == 0 && proxy.connections() == [0]).await;

    // The backend's end first.
    let backend = TestBackend::scripted(async |peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbye")
                .await;
            tokio::io::AsyncWriteExt::shutdown(&mut peer.stream.tcp).await.unwrap();
            let mut all = Vec::new();
            peer.stream.rest(&mut all).await.unwrap();
            assert_eq!(all, b"see you");
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    switched(&mut client).await;
    assert_eq!(client.read_to_end().await, b"bye");
    client.send("see you").await;
    client.finish().await;
    eventually(|| proxy.in_flight() == 0 && backend.open() == 0).await;
}

#[tokio::test]
async fn what_nobody_asked_to_switch_gets_no_more_of_a_body() {
    let backend = TestBackend::scripted(async |peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
            peer.gone().await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345").await;
    assert_eq!(client.response().await.status(), 502);
    eventually(|| backend.open() == 0).await;
}
