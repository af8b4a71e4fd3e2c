//! `isobar demo`: everything at work in one process, to try it out.
//!
//! Three copies of the user service, the proxy in front of them with three routes under different strategies, and a live
//! count of how often each backend was asked. The configuration is a real file, so that a reload can be tried as well.
//! With `--registry` the services register themselves instead (`joining`).

use std::error::Error;
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::supervisor::Handle;
use crate::{Isobar, Running};
use screen::{RequestCounts, Screen, ScreenSize};
use user_service::UserService;

pub mod user_service;
mod joining;
mod screen;

/// How requests under way may go on after Ctrl-C.
const GRACE: Duration = Duration::from_secs(2);
/// Often enough to look alive.
const REFRESH_TERMINAL: Duration = Duration::from_millis(250);
/// Rarely enough for a log.
const REFRESH_LINES: Duration = Duration::from_secs(3);
/// Ports tried one after the other before any free one is taken.
const PORTS_TRIED: u16 = 50;

/// The copies of the service: their names, and what each adds to a response. The last is slow, which least_connections
/// notices and the others do not.
const SERVICES: [(&str, Duration); 3] =
    [("one", Duration::ZERO), ("two", Duration::ZERO), ("three", Duration::from_millis(120))];

/// The flags of `isobar demo`.
#[derive(Args, Debug)]
pub struct DemoOptions {
    /// The proxy's port; the next free one where it is taken
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// The admin address's port; the next free one where it is taken
    #[arg(long, value_name = "PORT", default_value_t = 9900)]
    admin_port: u16,
    /// The services register themselves in isobar's own registry, and one of them comes and goes
    #[arg(long)]
    registry: bool,
    /// The registry's port; the next free one where it is taken
    #[arg(long, value_name = "PORT", default_value_t = 8500, requires = "registry")]
    registry_port: u16,
}

/// Runs the demo until Ctrl-C.
///
/// Exit code 0 when it ended as asked, 1 when it could not start, 130 or 143 when a second signal ended it.
pub fn run(options: &DemoOptions) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&error),
    };
    match runtime.block_on(demo(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&*error),
    }
}

async fn demo(options: &DemoOptions) -> Result<(), Box<dyn Error>> {
    let mut signals = DemoSignals::take()?;
    let (stop_services, stopped) = watch::channel(());
    let mut services = JoinSet::new();
    let mut backends = Vec::new();
    let copies: Vec<_> = match options.registry {
        true => joining::SERVICES.iter().map(|&(name, _)| (name, Duration::ZERO)).collect(),
        false => SERVICES.to_vec(),
    };
    for (name, latency) in copies {
        let options = user_service::UserServiceOptions { name: name.into(), latency, fail_rate: 0.0 };
        let service = UserService::bind((Ipv4Addr::LOCALHOST, 0).into(), options).await?;
        backends.push((name, service.address()?));
        let mut stopped = stopped.clone();
        services.spawn(service.serve(async move { drop(stopped.changed().await) }));
    }

    let (port, admin_port) = (free_port(options.port)?, free_port(options.admin_port)?);
    let text = if options.registry {
        joining::config(port, admin_port, free_port(options.registry_port)?)
    } else {
        let addresses: Vec<_> = backends.iter().map(|&(_, address)| address).collect();
        config(port, admin_port, &addresses)
    };
    let file = ConfigFile::write(&text);
    let builder = match &file {
        Ok(file) => Isobar::builder().config_file(&file.path),
        // Nowhere to write, as in a container with a read-only disk: everything but the editing works.
        Err(_) => Isobar::builder().config_text(text),
    };
    let running = builder.start()?;

    let terminal = io::stdout().is_terminal();
    let mut screen = Screen::new(io::stdout(), terminal);
    let path = file.as_ref().ok().map(|file| file.path.as_path());
    let show = if options.registry { joining::banner } else { banner };
    screen.print(&show(&running, &backends, path))?;
    let own_requests = Arc::default();
    let joining = options.registry.then(|| joining::start(&running, &backends, &own_requests));
    watch_counts(&mut screen, running.handle(), &backends, &mut signals, terminal).await?;

    let handle = running.handle().clone();
    drop(joining);
    tokio::select! {
        _ = running.stop(GRACE) => {}
        signal = signals.next() => {
            drop(screen);
            drop(file);
            std::process::exit(128 + signal.as_raw_value());
        }
    }
    screen.close(&RequestCounts::of(&handle, &backends), ScreenSize::of_terminal())?;
    if options.registry {
        screen.print(&own_requests.told())?;
    }
    drop(stopped);
    drop(stop_services);
    while services.join_next().await.is_some() {}
    Ok(())
}

/// Shows the counts until a signal.
async fn watch_counts(
    screen: &mut Screen<io::Stdout>,
    handle: &Handle,
    backends: &[(&'static str, SocketAddr)],
    signals: &mut DemoSignals,
    terminal: bool,
) -> io::Result<()> {
    let mut every = interval(if terminal { REFRESH_TERMINAL } else { REFRESH_LINES });
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            _ = every.tick() => screen.show(&RequestCounts::of(handle, backends), ScreenSize::of_terminal())?,
        }
    }
}

/// The signals that end a demo.
struct DemoSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl DemoSignals {
    fn take() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// The first free port from `first` on, or any.
fn free_port(first: u16) -> io::Result<u16> {
    let near = (first..=first.saturating_add(PORTS_TRIED)).find_map(|port| bindable(port).ok());
    near.map_or_else(|| bindable(0), Ok)
}

fn bindable(port: u16) -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()?.port())
}

fn config(port: u16, admin_port: u16, backends: &[SocketAddr]) -> String {
    let quoted = |weights: Option<&[u16]>| {
        let backend = |(i, address): (usize, &SocketAddr)| match weights.and_then(|weights| weights.get(i)) {
            Some(weight) => format!("  {{ address = \"{address}\", weight = {weight} }},\n"),
            None => format!("  \"{address}\",\n"),
        };
        backends.iter().enumerate().map(backend).collect::<String>()
    };
    let (plain, weighted) = (quoted(None), quoted(Some(&[5, 2, 1])));
    format!(
        r#"# The demo's configuration. Change it while the demo runs: it is applied within a second.
shutdown_grace = "2s"

[admin]
address = "127.0.0.1:{admin_port}"

[[listener]]
address = "127.0.0.1:{port}"

[[route]]
path_prefix = "/users"
upstream = "users"

[[route]]
path_prefix = "/weighted"
strip_prefix = true
upstream = "weighted"

[[route]]
path_prefix = "/least"
strip_prefix = true
upstream = "least"

[upstream.users]
strategy = "round_robin"
backends = [
{plain}]

[upstream.weighted]
strategy = "weighted_round_robin"
backends = [
{weighted}]

# One of the three is slow: it gets less.
[upstream.least]
strategy = "least_connections"
backends = [
{plain}]
"#
    )
}

fn banner(running: &Running, backends: &[(&str, SocketAddr)], file: Option<&Path>) -> String {
    let proxy = running.listener_addresses().first().map(ToString::to_string).unwrap_or_default();
    let admin = running.admin_address().map(|it| it.to_string()).unwrap_or_default();
    let services: Vec<_> = backends.iter().map(|(name, address)| format!("{name} {address}")).collect();
    let slow = SERVICES.iter().find(|(_, latency)| !latency.is_zero());
    let slow = slow.map(|(name, latency)| format!(" ({name} takes {} ms)", latency.as_millis())).unwrap_or_default();
    let edit = file.map(|file| format!("\n  edit      {}\n            and see it applied", file.display()));
    format!(
        "\
isobar {version} demo

  proxy     http://{proxy}
  services  {services}{slow}

  try       curl -i http://{proxy}/users/1
            curl -i http://{proxy}/weighted/users/2
            seq 300 | xargs -P 8 -I% curl -s -o /dev/null http://{proxy}/least/users/1
  look      http://{admin}/upstreams
            http://{admin}/config
            http://{admin}/metrics{edit}
  end       Ctrl-C

",
        version = env!("CARGO_PKG_VERSION"),
        services = services.join(", "),
        edit = edit.unwrap_or_default(),
    )
}

/// The configuration in a directory of its own, gone with this.
#[derive(Debug)]
struct ConfigFile {
    directory: PathBuf,
    path: PathBuf,
}

impl ConfigFile {
    fn write(text: &str) -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("isobar-demo-{}", std::process::id()));
        // Fails where it is there already: in a directory that all may write to, it could be a trap of another user.
        std::fs::create_dir(&directory)?;
        let file = Self { path: directory.join("lb.toml"), directory };
        std::fs::write(&file.path, text)?;
        Ok(file)
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        // What cannot be removed stays in the directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, StrategyConfig, Vocabulary};

    #[test]
    fn the_configuration_is_sound_and_has_three_strategies() {
        let backends = [9001, 9002, 9003].map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let text = super::config(8080, 9900, &backends);
        let loaded = config::parse(&text, "demo.toml", &|_| None, &Vocabulary::default()).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_eq!(loaded.config.routes.len(), 3);
        let strategies: Vec<_> = loaded.config.upstreams.iter().map(|it| it.strategy.clone()).collect();
        assert_eq!(
            strategies,
            [StrategyConfig::LeastConnections, StrategyConfig::RoundRobin, StrategyConfig::WeightedRoundRobin]
        );
        assert!(loaded.config.upstreams.iter().all(|it| it.backends.len() == 3));
    }

    #[test]
    fn the_configuration_with_a_registry_is_sound() {
        let loaded = config::parse(&joining::config(8080, 9900, 8500), "demo.toml", &|_| None, &Vocabulary::default());
        let loaded = loaded.unwrap();
        assert!(loaded.config.registry.is_some() && loaded.config.upstreams[0].discovery[0].registry.is_some());
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(free_port(port).unwrap(), port);
    }

    #[test]
    fn the_file_goes_with_the_demo() {
        let file = ConfigFile::write("x = 1").unwrap();
        let (path, directory) = (file.path.clone(), file.directory.clone());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x = 1");
        assert!(ConfigFile::write("y = 2").is_err(), "a directory that is there already is not used");
        drop(file);
        assert!(!directory.exists());
    }
}
