//! TLS to clients: the certificate files of a listener, made into the configuration of its handshakes.
//!
//! Reading files may block, so it happens at the start, at a reload and when a file has changed, on the control plane; a
//! connection finds everything ready in a [`Tls`]. `isobar check` reads in the same way, and drops the result.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerConfig};
use rustls::version::{TLS12, TLS13};
use tokio::sync::Semaphore;

use crate::config::{self, Access, FileKey, Problem, Severity, TlsConfig, TlsProfile};

mod certificate;
mod client_certificates;
mod server_names;

use certificate::LoadedCertificate;
use client_certificates::ClientVerifier;
pub use client_certificates::identity;
use server_names::CertificatesByName;

/// What may be spoken behind a handshake, the best first (ALPN). For another one here, `listener::connection` must speak it.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What the handshakes of a listener are made with. Immutable: another file or setting makes another.
pub struct Tls {
    /// For rustls.
    pub server: Arc<ServerConfig>,
    /// What it was made of.
    pub settings: Arc<TlsConfig>,
    /// The certificates, in the order of the configuration.
    pub certificates: Vec<Expiry>,
    /// A handshake holds one of these.
    pub turns: Arc<Semaphore>,
    names: Arc<CertificatesByName>,
    /// Of all that was in the files: whether they are others is told by it.
    digest: u64,
    tickets: Arc<dyn ProducesTickets>,
    /// What clients are let in by: tickets are those of clients that were.
    clients: Vec<Vec<u8>>,
}

/// Until when a certificate is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Its file.
    pub file: PathBuf,
    /// The end of it, in Unix time.
    pub at: i64,
}

/// A day, in Unix time.
const DAY: i64 = 24 * 3600;

/// A certificate is renewed a month before its end where that is automatic; this late, that has failed.
const SOON: i64 = 14 * DAY;

impl Expiry {
    /// What is to be said of it at `now`, if anything.
    pub fn complaint(&self, now: SystemTime) -> Option<String> {
        let left = self.at - unix(now);
        match left {
            ..0 => Some(format!("the certificate expired {}", days(-left, " ago"))),
            0..SOON => Some(format!("the certificate expires in {}", days(left, ""))),
            _ => None,
        }
    }
}

fn days(seconds: i64, ending: &str) -> String {
    match seconds / DAY {
        0 => format!("{} h{ending}", seconds / 3600),
        1 => format!("1 day{ending}"),
        days => format!("{days} days{ending}"),
    }
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

impl Tls {
    /// Reads the files. What is odd about them is added to `problems`; so is what makes them useless, and then nothing comes
    /// of it. `before` is what the listener has used so far: tickets from then go on being taken.
    pub fn load(
        settings: &Arc<TlsConfig>,
        before: Option<&Self>,
        now: SystemTime,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let known = problems.len();
        let mut files = Files::default();
        let loaded: Vec<LoadedCertificate> =
            settings.certificates.iter().filter_map(|it| certificate::load(it, &mut files, now, problems)).collect();
        let asked = settings.client_certificates.as_ref();
        let verifier = asked.and_then(|config| client_certificates::verifier(config, &mut files, problems));
        if problems[known..].iter().any(|problem| problem.severity == Severity::Error) {
            return None;
        }
        // Nothing can be said against the rest but by the key that the listener has in any case.
        let key = &settings.certificates.first()?.certificate;
        let clients = verifier.as_ref().map(|(_, material)| material.clone()).unwrap_or_default();
        let names = Arc::new(CertificatesByName::new(&loaded, settings.unknown_names));
        let built = server(settings, Arc::clone(&names), verifier, before);
        let (server, tickets) = built.map_err(|error| problems.push(key.error(error.to_string()))).ok()?;
        let turns = match before {
            Some(before) if before.settings.max_handshakes == settings.max_handshakes => Arc::clone(&before.turns),
            _ => Arc::new(Semaphore::new(settings.max_handshakes)),
        };
        Some(Self {
            server,
            settings: Arc::clone(settings),
            certificates: loaded.into_iter().map(|loaded| loaded.expiry).collect(),
            turns,
            names,
            digest: files.digest.finish(),
            tickets,
            clients,
        })
    }

    /// Whether a client with the server name `name` may ask for `host` on the same connection: the certificate that it was
    /// shown is the one for that host too (RFC 9113 §9.1.1). Where clients show certificates they do so for the host that they
    /// have named, and no other.
    pub fn may_ask_for(&self, name: &str, host: &str) -> bool {
        self.settings.client_certificates.is_none() && self.names.are_shown_alike(name, host)
    }

    /// Whether the other was made of files with the same in them.
    pub fn is_of_the_same_files(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

fn server(
    settings: &TlsConfig,
    names: Arc<CertificatesByName>,
    verifier: Option<ClientVerifier>,
    before: Option<&Tls>,
) -> Result<(Arc<ServerConfig>, Arc<dyn ProducesTickets>), rustls::Error> {
    // The suites of the provider are those of Mozilla's intermediate profile but for DHE, which is slow and hardly used. The
    // client chooses among them: one without AES in hardware knows that ChaCha20 is faster for it.
    let versions: &[_] = match settings.profile {
        TlsProfile::Intermediate => &[&TLS13, &TLS12],
        TlsProfile::Modern => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(versions)?;
    let (builder, clients) = match verifier {
        Some((verifier, clients)) => (builder.with_client_cert_verifier(verifier), clients),
        None => (builder.with_no_client_auth(), Vec::new()),
    };
    let mut server = builder.with_cert_resolver(names);
    let spoken = if settings.http2 { &PROTOCOLS[..] } else { &PROTOCOLS[1..] };
    server.alpn_protocols = spoken.iter().map(|name| name.to_vec()).collect();
    // A session is in the ticket that the client keeps, under keys that all workers have and that change every six hours. They
    // belong to the listener: what one listener asks of its clients is not got round by a ticket of another,
    // nor what is asked from now by a ticket from before.
    let tickets = match before {
        Some(before) if before.clients == clients => Arc::clone(&before.tickets),
        _ => aws_lc_rs::Ticketer::new()?,
    };
    match settings.client_certificates {
        None => server.ticketer = Arc::clone(&tickets),
        // A session that is resumed brings its certificate along unverified, and gets a new ticket: who resumes often enough
        // would be let in long after it has expired.
        Some(_) => server.send_tls13_tickets = 0,
    }
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok((Arc::new(server), tickets))
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// Reads files, and remembers what was in them.
#[derive(Debug, Default)]
struct Files {
    digest: DefaultHasher,
}

impl Files {
    fn read(&mut self, key: &FileKey, problems: &mut Vec<Problem>) -> Option<Vec<u8>> {
        self.read_with_access(key, problems).map(|(bytes, _)| bytes)
    }

    /// Reads a private key, and warns if all users can read it.
    fn read_secret(&mut self, key: &FileKey, problems: &mut Vec<Problem>) -> Option<Vec<u8>> {
        let (bytes, access) = self.read_with_access(key, problems)?;
        problems.extend(key.exposed(access));
        Some(bytes)
    }

    fn read_with_access(&mut self, key: &FileKey, problems: &mut Vec<Problem>) -> Option<(Vec<u8>, Access)> {
        match config::read(&key.path) {
            Ok((bytes, access)) => {
                self.digest.write(&bytes);
                self.digest.write_usize(bytes.len());
                Some((bytes, access))
            }
            Err(error) => {
                problems.push(key.error(format!("could not read {}: {error}", key.shown())));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn complains_of_certificates_that_end_soon() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 * DAY as u64);
        for (days, expected) in [
            (1_030, None),
            (1_013, Some("the certificate expires in 13 days")),
            (1_001, Some("the certificate expires in 1 day")),
            (1_000, Some("the certificate expires in 0 h")),
            (998, Some("the certificate expired 2 days ago")),
        ] {
            let expiry = Expiry { file: PathBuf::from("cert.pem"), at: days * DAY };
            assert_eq!(expiry.complaint(now).as_deref(), expected, "{days}");
        }
    }
}
