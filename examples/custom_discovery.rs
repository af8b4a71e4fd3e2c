//! Discovery of one's own: backends come from wherever the program knows them from, and change while requests are served.
//!
//! `cargo run --example custom_discovery` runs isobar over services that come and go: a table in memory, which stands for a
//! directory that is asked over the network, and a set that the program pushes when it likes.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isobar::backend::{BackendSet, Instance};
use isobar::cli::demo::user_service::{UserService, UserServiceOptions};
use isobar::config::Address;
use isobar::discovery::{self, Discovery, DiscoveryError};
use isobar::{Isobar, Running};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What `lb.toml` would hold: the upstream lists no backends of its own.
const CONFIG: &str = "
[[listener]]
address = \"127.0.0.1:0\"
[[route]]
upstream = \"users\"
[upstream.users]
strategy = \"weighted_round_robin\"
backends = []
";

/// The services that have registered, with their weights.
type Registered = Arc<Mutex<Vec<(String, u16)>>>;

/// Looks every 50 ms which services have registered.
struct Directory {
    registered: Registered,
    /// Whether nothing was said yet: the first answer comes at once, so that the first request finds backends.
    first: bool,
}

impl Discovery for Directory {
    async fn next(&mut self) -> Result<BackendSet, DiscoveryError> {
        if !self.first {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // A directory that cannot be asked is an error: `?` does. isobar then goes on with the last set, asks again, later
        // each time, and says so once.
        let registered = self.registered.lock().map_err(|_| DiscoveryError::new("the directory is broken"))?.clone();
        let instances = registered.iter().map(|(address, weight)| {
            let address: Address = address.parse()?;
            Ok(Instance { weight: *weight, ..Instance::new(address) })
        });
        let set = instances.collect::<Result<BackendSet, DiscoveryError>>()?;
        self.first = false;
        Ok(set)
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let (one, two, three) = (service("one").await?, service("two").await?, service("three").await?);

    let registered: Registered = Arc::new(Mutex::new(vec![(one, 1)]));
    let directory = Directory { registered: Arc::clone(&registered), first: true };
    let (pusher, pushed) = discovery::pushed();
    let running = Isobar::builder()
        .config_text(CONFIG)
        .discovery("users", "directory", directory)
        .discovery("users", "deployment", pushed)
        .start()
        .map_err(io::Error::other)?;
    show(&running, "one has registered").await?;

    registered.lock().map_err(|_| io::Error::other("poisoned"))?.push((two, 2));
    served_by(&running, 2).await;
    show(&running, "two has registered, with twice the weight").await?;

    let mut canary = Instance::new(three.parse().map_err(io::Error::other)?);
    canary.labels.insert("version".into(), "2".into());
    pusher.push(BackendSet::new([canary]));
    served_by(&running, 3).await;
    show(&running, "three was pushed").await?;

    registered.lock().map_err(|_| io::Error::other("poisoned"))?.clear();
    served_by(&running, 1).await;
    show(&running, "one and two are gone").await?;

    running.stop(Duration::from_secs(1)).await;
    Ok(())
}

/// A small service, and where it is.
async fn service(name: &str) -> io::Result<String> {
    let options = UserServiceOptions { name: name.to_owned(), latency: Duration::ZERO, fail_rate: 0.0 };
    let service = UserService::bind(([127, 0, 0, 1], 0).into(), options).await?;
    let address = service.address()?.to_string();
    tokio::spawn(service.serve(std::future::pending()));
    Ok(address)
}

/// Waits until there are so many backends.
async fn served_by(running: &Running, backends: usize) {
    let count = || running.handle().snapshot().upstreams[0].roster().backends().len();
    while count() != backends {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends twelve requests and shows where they went.
async fn show(running: &Running, after: &str) -> io::Result<()> {
    for _ in 0..12 {
        let mut client = TcpStream::connect(running.listener_addresses()[0]).await?;
        client.write_all(b"GET /users/1 HTTP/1.1\r\nhost: users\r\nconnection: close\r\n\r\n").await?;
        client.read_to_end(&mut Vec::new()).await?;
    }
    println!("{after}:");
    for backend in running.handle().snapshot().upstreams[0].roster().backends() {
        let picks = backend.state.metrics.sum(|metrics| &metrics.picks);
        println!("  {} (weight {}): picked {picks} times so far", backend.state.address, backend.weight);
    }
    Ok(())
}
