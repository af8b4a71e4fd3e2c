//! Requests for another host than that of the handshake.

use std::sync::Arc;

use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{Client, Scratch, TestBackend, soon};

use super::client_certificates::with;
use super::{Authority, BOTH, connect, proxy, text};

/// A request for that host over a connection there is: its status and `Connection`.
pub(super) async fn ask(client: &mut Client, host: &str) -> (u16, Option<String>) {
    client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    let response = client.response().await;
    (response.status(), response.header("connection").map(str::to_owned))
}

/// Two certificates, one of them for several hosts.
pub(super) fn two(authority: &Authority, scratch: &Scratch) -> [String; 2] {
    [
        authority.pair(&["a.example", "*.a.example"], false).write(scratch, "a"),
        authority.pair(&["b.example"], false).write(scratch, "b"),
    ]
}

#[tokio::test]
async fn a_request_for_a_host_of_another_certificate_is_misdirected() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let (listed, config) = (two(&authority, &scratch), Arc::new(authority.client(BOTH)));
    let proxy = proxy(&[&backend], &listed, "").await;
    let mut a = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    for (host, expected) in [
        ("a.example", 200),
        ("A.example.:443", 200),
        // What a browser does that has coalesced two connections.
        ("www.a.example:8443", 200),
        ("b.example", 421),
        // Nobody has a certificate for it, so it is shown the first one.
        ("c.example", 200),
        ("a.example", 200),
        ("b.example:443", 421),
    ] {
        assert_eq!(ask(&mut a, host).await, (expected, None), "{host}");
    }
    assert_eq!(proxy.counted(|it| &it.misdirected), 2);
    assert_eq!(backend.requests(), 5, "it has not seen those");
    let mut b = connect(proxy.address(), &config, "b.example").await.unwrap().client;
    for (host, expected) in [("b.example", 200), ("a.example", 421), ("c.example", 421), ("b.example", 200)] {
        assert_eq!(ask(&mut b, host).await, (expected, None), "{host}");
    }
    // A target with a host in it outweighs the field.
    b.send("GET http://a.example/ HTTP/1.1\r\nhost: b.example\r\n\r\n").await;
    assert_eq!(b.response().await.status(), 421);
    // In HTTP/1.0 there may be no host, and in the handshake there may be none.
    b.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(b.response().await.status(), 200);
    let mut config = authority.client(BOTH);
    config.enable_sni = false;
    let mut unnamed = connect(proxy.address(), &Arc::new(config), "a.example").await.unwrap().client;
    assert_eq!(ask(&mut unnamed, "b.example").await, (200, None));
}

#[tokio::test]
async fn misdirected_requests_end_their_connection_or_are_served_as_the_listener_says() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let (listed, config) = (two(&authority, &scratch), Arc::new(authority.client(BOTH)));
    let proxy = proxy(&[&backend], &listed, "misdirected = \"close\"").await;
    let mut client = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut client, "a.example").await, (200, None));
    assert_eq!(ask(&mut client, "b.example").await, (421, Some("close".to_owned())));
    client.closed().await;
    proxy.apply(text(&[&backend], &listed, "misdirected = \"allow\"")).await.unwrap();
    let mut client = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut client, "b.example").await, (200, None));
    // Where clients show certificates, not even one that is shown the same.
    let ca = scratch.write("ca.pem", &authority.pem);
    let keys = format!("unknown_names = \"refuse\"\nclient_certificates = {{ ca = \"{}\" }}", ca.display());
    proxy.apply(text(&[&backend], &listed, &keys)).await.unwrap();
    let config = with(&authority, &authority.pair(&["alice.example"], false));
    let mut client = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut client, "a.example").await, (200, None));
    assert_eq!(ask(&mut client, "www.a.example").await, (421, None));
}

#[tokio::test]
async fn misdirected_streams_are_refused_and_the_others_go_on() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let listed = two(&authority, &scratch);
    let proxy = proxy(&[&backend], &listed, "").await;
    let mut config = authority.client(&[&TLS13]);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    for close in [false, true] {
        if close {
            proxy.apply(text(&[&backend], &listed, "misdirected = \"close\"")).await.unwrap();
        }
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let tls = soon(connector.connect("a.example".try_into().unwrap(), tcp)).await.unwrap();
        let (mut send, connection) = soon(h2::client::handshake(tls)).await.unwrap();
        let driver = tokio::spawn(connection);
        for (host, expected) in [("a.example", 200), ("www.a.example", 200), ("b.example", 421), ("a.example", 200)] {
            let request = http::Request::builder().uri(format!("https://{host}/")).body(()).unwrap();
            send = match soon(send.ready()).await {
                Ok(send) => send,
                Err(error) => panic!("{error}"),
            };
            let response = soon(send.send_request(request, true).unwrap().0).await.unwrap();
            assert_eq!(response.status(), expected, "{host}");
            if close && expected == 421 {
                break;
            }
        }
        if close {
            // It may have had something to say when the other end was gone.
            let _ = soon(driver).await.unwrap();
            assert!(soon(send.ready()).await.is_err(), "the connection is over");
        }
    }
}
