//! What is spoken behind a handshake, and what comes in its place.

use std::sync::Arc;

use rustls::version::{TLS12, TLS13};

use isobar::telemetry::metrics::AddressLimit;

use crate::harness::{Client, Keys, Log, Scratch, TestBackend, TestProxy, body_of, eventually, soon};

use super::misdirected::{ask, two};
use super::{Authority, BOTH, connect, proxy, text};

#[tokio::test]
async fn who_has_shaken_hands_is_served_once_more_while_its_listener_goes() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let pair = authority.pair(&["localhost"], false);
    for version in [&TLS12, &TLS13] {
        let proxy = proxy(&[&backend], &[pair.write(&scratch, "a")], "").await;
        let address = proxy.address();
        let config = Arc::new(authority.client(&[version]));
        let mut asks = connect(address, &config, "localhost").await.unwrap();
        let silent = connect(address, &config, "localhost").await.unwrap();
        let elsewhere = Keys::default().text(&[&backend]).replace("\"127.0.0.1:0\"", "\"127.0.0.2:0\"");
        proxy.apply(elsewhere).await.unwrap();
        // The worker has been told, and its connections with it.
        eventually(|| std::net::TcpStream::connect(address).is_err()).await;
        let response = asks.client.get("/").await;
        assert_eq!((response.status(), response.header("connection")), (200, Some("close")));
        // Who asks nothing is waited for a second, and not for idle_timeout. Both are told that it is the end.
        for mut secure in [asks, silent] {
            secure.client.read_to_end().await;
            drop(secure.client);
            assert!(soon(secure.relay).await.unwrap(), "close_notify");
        }
    }
}

/// A client whose hello is on its way has connected, as far as it knows.
#[tokio::test]
async fn a_client_that_has_just_connected_is_heard_while_its_listener_goes() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let address = proxy.address();
    let (mut speaks, mut silent) = (proxy.client().await, proxy.client().await);
    eventually(|| proxy.connections().iter().sum::<usize>() == 2).await;
    let elsewhere = Keys::default().text(&[&backend]).replace("\"127.0.0.1:0\"", "\"127.0.0.2:0\"");
    proxy.apply(elsewhere).await.unwrap();
    eventually(|| std::net::TcpStream::connect(address).is_err()).await;
    // No hello, but it shows that the first bytes are read.
    assert_eq!(speaks.get("/").await.status(), 400);
    silent.closed().await;
    eventually(|| proxy.counted(|it| &it.handshake_failures[0]) == 0 && proxy.connections() == [0]).await;
}

#[tokio::test]
async fn plain_http_is_told_so() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let answer = proxy.raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with("this port speaks TLS: use https\n"), "{answer}");
    assert_eq!(proxy.raw([0; 100]).await.matches("HTTP").count(), 0);
    eventually(|| proxy.counted(|it| &it.handshake_failures[6]) == 1).await;
    eventually(|| proxy.counted(|it| &it.handshake_failures[5]) == 1).await;
    assert_eq!(backend.requests(), 0);
}

#[tokio::test]
async fn what_is_refused_has_its_line_in_the_access_log() {
    let (authority, scratch, backend, log) = (Authority::new(), Scratch::new(), TestBackend::ok("a"), Log::new());
    let (listed, config) = (two(&authority, &scratch), Arc::new(authority.client(BOTH)));
    let keys = format!("[[listener]]\nname = \"other\"\naddress = \"127.0.0.1:0\"\n{}", log.table("json"));
    let text = text(&[&backend], &listed, &keys).replacen("[[listener]]", "[[listener]]\nmax_connections = 1", 1);
    let proxy = TestProxy::with_config(text).await;
    let mut lines = Vec::new();
    let mut next = async || -> serde_json::Value {
        lines = log.lines(lines.len() + 1).await;
        serde_json::from_str(lines.last().unwrap()).unwrap()
    };
    proxy.raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let line = next().await;
    assert_eq!(
        (&line["status"], &line["reason"], &line["method"]),
        (&400.into(), &"plain_http".into(), &serde_json::Value::Null)
    );
    assert_eq!((&line["detail"], &line["client_ip"]), (&"this port speaks TLS: use https".into(), &"127.0.0.1".into()));
    // What is no HTTP either is a handshake that has failed.
    proxy.raw([0; 100]).await;
    eventually(|| proxy.connections() == [0]).await;
    let mut a = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut a, "b.example").await.0, 421);
    let line = next().await;
    assert_eq!(
        (&line["status"], &line["reason"], &line["ended_by"]),
        (&421.into(), &"misdirected".into(), &"client".into())
    );
    assert_eq!((&line["host"], &line["detail"]), (&"b.example".into(), &serde_json::Value::Null));
    // A bad head within TLS.
    let mut other = Client::connect(proxy.addresses()[1]).await;
    assert!(connect(proxy.address(), &config, "a.example").await.is_err(), "it is full");
    let line = next().await;
    assert_eq!(
        (&line["status"], &line["reason"], &line["bytes_out"]),
        (&503.into(), &"connection_limit".into(), &0.into())
    );
    a.send("GET /x HTTP/1.1\r\n\r\n").await;
    assert_eq!(a.response().await.status(), 400);
    let line = next().await;
    assert_eq!(
        (&line["reason"], &line["target"], &line["protocol"]),
        (&"bad_request".into(), &"/x".into(), &"HTTP/1.1".into())
    );
    other.send("GET /y HTTP/1.1\r\n\r\n").await;
    other.response().await;
    assert_eq!(next().await["listener"], "other");
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let body = body_of(6_000_000);
    let sent = body.clone();
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(request) = peer.request().await {
            assert!(request.body == sent);
            peer.respond("200 OK", &request.body).await;
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let config = Arc::new(authority.client(BOTH));
    let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
    for _ in 0..3 {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        secure.client.send([head.as_bytes(), &body].concat()).await;
        assert!(secure.client.response().await.body == body);
    }
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n", body.len());
    secure.client.send([head.as_bytes(), chunk.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
    assert!(secure.client.response().await.body == body);
}

#[tokio::test]
async fn the_client_is_asked_for_its_body() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(request) = peer.request().await {
            peer.respond("200 OK", &request.body).await;
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let mut secure = connect(proxy.address(), &Arc::new(authority.client(BOTH)), "localhost").await.unwrap();
    secure.client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    let head = soon(secure.client.stream.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 100);
    secure.client.send("hello").await;
    assert_eq!(secure.client.response().await.body, b"hello");
}

#[tokio::test]
async fn tunnels_go_through() {
    let backend = TestBackend::upgrading();
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let mut secure = connect(proxy.address(), &Arc::new(authority.client(BOTH)), "localhost").await.unwrap();
    let ask = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    secure.client.send(ask).await;
    assert_eq!(soon(secure.client.stream.head()).await.unwrap().unwrap().status(), 101);
    for text in ["a".to_owned(), "hello".to_owned(), "x".repeat(300_000)] {
        secure.client.send(&text).await;
        assert!(secure.client.exact(text.len()).await == text.as_bytes());
    }
    drop(secure);
    eventually(|| proxy.in_flight() == 0 && proxy.connections() == [0]).await;
}

#[tokio::test]
async fn the_end_is_told_where_it_is_one() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            match head.target() {
                "/cut" => {
                    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nonly this").await;
                    return;
                }
                _ => peer.respond("200 OK", "whole").await,
            }
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let config = Arc::new(authority.client(BOTH));
    for (target, told) in [("/", true), ("/cut", false)] {
        let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
        secure.client.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        secure.client.read_to_end().await;
        drop(secure.client);
        assert_eq!(soon(secure.relay).await.unwrap(), told, "{target}");
    }
}

#[tokio::test]
async fn plain_listeners_redirect_and_browsers_are_told_to_stay() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            let own = if head.target() == "/own" { "\r\nstrict-transport-security: max-age=1" } else { "" };
            peer.respond(&format!("200 OK{own}"), "a").await;
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let listed = authority.pair(&["localhost"], false).write(&scratch, "a");
    let listener = |keys: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{keys}\n");
    let listeners = [
        listener("name = \"a\"\nredirect_to_https = true"),
        listener("name = \"b\"\nredirect_to_https = true\nhttps_port = 8443"),
        listener(&format!("name = \"c\"\ntls = {{ certificates = [{listed}], hsts = \"1d\" }}")),
    ];
    let rest = format!(
        "[[route]]\npath_prefix = \"/r\"\nredirect = {{ to = \"{{scheme}}://{{host}}/new\" }}\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nbackends = [\"{}\"]\n",
        backend.address()
    );
    let proxy = TestProxy::with_config(format!("workers = 1\n{}{rest}", listeners.concat())).await;
    let addresses = proxy.addresses();
    for (address, host, expected) in [
        (addresses[0], "example.com", "https://example.com/a%22b?c=d"),
        (addresses[0], "example.com:8080", "https://example.com/a%22b?c=d"),
        (addresses[1], "[::1]:8080", "https://[::1]:8443/a%22b?c=d"),
    ] {
        let mut client = Client::connect(address).await;
        client.send(format!("GET /a\"b?c=d HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.head.get("location")), (308, Some(expected)));
        assert_eq!(response.head.get("strict-transport-security"), None);
    }
    assert_eq!(backend.requests(), 0);
    let mut secure = connect(addresses[2], &Arc::new(authority.client(BOTH)), "localhost").await.unwrap();
    for (target, age) in [("/", "max-age=86400"), ("/own", "max-age=1"), ("/r", "max-age=86400")] {
        let response = secure.client.get(target).await;
        assert_eq!(response.head.get("strict-transport-security"), Some(age), "{target}");
        assert!(target != "/r" || response.head.get("location") == Some("https://test/new"));
    }
}

#[tokio::test]
async fn an_address_over_its_handshakes_is_closed_before_tls() {
    let (scratch, authority) = (Scratch::new(), Authority::new());
    let backend = TestBackend::ok("a");
    let certificate = authority.pair(&["a.example"], false).write(&scratch, "a");
    let proxy = proxy(&[&backend], &[certificate], "handshakes_per_second_per_address = 3").await;
    let config = Arc::new(authority.client(&[&TLS13]));
    // More at a time than the limit lets in, however slow the machine: who is let in says nothing, and stays.
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(proxy.client().await);
    }
    eventually(|| proxy.counted(|it| &it.limited[AddressLimit::Handshakes as usize]) >= 1).await;
    let limited = || proxy.counted(|it| &it.limited[AddressLimit::Handshakes as usize]);
    eventually(|| limited() + proxy.counted(|it| &it.accepted) == 200).await;
    let mut closed = 0;
    for client in &mut clients {
        let mut byte = [0];
        if let Ok(Ok(0)) = tokio::time::timeout(std::time::Duration::ZERO, client.stream.tcp.peek(&mut byte)).await {
            closed += 1;
        }
    }
    assert_eq!(closed, limited());
    assert_eq!(proxy.counted(|it| &it.handshake_failures[0]), 0, "no handshake was begun for them");
    // A while later the address has one again.
    let mut secure = None;
    let start = std::time::Instant::now();
    while secure.is_none() && start.elapsed() < crate::harness::PATIENCE {
        secure = connect(proxy.address(), &config, "a.example").await.ok();
    }
    assert_eq!(secure.expect("a handshake").client.get("/").await.status(), 200);
}
