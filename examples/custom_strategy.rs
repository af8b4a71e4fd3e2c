//! A strategy of one's own: `fill_first` stays with the first backend until it has its fill, then with the second, so
//! that at night the last ones stand idle and can be switched off.
//!
//! `cargo run --example custom_strategy` runs isobar's conformance suite on it, shows what it picks, and sends a few requests
//! through a proxy whose configuration names it. `-- lb.toml` serves that file instead, until it is stopped.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar::Isobar;
use isobar::backend::Lease;
use isobar::cli::demo::user_service::{UserService, UserServiceOptions};
use isobar::strategy::{Candidates, Dice, Factory, Strategy, Tried, conformance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What `lb.toml` calls it: `strategy = "fill_first"`.
const NAME: &str = "fill_first";

/// Requests in flight at a backend of weight 1 before the next one is used.
const FILL: u32 = 2;

/// The first backend that is not full; where all are, the one that has the least over its fill.
#[derive(Debug)]
struct FillFirst {
    /// Requests in flight for a weight of 1.
    fill: u32,
}

impl Strategy for FillFirst {
    fn pick(&self, candidates: &Candidates<'_>, _: &mut Dice) -> Option<usize> {
        let over = |index: &usize| {
            let backend = &candidates.backends[*index];
            (backend.state.in_flight() + 1).saturating_sub(self.fill * u32::from(backend.weight))
        };
        // The first of equals wins, and none that is not full is over its fill.
        (0..candidates.backends.len()).filter(|&index| candidates.may(index)).min_by_key(over)
    }
}

/// Builds it for a list of backends. It keeps nothing of the list, and has no place in a round to go on from.
fn factory() -> Factory {
    Arc::new(|_ready, _cursor| Box::new(FillFirst { fill: FILL }))
}

fn main() -> io::Result<()> {
    // What belongs in a test of your program: it panics if a promise is broken.
    conformance::check(&factory(), &[]);
    println!("{NAME} conforms");

    show_picks();

    match std::env::args().nth(1) {
        Some(file) => serve(&file),
        None => balance_over_two_services(),
    }
}

/// Serves a file that may say `strategy = "fill_first"`, until the process is told to stop.
fn serve(file: &str) -> io::Result<()> {
    let running = Isobar::builder()
        .config_file(file)
        .strategy(NAME, factory())
        .signals(true)
        .start()
        .map_err(io::Error::other)?;
    println!("listening on {:?}", running.listener_addresses());
    running.wait();
    Ok(())
}

/// Six requests, one after the other, over two small services: one at a time never fills the first.
fn balance_over_two_services() -> io::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut backends = Vec::new();
        for name in ["one", "two"] {
            let options = UserServiceOptions { name: name.to_owned(), latency: Duration::ZERO, fail_rate: 0.0 };
            let service = UserService::bind(([127, 0, 0, 1], 0).into(), options).await?;
            backends.push(service.address()?.to_string());
            tokio::spawn(service.serve(std::future::pending()));
        }
        let config = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"users\"\n\
             [upstream.users]\nstrategy = \"{NAME}\"\nbackends = {backends:?}\n"
        );
        let builder = Isobar::builder().config_text(config).strategy(NAME, factory()).admin(false);
        let running = builder.start().map_err(io::Error::other)?;
        for _ in 0..6 {
            let mut client = TcpStream::connect(running.listener_addresses()[0]).await?;
            client.write_all(b"GET /users/1 HTTP/1.1\r\nhost: users\r\nconnection: close\r\n\r\n").await?;
            client.read_to_end(&mut Vec::new()).await?;
        }
        for backend in running.handle().snapshot().upstreams[0].roster().backends() {
            println!("{}: picked {} times", backend.state.address, backend.state.metrics.sum(|metrics| &metrics.picks));
        }
        running.stop(Duration::from_secs(1)).await;
        Ok(())
    })
}

/// Nine requests that stay, one more than three backends are filled by, the second of which takes twice as much; then
/// the first two end.
fn show_picks() {
    let backends = conformance::backends(&[1, 2, 1]);
    let strategy = factory()(&backends, &Arc::default());
    let tried = Tried::default();
    let mut dice = Dice::new();
    let mut pick = |when: &str| {
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let index = strategy.pick(&candidates, &mut dice)?;
        let lease = Lease::take(&backends[index].state);
        let in_flight: Vec<_> = backends.iter().map(|backend| backend.state.in_flight()).collect();
        println!("{when}: picked {index}, in flight {in_flight:?}");
        Some(lease)
    };
    let mut leases: Vec<_> = (1..=9).filter_map(|request| pick(&format!("request {request}"))).collect();
    leases.drain(..2);
    leases.extend(pick("after the first two have ended"));
}
