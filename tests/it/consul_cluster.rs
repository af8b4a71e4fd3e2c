//! The source `consul` against three real servers that lose their leader. `tests/registries/consul.sh` gets Consul.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{Client, PATIENCE, Scratch, TestBackend, free_address};
use crate::registry::{Load, Process, comes_to, conditions, has, has_now, start};

/// One of the servers.
struct Server {
    http: SocketAddr,
    raft: SocketAddr,
    /// Of the members of one datacenter, and of several.
    members: [SocketAddr; 2],
    name: String,
    process: Option<Process>,
}

struct Cluster {
    servers: Vec<Server>,
    files: Scratch,
}

impl Cluster {
    async fn start() -> Self {
        let server = |number: usize| Server {
            http: free_address(),
            raft: free_address(),
            members: [free_address(), free_address()],
            name: format!("server-{number}"),
            process: None,
        };
        let mut cluster = Self { servers: (0..3).map(server).collect(), files: Scratch::new() };
        (0..3).for_each(|number| cluster.run(number));
        cluster.leader(&[0, 1, 2]).await;
        cluster
    }

    fn run(&mut self, number: usize) {
        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/registries/consul");
        let mut command = Command::new(if fetched.exists() { fetched } else { "consul".into() });
        command.args(["agent", "-server", "-bootstrap-expect", "3", "-bind", "127.0.0.1", "-client", "127.0.0.1"]);
        command.args(["-dns-port", "-1", "-grpc-port", "-1", "-hcl", "performance { raft_multiplier = 1 }"]);
        let server = &self.servers[number];
        command.args(["-node", &server.name]).arg("-data-dir").arg(self.files.path(&server.name));
        let ports = [("http", server.http), ("server", server.raft)];
        for (flag, at) in ports.into_iter().chain(["serf-lan", "serf-wan"].into_iter().zip(server.members)) {
            command.args([format!("-{flag}-port"), at.port().to_string()]);
        }
        for other in &self.servers {
            command.args(["-retry-join", &other.members[0].to_string()]);
        }
        command.args(["-retry-interval", "1s"]);
        self.servers[number].process = Some(Process::run(&mut command, "tests/registries/consul.sh gets Consul"));
    }

    fn kill(&mut self, number: usize) {
        self.servers[number].process = None;
    }

    async fn ask(&self, number: usize, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut client = Client::connect(self.servers[number].http).await;
        let length = body.len();
        client
            .send(format!("{method} {path} HTTP/1.1\r\nhost: consul\r\ncontent-length: {length}\r\n\r\n{body}"))
            .await;
        let response = client.response().await;
        (response.status(), response.text().to_owned())
    }

    /// Which of `alive` leads, once all of them agree.
    async fn leader(&self, alive: &[usize]) -> usize {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < 2 * PATIENCE, "there is no leader");
            let mut said = Vec::new();
            for &number in alive {
                if TcpStream::connect(self.servers[number].http).await.is_ok() {
                    said.push(self.ask(number, "GET", "/v1/status/leader", "").await.1.trim_matches('"').to_owned());
                }
            }
            let of = |leader: &String| alive.iter().find(|&&it| self.servers[it].raft.to_string() == *leader);
            let agree = said.len() == alive.len() && said.iter().all(|it| *it == said[0]);
            if let Some(&leader) = said.first().filter(|_| agree).and_then(of) {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Writes an instance of `u` into the catalog, on a node that no agent looks after.
    async fn register(&self, number: usize, backend: &TestBackend) {
        let (host, port) = (backend.address().ip(), backend.address().port());
        let node = format!("node-{port}");
        let service = json!({ "ID": format!("u-{port}"), "Service": "u", "Port": port });
        let body = json!({ "Node": node, "Address": host, "Service": service }).to_string();
        let begun = Instant::now();
        loop {
            let (status, said) = self.ask(number, "PUT", "/v1/catalog/register", &body).await;
            if status == 200 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
#[ignore = "needs consul"]
async fn servers_that_lose_their_leader_and_their_majority_cost_no_request() {
    let (a, b, c) = (TestBackend::ok("ok"), TestBackend::ok("ok"), TestBackend::ok("ok"));
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    for backend in [&a, &b] {
        cluster.register(leader, backend).await;
    }
    // A follower is asked.
    let (asked, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let running = start(&format!(
        "consul = {{ service = \"u\", address = \"http://{}\", wait = \"1s\", timeout = \"2s\" }}",
        cluster.servers[asked].http
    ));
    has(&running, [&a, &b]).await;
    let load = Load::begin(&running);
    // The leader is lost; another is elected, and changes are seen by it.
    cluster.kill(leader);
    cluster.leader(&[asked, other]).await;
    assert!(has_now(&running, [&a, &b]));
    cluster.register(asked, &c).await;
    has(&running, [&a, &b, &c]).await;
    // The majority is lost: the one that is left knows no leader.
    cluster.kill(other);
    comes_to(&running, "failing").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(has_now(&running, [&a, &b, &c]));
    cluster.run(leader);
    cluster.run(other);
    cluster.leader(&[0, 1, 2]).await;
    comes_to(&running, "current").await;
    assert!(has_now(&running, [&a, &b, &c]));
    // Each change of state was told once, however long it lasted.
    let told = conditions(&running);
    assert!(told.windows(2).all(|two| two[0] != two[1]) && told.len() <= 5, "{told:?}");
    let asked = load.end().await;
    assert_eq!([&a, &b, &c].map(TestBackend::requests).iter().sum::<usize>(), asked);
    assert!(asked > 1000, "{asked}");
}
