//! Very many connections that say nothing.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::harness::{Client, Scratch, TestBackend, TestProxy, backends, eventually};

const CONNECTIONS: usize = 10_000;
/// What the processes need beside the connections.
const OTHER_FILES: usize = 200;

/// The binary, so that each side has file descriptors of its own. Killed with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    }
}

fn config(address: &str, backend: &TestBackend) -> String {
    format!(
        r#"
        workers = 2
        [admin]
        enabled = false
        [[listener]]
        address = "{address}"
        max_connections = 20000
        idle_timeout = "10m"
        [[route]]
        upstream = "u"
        [upstream.u]
        backends = {}
        "#,
        backends(&[backend])
    )
}

#[tokio::test]
#[ignore = "needs 10 000 file descriptors"]
async fn ten_thousand_idle_connections_and_it_serves_on() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let limit: usize = limit.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    let connections = CONNECTIONS.min(limit.saturating_sub(OTHER_FILES));
    assert!(
        connections == CONNECTIONS,
        "{limit} open files are allowed: raise it with `ulimit -n {}`",
        CONNECTIONS + OTHER_FILES
    );

    let backend = TestBackend::ok("served");
    // A port that nobody else is given meanwhile.
    let port = TestBackend::refusing();
    let dir = Scratch::new();
    let file = dir.write("lb.toml", config(&port.address().to_string(), &backend));
    let child = Command::new(env!("CARGO_BIN_EXE_isobar")).arg("--config").arg(file).stderr(Stdio::null()).spawn();
    let process = Process(child.unwrap());
    eventually(|| std::net::TcpStream::connect(port.address()).is_ok()).await;
    assert_eq!(Client::connect(port.address()).await.get("/").await.text(), "served");

    let (before, start) = (process.resident_bytes(), Instant::now());
    let mut idle = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut client = Client::connect(port.address()).await;
        assert_eq!(client.get("/").await.text(), "served");
        client.stream.buffer = Vec::new();
        idle.push(client);
    }
    let grown = process.resident_bytes().saturating_sub(before);
    let each = grown / connections;
    println!("{connections} idle connections in {:.1?}: {each} bytes each", start.elapsed());
    // What a connection may once wait for must not be room that each of them holds: it is 5.6 KiB without.
    assert!(each < 7 * 1024, "{each} bytes each");
    assert_eq!(Client::connect(port.address()).await.get("/").await.text(), "served", "a new one");
    for client in idle.iter_mut().step_by(97) {
        assert_eq!(client.get("/").await.text(), "served", "one that was idle");
    }
}

/// The same in small, and to the end.
#[tokio::test]
async fn idle_connections_are_spread_and_closed_by_the_stop() {
    let backend = TestBackend::ok("served");
    let proxy =
        TestProxy::with_config(config("127.0.0.1:0", &backend).replace("[admin]\n        enabled = false", "")).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(proxy.client().await);
    }
    eventually(|| proxy.connections().iter().sum::<usize>() == idle.len()).await;
    let spread = proxy.connections();
    assert!(spread[0].abs_diff(spread[1]) <= idle.len() / 8, "{spread:?}");
    for client in &mut idle {
        assert_eq!(client.get("/").await.text(), "served");
    }
    proxy.stop(crate::harness::PATIENCE).await;
    for mut client in idle {
        client.closed().await;
    }
}
