//! The microservice that the balancer is for, as a program of its own.
//!
//! ```console
//! $ cargo run --example user_service -- --port 9001 --name one
//! $ curl -i http://127.0.0.1:9001/users/1
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Parser;
use isobar::cli::demo::user_service::{UserService, UserServiceOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Answers GET /users/{id}, /users and /health.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 9001)]
    port: u16,
    /// Its name, sent as x-instance; by default its address
    #[arg(long)]
    name: Option<String>,
    /// Milliseconds added to each response
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency: u64,
    /// The share of requests that are answered 500: 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    fail_rate: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let address = SocketAddr::new(flags.host, flags.port);
    let options = UserServiceOptions {
        name: flags.name.unwrap_or_else(|| address.to_string()),
        latency: Duration::from_millis(flags.latency),
        fail_rate: flags.fail_rate,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let service = UserService::bind(address, options).await?;
    println!("serving users on http://{}", service.address()?);
    service
        .serve(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    Ok(())
}
