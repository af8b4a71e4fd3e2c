//! `[listener.tls]`

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;

use super::access::Access;
use super::error::{Problem, Severity};

/// How a listener speaks TLS. The files are named here and read elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// At least one; the first is the default.
    pub certificates: Vec<CertificateConfig>,
    /// What a client gets that names a host that no certificate is for, or none.
    pub unknown_names: UnknownNames,
    /// What comes of a request for another host than the one that was named in the handshake, and not shown the same certificate.
    pub misdirected: Misdirected,
    /// Which versions and cipher suites are spoken.
    pub profile: TlsProfile,
    /// From the connection to the end of its handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at a time, over all workers; further ones wait.
    pub max_handshakes: usize,
    /// Connections in a second from one client address (from a /64 in IPv6), each of which is for a handshake; `None` is any
    /// number.
    pub handshakes_per_second_per_address: Option<u32>,
    /// `Strict-Transport-Security` of the responses; `None` sends none.
    pub hsts: Option<HeaderValue>,
    /// Which certificates of clients are asked for; `None` asks for none.
    pub client_certificates: Option<ClientCertificatesConfig>,
    /// Whether HTTP/2 is offered (ALPN), as the listener's `http2` says.
    pub http2: bool,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificatesConfig {
    /// PEM: who may have issued them.
    pub ca: FileKey,
    /// Whether a client needs one.
    pub mode: ClientCertificates,
    /// PEM: those that are revoked.
    pub crl: Vec<FileKey>,
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Without one, there is no connection.
    Required,
    /// One that it shows must be good.
    Optional,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateConfig {
    /// PEM: the certificate, and behind it those that lead to a root.
    pub certificate: FileKey,
    /// PEM: its private key.
    pub key: FileKey,
    /// DER: an OCSP response to staple.
    pub ocsp: Option<FileKey>,
}

impl TlsConfig {
    /// Every file that is named.
    pub fn files(&self) -> impl Iterator<Item = &FileKey> {
        let own = self.certificates.iter().flat_map(|it| [Some(&it.certificate), Some(&it.key), it.ocsp.as_ref()]);
        let clients = self.client_certificates.iter().flat_map(|it| it.crl.iter().chain([&it.ca]));
        own.flatten().chain(clients)
    }
}

/// A client that names a host that no certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownNames {
    /// It gets the first certificate.
    Default,
    /// Its handshake fails.
    Refuse,
}

/// A request on a connection that was made for another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdirected {
    /// It is answered 421, after which a client may ask on a connection of its own (RFC 9110 §15.5.20).
    Refuse,
    /// The same, and the connection ends.
    Close,
    /// It is served.
    Allow,
}

/// Versions and cipher suites, as Mozilla calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsProfile {
    /// TLS 1.2 with forward secrecy and AEAD, and TLS 1.3.
    Intermediate,
    /// TLS 1.3.
    Modern,
}

/// A key that names a file, and where it stands: what is wrong with the file is said there.
#[derive(Clone)]
pub struct FileKey {
    /// The file.
    pub path: PathBuf,
    /// Its path as problems have it: without what the environment has put into it.
    pub(super) shown: String,
    /// Says where the key is, and nothing yet.
    pub(super) place: Box<Problem>,
}

impl FileKey {
    /// The path as problems have it: without what the environment has put into it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What is to be said of a private key in this file, if everybody may read it.
    pub fn exposed(&self, access: Access) -> Option<Problem> {
        exposed(self.warning(""), &self.shown, access)
    }

    /// A problem of this key that refuses the configuration.
    pub fn error(&self, what: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, what: what.into(), ..(*self.place).clone() }
    }

    /// A problem of this key that does not.
    pub fn warning(&self, what: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..self.error(what) }
    }
}

/// The problem of a private key that everybody may read.
pub(super) fn exposed(problem: Problem, shown: &str, access: Access) -> Option<Problem> {
    access.is_everybodys().then(|| {
        let what = format!("the private key is open to everybody: {shown} has mode {access}");
        Problem { what, ..problem }.expected(format!("{}, so that it is not", access.mend(shown)))
    })
}

/// Another place in the file is no difference.
impl PartialEq for FileKey {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for FileKey {}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}
