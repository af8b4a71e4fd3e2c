//! `isobar ctl`: looks into a running isobar and steers it, over its admin address or its Unix socket.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::admin_address::{AdminAddress, Unknown};
use super::chain;
use crate::config::{self, Secret};
use client::{AdminCallError, AdminClient, encoded};

mod client;
mod show;
mod table;

/// The variable that the token may be in.
const TOKEN: &str = "ISOBAR_ADMIN_TOKEN";
/// The file that is looked into where none is named.
const FILE: &str = "lb.toml";
/// How often `drain --wait` looks.
const LOOK: Duration = Duration::from_millis(200);

const HELP: &str = "\
Where isobar is asked:
  At --admin, or where the file of --config says: at its unix_socket if that can be connected to, else at its address.
  With neither, where lb.toml in this folder says; without one, at 127.0.0.1:9900.
  The token is that of --token (which other users of the machine can see), of ISOBAR_ADMIN_TOKEN, or of the file.

Examples:
  isobar ctl backends
  isobar ctl drain users 10.0.0.1:9001 --wait
  isobar ctl weight users 10.0.0.1:9001 5 --for 1h
  isobar ctl --admin unix:/run/isobar.sock events --kind health,by_hand

Exit codes:
  0   done, or so already
  1   isobar refuses: no such backend, a wrong token, a file with mistakes
  2   the command line is wrong
  3   no isobar answers there
  4   what was waited for has not come in time";

/// What `isobar ctl` is told.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct CtlOptions {
    /// Where isobar is asked: an address, or unix:PATH
    #[arg(long, value_name = "ADDRESS", global = true)]
    admin: Option<String>,
    /// The token that changes need, where the configuration has one
    #[arg(long, value_name = "TOKEN", global = true)]
    token: Option<String>,
    /// The configuration file that says where isobar is asked
    // Its name is not that of the flag of `isobar` itself, whose default would become its own.
    #[arg(id = "ctl_config", short, long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Print what isobar answers, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: CtlCommand,
}

/// A backend of an upstream.
#[derive(Args, Debug)]
struct BackendArgs {
    /// The upstream's name
    upstream: String,
    /// The backend's address, as in the file
    address: String,
}

/// For how long.
#[derive(Args, Debug)]
struct Time {
    /// How long, such as 5m or 1h30m; without it, until it is undone
    #[arg(long = "for", value_name = "TIME")]
    time: Option<String>,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Show the upstreams
    Upstreams,
    /// Show where backends come from, beside the list of the file
    Sources,
    /// Show the services that upstreams are made for
    Services,
    /// Show the backends, of one upstream or of all, and what is set by hand
    Backends {
        /// Only this upstream's
        upstream: Option<String>,
    },
    /// Send a backend nothing new, and let finish what runs there
    Drain {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        time: Time,
        /// Wait until nothing is in flight there
        #[arg(long)]
        wait: bool,
        /// How long to wait
        #[arg(long, value_name = "TIME", default_value = "5m", requires = "wait")]
        timeout: String,
    },
    /// End a drain
    Undrain(BackendArgs),
    /// Take a backend out for a repair: it gets nothing new and no health checks
    Disable {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        time: Time,
    },
    /// End a repair; where there are health checks, the next one decides
    Enable(BackendArgs),
    /// Take a backend out, as outlier detection does
    Eject {
        #[command(flatten)]
        backend: BackendArgs,
        #[command(flatten)]
        time: Time,
    },
    /// End an ejection, by hand or by outlier detection
    Uneject(BackendArgs),
    /// Give a backend another weight than the file does
    Weight {
        #[command(flatten)]
        backend: BackendArgs,
        /// 0 to 65535, or "reset" for the weight of the file
        weight: String,
        #[command(flatten)]
        time: Time,
    },
    /// Forget what was learned from traffic; counters and what is set by hand stay
    ResetStats {
        /// Only this upstream's
        upstream: Option<String>,
    },
    /// Show the log level, or set another one for a time
    Log {
        /// A level, a filter such as info,isobar::proxy=debug, or "reset" for what the file says
        level: Option<String>,
        /// How long; 10m without it
        #[arg(long = "for", value_name = "TIME", requires = "level")]
        time: Option<String>,
    },
    /// Read the file again and apply it
    Reload,
    /// Show events as they happen: health, ejections, reloads, changes by hand
    Events {
        /// Only these kinds, with commas between: health, ejected, unejected, panic, breaker, overload, backends, discovery, reloaded, reload_failed, certificates, by_hand
        #[arg(long, value_name = "KINDS")]
        kind: Option<String>,
        /// Begin with what has happened and is still known
        #[arg(long)]
        recent: bool,
        /// End after so many
        #[arg(long, value_name = "N")]
        count: Option<usize>,
    },
    /// Show the configuration in force, as JSON
    Config,
}

impl CtlOptions {
    /// The file that it names.
    #[cfg(test)]
    pub(super) fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

/// Does it. What is asked for goes to standard output, what is wrong to standard error.
pub fn run(options: CtlOptions) -> ExitCode {
    let done = client(&options).and_then(|client| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| AdminCallError::Command(format!("could not begin: {error}")))?;
        let done = runtime.block_on(obey(options, &client));
        if let (Err(AdminCallError::Unreachable { .. }), Some(guess)) = (&done, &client.guess) {
            eprintln!("isobar: {guess}");
        }
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("isobar: {}", chain(&failed));
            ExitCode::from(match failed {
                AdminCallError::Refused { .. } => 1,
                AdminCallError::Command(_) => 2,
                AdminCallError::Unreachable { .. } => 3,
                AdminCallError::TimedOut(_) => 4,
            })
        }
    }
}

/// Where to ask, by the flags, the file and the environment.
fn client(options: &CtlOptions) -> Result<AdminClient, AdminCallError> {
    let (place, of_file, guess) = match (&options.admin, &options.config) {
        (Some(admin), None) => (AdminAddress::parse(admin), None, None),
        // The token may be in the file.
        (Some(admin), Some(file)) => (AdminAddress::parse(admin), said(file)?.1, None),
        (None, Some(file)) => {
            let (place, token) = said(file)?;
            (place, token, None)
        }
        (None, None) => found(Path::new(FILE))?,
    };
    let token = options.token.clone().or_else(|| std::env::var(TOKEN).ok()).filter(|token| !token.is_empty());
    let token = token.as_deref().map(Secret::from).or(of_file);
    Ok(AdminClient { place, token, guess })
}

/// What a file says that was asked for.
fn said(file: &Path) -> Result<(AdminAddress, Option<Secret>), AdminCallError> {
    AdminAddress::of_file(file).map_err(|unknown| AdminCallError::Command(unknown.to_string()))
}

/// What the file of this folder says. One that is not there, or does not say, is no reason not to steer what runs: then it is asked where
/// it is by default, with the words for that.
fn found(file: &Path) -> Result<(AdminAddress, Option<Secret>, Option<String>), AdminCallError> {
    const ELSE: &str = "--admin or --config says where it is";
    let place = AdminAddress::default();
    if !file.exists() {
        let guess = format!("there is no {} here, so the default address was asked; {ELSE}", file.display());
        return Ok((place, None, Some(guess)));
    }
    match AdminAddress::of_file(file) {
        Ok((place, token)) => Ok((place, token, None)),
        Err(Unknown::Refused(problems)) => {
            // Whatever answers there may be another than the one of this file.
            eprintln!("isobar: {} does not say where isobar is asked; asking at {place}", file.display());
            Ok((place, None, Some(format!("{problems}\nisobar: so the default address was asked; {ELSE}"))))
        }
        Err(unknown @ Unknown::Off { .. }) => Err(AdminCallError::Command(unknown.to_string())),
    }
}

async fn obey(options: CtlOptions, client: &AdminClient) -> Result<(), AdminCallError> {
    let json = options.json;
    let plain = |answer: &Value, shown: fn(&Value) -> String| print(json, answer, shown);
    match options.command {
        CtlCommand::Upstreams => plain(&client.ask("GET", "/upstreams", None).await?, show::upstreams),
        CtlCommand::Services => plain(&client.ask("GET", "/upstreams", None).await?, show::services),
        CtlCommand::Sources => plain(&client.ask("GET", "/upstreams", None).await?, show::sources),
        CtlCommand::Backends { upstream: None } => {
            let answer = client.ask("GET", "/upstreams", None).await?;
            plain(&answer, |answer| show::backends(answer["upstreams"].as_array().map_or(&[], Vec::as_slice)))
        }
        CtlCommand::Backends { upstream: Some(name) } => {
            let answer = client.ask("GET", &format!("/upstreams/{}", encoded(&name)), None).await?;
            plain(&answer, |answer| show::backends(std::slice::from_ref(answer)))
        }
        CtlCommand::Drain { backend, time, wait, timeout } => {
            let limit = config::duration(&timeout)
                .ok_or_else(|| AdminCallError::Command(format!("{timeout:?} is no time to wait, such as 5m")))?;
            plain(&backend.pull(client, "drain", time.body()).await?, show::pulled)?;
            if wait { backend.wait(client, limit, json).await } else { Ok(()) }
        }
        CtlCommand::Undrain(backend) => plain(&backend.pull(client, "undrain", None).await?, show::pulled),
        CtlCommand::Disable { backend, time } => {
            plain(&backend.pull(client, "disable", time.body()).await?, show::pulled)
        }
        CtlCommand::Enable(backend) => plain(&backend.pull(client, "enable", None).await?, show::pulled),
        CtlCommand::Eject { backend, time } => plain(&backend.pull(client, "eject", time.body()).await?, show::pulled),
        CtlCommand::Uneject(backend) => plain(&backend.pull(client, "uneject", None).await?, show::pulled),
        CtlCommand::Weight { backend, weight, time } => {
            let path = backend.path("/weight");
            let answer = match (weight.as_str(), weight.parse::<u16>()) {
                ("reset", _) if time.time.is_some() => {
                    return Err(AdminCallError::Command(
                        "the weight of the file has no time: reset goes without --for".into(),
                    ));
                }
                ("reset", _) => client.ask("DELETE", &path, None).await?,
                (_, Ok(weight)) => {
                    let mut body = time.body().unwrap_or_else(|| json!({}));
                    body["weight"] = weight.into();
                    client.ask("PUT", &path, Some(&body)).await?
                }
                (_, Err(_)) => {
                    return Err(AdminCallError::Command(format!("{weight:?} is not a weight: 0 to 65535, or reset")));
                }
            };
            plain(&answer, show::pulled)
        }
        CtlCommand::ResetStats { upstream } => {
            let body = upstream.map(|name| json!({ "upstream": name }));
            plain(&client.ask("POST", "/stats/reset", body.as_ref()).await?, |answer| {
                let names = answer["upstreams"].as_array().map_or(&[][..], Vec::as_slice);
                let names: Vec<_> = names.iter().filter_map(Value::as_str).collect();
                format!("forgotten what was learnt about {}\n", names.join(", "))
            })
        }
        CtlCommand::Log { level, time } => {
            let answer = match level.as_deref() {
                None => client.ask("GET", "/log", None).await?,
                Some("reset") => client.ask("DELETE", "/log", None).await?,
                Some(level) => {
                    let mut body = Time { time }.body().unwrap_or_else(|| json!({}));
                    body["level"] = level.into();
                    client.ask("PUT", "/log", Some(&body)).await?
                }
            };
            plain(&answer, show::log)
        }
        CtlCommand::Reload => plain(&client.ask("POST", "/reload", None).await?, show::reloaded),
        CtlCommand::Events { kind, recent, count } => {
            follow(client, kind.as_deref(), recent, count.unwrap_or(usize::MAX), json).await
        }
        CtlCommand::Config => print(true, &client.ask("GET", "/config", None).await?, Value::to_string),
    }
}

impl Time {
    fn body(&self) -> Option<Value> {
        self.time.as_ref().map(|time| json!({ "for": time }))
    }
}

impl BackendArgs {
    fn path(&self, behind: &str) -> String {
        format!("/upstreams/{}/backends/{}{behind}", encoded(&self.upstream), encoded(&self.address))
    }

    async fn pull(&self, client: &AdminClient, lever: &str, body: Option<Value>) -> Result<Value, AdminCallError> {
        client.ask("POST", &self.path(&format!("/{lever}")), body.as_ref()).await
    }

    /// Looks until nothing is in flight there.
    async fn wait(&self, client: &AdminClient, limit: Duration, json: bool) -> Result<(), AdminCallError> {
        let begun = Instant::now();
        loop {
            let answer = client.ask("GET", &self.path(""), None).await?;
            let in_flight = answer["in_flight"].as_u64().unwrap_or(0);
            if in_flight == 0 {
                return print(json, &answer, |answer| {
                    format!("{}: nothing in flight\n", answer["address"].as_str().unwrap_or_default())
                });
            }
            if begun.elapsed() >= limit {
                let Self { upstream, address } = self;
                return Err(AdminCallError::TimedOut(format!("{upstream} {address}: still {in_flight} in flight")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Shows events until there were so many, or the other side ends.
async fn follow(
    client: &AdminClient,
    kinds: Option<&str>,
    recent: bool,
    count: usize,
    json: bool,
) -> Result<(), AdminCallError> {
    let path = match kinds {
        Some(kinds) => {
            let kinds: Vec<_> = kinds.split(',').map(encoded).collect();
            format!("/events?kind={}", kinds.join(","))
        }
        None => "/events".into(),
    };
    let from: &[(&'static str, &'static str)] = if recent { &[("last-event-id", "0")] } else { &[] };
    let mut body = client.listen(&path, from).await?;
    let (mut shown, mut bytes) = (0, Vec::new());
    while shown < count {
        let frame = body.frame().await.ok_or_else(|| client.unreachable(io::Error::other("isobar has ended")))?;
        let frame = frame.map_err(|error| client.unreachable(error))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n').filter(|_| shown < count) {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: ") else { continue };
            if let Ok(event) = serde_json::from_slice::<Value>(data) {
                let shown_as = if json { event.to_string() } else { show::event(&event) };
                out(&format!("{shown_as}\n"))?;
                shown += 1;
            }
        }
    }
    Ok(())
}

fn print(json: bool, answer: &Value, shown: impl FnOnce(&Value) -> String) -> Result<(), AdminCallError> {
    out(&if json { format!("{answer:#}\n") } else { shown(answer) })
}

fn out(text: &str) -> Result<(), AdminCallError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader of the output has closed it: `isobar ctl backends | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| AdminCallError::Command(format!("could not write the answer: {error}"))),
    }
}
