//! What one client address may have: those over it are closed without a word, and nobody else notices.

use std::net::SocketAddr;

use isobar::telemetry::metrics::AddressLimit;
use tokio::net::TcpSocket;

use crate::harness::{Client, Keys, Stream, TestBackend, TestProxy, eventually, soon};

async fn from(own: &str, to: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(own.parse().unwrap(), 0)).unwrap();
    Client { stream: Stream::new(soon(socket.connect(to)).await.unwrap()) }
}

/// Whether that address is served once more over a new connection, which is given back if so.
async fn served(own: &str, to: SocketAddr) -> Option<Client> {
    let mut client = from(own, to).await;
    if client.try_send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await
        && let Ok(response) = soon(client.stream.response("GET")).await
    {
        assert_eq!(response.status(), 200);
        return Some(client);
    }
    client.closed().await;
    None
}

fn text(backend: &TestBackend, workers: usize, listener: &str) -> String {
    Keys { listener, ..Keys::default() }.text(&[backend]).replace("workers = 1", &format!("workers = {workers}"))
}

#[tokio::test]
async fn connections_of_an_address_are_counted_over_all_workers() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_config(text(&backend, 3, "max_connections_per_address = 5")).await;
    let to = proxy.address();
    let mut kept = Vec::new();
    for _ in 0..5 {
        kept.push(served("127.0.0.1", to).await.expect("one of five"));
    }
    for _ in 0..3 {
        assert!(served("127.0.0.1", to).await.is_none());
        assert!(served("127.0.0.2", to).await.is_some(), "another address has its own");
    }
    for client in &mut kept {
        assert_eq!(client.get("/").await.status(), 200, "those that are open go on");
    }
    assert_eq!(proxy.counted(|it| &it.limited[AddressLimit::Connections as usize]), 3);
    assert_eq!(proxy.counted(|it| &it.accepted), 8, "who is over the limit is none of those");
    // One that ends makes room for one.
    kept.pop();
    eventually(|| proxy.connections().iter().sum::<usize>() == 4).await;
    kept.push(served("127.0.0.1", to).await.expect("the place of the other"));
    assert!(served("127.0.0.1", to).await.is_none());
}

#[tokio::test]
async fn trusted_proxies_have_no_limit() {
    let backend = TestBackend::ok("a");
    let keys = "max_connections_per_address = 1\ntrusted_proxies = [\"127.0.0.2\"]";
    let proxy = TestProxy::with_config(text(&backend, 1, keys)).await;
    let _one = served("127.0.0.1", proxy.address()).await.expect("one");
    assert!(served("127.0.0.1", proxy.address()).await.is_none());
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(served("127.0.0.2", proxy.address()).await.expect("a proxy's"));
    }
}

#[tokio::test]
async fn what_an_address_has_survives_a_reload() {
    let backend = TestBackend::ok("a");
    let limit = |limit: &str| text(&backend, 1, &format!("name = \"web\"\n{limit}"));
    let proxy = TestProxy::with_config(limit("max_connections_per_address = 2")).await;
    let to = proxy.address();
    let kept = [served("127.0.0.1", to).await.expect("one"), served("127.0.0.1", to).await.expect("two")];
    proxy.apply(limit("max_connections_per_address = 3")).await.unwrap();
    let third = served("127.0.0.1", to).await.expect("three");
    assert!(served("127.0.0.1", to).await.is_none(), "the two before are counted on");
    proxy.apply(limit("")).await.unwrap();
    let fourth = served("127.0.0.1", to).await.expect("any number");
    drop((kept, third));
    eventually(|| proxy.connections() == [1]).await;
    // Who came while nothing was counted is not, then or at its end.
    proxy.apply(limit("max_connections_per_address = 1")).await.unwrap();
    let fifth = served("127.0.0.1", to).await.expect("one");
    drop(fourth);
    eventually(|| proxy.connections() == [1]).await;
    assert!(served("127.0.0.1", to).await.is_none());
    drop(fifth);
}
