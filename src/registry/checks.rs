//! Checks that isobar runs for services that ask for it.
//!
//! A client says which address is asked, and clients are not trusted: only addresses are asked that a source would believe, and of an answer nothing
//! is told but its status. Names are looked up for each check, and what they lead to is held against the same rules.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::Registry;
use super::backends::address;
use super::catalog::DueProbe;
use super::instance::{HttpTarget, Probe, ProbeTarget, Status};
use crate::backend::admission::Admission;
use crate::config::Address;
use crate::http_client::{Fetch, FetchError, FetchLimits, To, Trust};

/// Checks at a time. With a timeout of 10 s and no answer at all, 640 instances still get each of theirs within 100 s.
const RUNNING_MAX: usize = 64;

/// Bytes of an answer that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;

impl Registry {
    /// Runs checks as they come due, until it is dropped.
    pub(super) async fn run_checks(self: &Arc<Self>) {
        let mut running = JoinSet::new();
        loop {
            let room = RUNNING_MAX - running.len();
            let (due, next) = self.lock().take_due_probes(room, Instant::now().into_std());
            for probe in due {
                let allows = self.admission();
                running.spawn(async move {
                    let outcome = check(&probe.probe, &allows).await;
                    (probe, outcome)
                });
            }
            let waits = running.len() < RUNNING_MAX;
            let wait = async {
                match next.filter(|_| waits) {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = running.join_next() => {
                    // One that panicked is a fault of the program: the check stays as it is.
                    if let Ok((probe, (status, output))) = done {
                        self.note(&probe, status, &output);
                    }
                }
                () = wait => {}
                () = self.checks.notified() => {}
            }
        }
    }

    fn note(&self, probe: &DueProbe, status: Status, output: &str) {
        self.change(|catalog, now, _| catalog.probed(probe, status, output, now));
        // It may have begun to be critical, from which on its time counts.
        self.clock.notify_one();
    }

    fn admission(&self) -> Admission {
        let config = self.settings();
        Admission::of(config.allow.clone(), config.address.ip().is_loopback())
    }
}

async fn check(probe: &Probe, allows: &Admission) -> (Status, String) {
    let asked = async {
        match &probe.target {
            ProbeTarget::Tcp { host, port } => tcp(host, *port, allows).await,
            ProbeTarget::Http(http) => self::http(http, probe.timeout, allows).await,
        }
    };
    match timeout(probe.timeout, asked).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => (Status::Critical, error),
        Err(_) => (Status::Critical, format!("no answer within {:?}", probe.timeout)),
    }
}

async fn tcp(host: &str, port: u16, allows: &Admission) -> Result<(Status, String), String> {
    let address = resolve(host, port, allows).await?;
    TcpStream::connect(address).await.map_err(|error| format!("TCP connect {host}:{port}: {error}"))?;
    Ok((Status::Passing, format!("TCP connect {host}:{port}: Success")))
}

async fn http(target: &HttpTarget, time: Duration, allows: &Admission) -> Result<(Status, String), String> {
    let HttpTarget { tls, host, port, target: path, method, headers, body } = target;
    let address = resolve(host, *port, allows).await?;
    // By TLS it is asked by its name, which its certificate is for: what that leads to a moment later has to have the certificate.
    let to = match tls {
        false => To::Address(address),
        true => To::Server { host: host.as_str().into(), port: *port, tls: Some(trust().await?) },
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let mut request = Request::builder()
        .method(method.as_str())
        .uri(format!("http://{host}:{port}{path}"))
        .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION"), " registry-check"))
        .header("accept", "text/plain, text/*, */*")
        .header("connection", "close");
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::new(Bytes::from(body.clone()))).map_err(|error| error.to_string())?;
    let fetch = Fetch::new(to, FetchLimits { time, body: BODY_BYTES_MAX });
    let status = match fetch.whole(request).await {
        Ok(response) => response.status(),
        Err(error) => return Err(told(&error)),
    };
    let stands = match status {
        status if status.is_success() => Status::Passing,
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ => Status::Critical,
    };
    Ok((stands, format!("HTTP {method} http{}://{host}:{port}{path}: {status}", if *tls { "s" } else { "" })))
}

/// The authorities that the system trusts, as they were when the first check by TLS was made.
async fn trust() -> Result<Trust, String> {
    static TRUST: OnceLock<Trust> = OnceLock::new();
    if let Some(trust) = TRUST.get() {
        return Ok(trust.clone());
    }
    let made = tokio::task::spawn_blocking(|| Trust::new(None)).await.map_err(|error| error.to_string())?;
    let trust = made.map_err(|error| error.to_string())?;
    Ok(TRUST.get_or_init(|| trust).clone())
}

/// The first address of a host, if all of them may be asked.
async fn resolve(host: &str, port: u16, allows: &Admission) -> Result<SocketAddr, String> {
    if let Some(why) = allows.refuse(&address(host, port)?) {
        return Err(format!("{host} is not asked: {why}"));
    }
    let found = lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let found: Vec<_> = found.collect();
    for address in &found {
        if let Some(why) = allows.refuse(&Address::Ip(*address)) {
            return Err(format!("{host} is not asked: {why}"));
        }
    }
    found.first().copied().ok_or_else(|| format!("{host} has no address"))
}

fn told(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
