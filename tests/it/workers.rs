//! Connections are spread over the workers, and end in order when the process stops.

use std::time::Duration;

use isobar::supervisor::Ended;

use crate::harness::{After, Client, Keys, TestBackend, TestProxy, eventually};

fn two_workers(backend: &TestBackend) -> String {
    Keys::default().text(&[backend]).replace("workers = 1", "workers = 2")
}

#[tokio::test]
async fn eight_long_lived_connections_end_up_four_and_four() {
    let backend = TestBackend::ok("a");
    for _ in 0..5 {
        let proxy = TestProxy::with_config(two_workers(&backend)).await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(proxy.client().await);
        }
        eventually(|| proxy.connections().iter().sum::<usize>() == 8).await;
        assert_eq!(proxy.connections(), [4, 4]);
        for client in &mut clients {
            assert_eq!(client.get("/").await.status(), 200, "wherever it is served");
        }
    }
}

#[tokio::test]
async fn a_worker_that_was_left_takes_the_next() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_config(two_workers(&backend)).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(proxy.client().await);
    }
    eventually(|| proxy.connections().iter().sum::<usize>() == 40).await;
    drop(clients);
    eventually(|| proxy.connections() == [0, 0]).await;
    let _clients = [proxy.client().await, proxy.client().await];
    eventually(|| proxy.connections() == [1, 1]).await;
}

#[tokio::test]
async fn a_stop_lets_requests_finish() {
    let backend = TestBackend::slow("slow", Duration::from_millis(300));
    let proxy = TestProxy::with_config(two_workers(&backend)).await;
    let address = proxy.address();
    let (mut idle, mut busy) = (proxy.client().await, proxy.client().await);
    busy.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| backend.requests() == 1).await;
    let stopped = tokio::spawn(proxy.stop(Duration::from_secs(20)));
    idle.closed().await;
    let response = busy.response().await;
    assert_eq!((response.text(), response.header("connection")), ("slow", Some("close")));
    busy.closed().await;
    assert_eq!(stopped.await.unwrap(), Ended::Stopped { cut: 0 });
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_finish() {
    let backend = TestBackend::raw("", After::Hold);
    let proxy = TestProxy::with_config(two_workers(&backend)).await;
    let mut clients: Vec<Client> = vec![proxy.client().await, proxy.client().await];
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    }
    eventually(|| backend.requests() == 2).await;
    assert_eq!(proxy.stop(Duration::from_millis(100)).await, Ended::Stopped { cut: 2 });
    for client in &mut clients {
        client.closed().await;
    }
}
