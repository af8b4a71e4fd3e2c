//! `[listener.tls]`

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use serde_json::json;

use super::check::{Check, value};
use super::difference::Changes;
use super::error::{Problem, Severity};
use super::field::Field;
use super::form::{About, Form, Limit, List, Literal, Maybe, OneOf, Part, Timeout, Whole, Word};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::secret_file::Access;
use super::table::Table;
use super::units;
use super::visibility::{FilePath, Kind};

/// How a listener speaks TLS. The files are named here and read elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Connections)]
pub struct TlsConfig {
    /// At least one; the first is the default. Of several, the client's SNI and signatures choose.
    #[key(Certificates, example = [])]
    pub certificates: Vec<CertificateConfig>,
    /// What a client gets that names a host that no certificate is for, or none: the first certificate (`default`), or no handshake (`refuse`).
    #[key(OneOf, default = "default")]
    pub unknown_names: UnknownNames,
    /// What comes of a request for another host than the one that was named in the handshake, and not shown the same certificate: it is answered
    /// 421 (`refuse`), the connection ends too (`close`), or it is served (`allow`). With `client_certificates` no other host is the same.
    #[key(OneOf, default = "refuse")]
    pub misdirected: Misdirected,
    /// TLS 1.2 and 1.3, what every client of the last ten years speaks (`intermediate`), or TLS 1.3 alone (`modern`).
    #[key(OneOf, default = "intermediate")]
    pub profile: TlsProfile,
    /// From the connection to the end of its handshake: against clients that trickle.
    #[key(Timeout, default = "10s")]
    pub handshake_timeout: Duration,
    /// Handshakes at a time, over all workers; further ones wait for their turn, within `handshake_timeout`.
    #[key(Whole(1..=1_000_000), default = 1000)]
    pub max_handshakes: usize,
    /// Connections in a second from one client address (from a /64 in IPv6), each of which is for a handshake; one more is closed before TLS
    /// costs anything.
    #[key(Limit(1..=1_000_000), default = "unlimited", reload = AtOnce)]
    pub handshakes_per_second_per_address: Option<u32>,
    /// How long browsers are to take nothing but https from this host (`Strict-Transport-Security`), such as `365d`; `none` sends none. Begin with
    /// minutes: it cannot be taken back.
    #[key(MaxAge, default = "none")]
    pub hsts: Option<HeaderValue>,
    /// Which certificates of clients are asked for; without the table none are. Backends get `X-Client-Cert-SHA256` and `X-Client-Cert-Subject`,
    /// which clients cannot set themselves.
    #[key(Part)]
    pub client_certificates: Option<ClientCertificatesConfig>,
    /// Whether HTTP/2 is offered (ALPN), as the listener's `http2` says.
    pub http2: bool,
}

/// Certificates that clients show.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(reload = Connections)]
pub struct ClientCertificatesConfig {
    /// PEM: the authorities that may have issued them.
    #[key(FileName, needed = "there is no ca", expected = "the path of a file in PEM", example = "ca.pem")]
    pub ca: FileKey,
    /// Whether a client needs one (`required`) or may show none (`optional`).
    #[key(OneOf, default = "required")]
    pub mode: ClientCertificates,
    /// PEM: those that are revoked.
    #[key(List(FileName), example = ["crl.pem"])]
    pub crl: Vec<FileKey>,
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum ClientCertificates {
    /// Without one, there is no connection.
    Required,
    /// One that it shows must be good.
    Optional,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(reload = Connections)]
pub struct CertificateConfig {
    /// PEM: the certificate, and behind it those that lead to a root.
    #[key(FileName, needed = "there is no certificate", expected = "the path of a file in PEM", example = "cert.pem")]
    pub certificate: FileKey,
    /// PEM: its private key.
    #[key(FileName, needed = "there is no key", expected = "the path of a file in PEM", example = "key.pem")]
    pub key: FileKey,
    /// DER: an OCSP response to staple.
    #[key(Maybe(FileName), example = "ocsp.der")]
    pub ocsp: Option<FileKey>,
}

impl TlsConfig {
    fn check(check: &Check<'_>, place: Place, written: &WrittenTlsConfig, it: Self) -> Option<Self> {
        let problem = || {
            let expected = "[{ certificate = \"cert.pem\", key = \"key.pem\" }]";
            Problem::error("TLS needs a certificate").expected(expected)
        };
        match &written.certificates {
            Field::Absent => check.report.add_missing(place, "certificates", problem()),
            Field::Given(place, given) if given.is_empty() => check.add(*place, problem()),
            Field::Given(..) | Field::Wrong(_) => {}
        }
        Some(it)
    }

    /// Every file that is named.
    pub fn files(&self) -> impl Iterator<Item = &FileKey> {
        let own = self.certificates.iter().flat_map(|it| [Some(&it.certificate), Some(&it.key), it.ocsp.as_ref()]);
        let clients = self.client_certificates.iter().flat_map(|it| it.crl.iter().chain([&it.ca]));
        own.flatten().chain(clients)
    }
}

/// A client that names a host that no certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum UnknownNames {
    /// It gets the first certificate.
    Default,
    /// Its handshake fails.
    Refuse,
}

/// A request on a connection that was made for another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum Misdirected {
    /// It is answered 421, after which a client may ask on a connection of its own (RFC 9110 §15.5.20).
    Refuse,
    /// The same, and the connection ends.
    Close,
    /// It is served.
    Allow,
}

/// Versions and cipher suites, as Mozilla calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
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

/// The path of a file, which is looked at by what reads it.
pub(crate) struct FileName;

impl Form<FileKey> for FileName {
    type Written = FilePath;

    fn read(&self, check: &Check<'_>, place: Place, text: &FilePath) -> Option<FileKey> {
        if !value::is_file_path(text) {
            check.add(place, Problem::error(format!("{} is not a file's path", check.quote(place, text))));
            return None;
        }
        let (path, shown) = (PathBuf::from(text.as_str()), check.show(place, text.as_str()));
        Some(FileKey { path, shown, place: Box::new(check.report.locate(place, Problem::error(""))) })
    }

    fn show(&self, value: &FileKey) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &FileKey) -> String {
        value.path.display().to_string()
    }

    fn about(&self) -> About {
        About::new::<FilePath>("the path of a file", json!({ "type": "string", "minLength": 1 }))
    }
}

/// Certificates with their keys. A reload tells which certificates come and go.
struct Certificates;

impl Form<Vec<CertificateConfig>> for Certificates {
    type Written = <List<Part> as Form<Vec<CertificateConfig>>>::Written;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Vec<CertificateConfig>> {
        List(Part).read(check, place, written)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<CertificateConfig> {
        Vec::new()
    }

    fn show(&self, value: &Vec<CertificateConfig>) -> Option<Tree> {
        List(Part).show(value)
    }

    fn tell(&self, value: &Vec<CertificateConfig>) -> String {
        value.iter().map(|it| FileName.tell(&it.certificate)).collect::<Vec<_>>().join(", ")
    }

    fn compare(
        &self,
        changes: &mut Changes,
        table: &str,
        words: &str,
        old: &Vec<CertificateConfig>,
        new: &Vec<CertificateConfig>,
    ) {
        let files =
            |value: &Vec<CertificateConfig>| value.iter().map(|it| FileName.tell(&it.certificate)).collect::<Vec<_>>();
        changes.told_members(Kind::File, &format!("{table}{words}"), &files(old), &files(new));
    }

    fn about(&self) -> About {
        <List<Part> as Form<Vec<CertificateConfig>>>::about(&List(Part))
    }
}

/// `Strict-Transport-Security` for so long.
struct MaxAge;

impl MaxAge {
    fn duration(value: &Option<HeaderValue>) -> Option<Duration> {
        let seconds = value.as_ref()?.to_str().ok()?.strip_prefix("max-age=")?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

impl Form<Option<HeaderValue>> for MaxAge {
    type Written = raw::Duration;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Duration) -> Option<Option<HeaderValue>> {
        let age: Option<Duration> = Timeout.read(check, place, written)?;
        Some(age.and_then(|age| HeaderValue::try_from(format!("max-age={}", age.as_secs())).ok()))
    }

    fn show(&self, value: &Option<HeaderValue>) -> Option<Tree> {
        Some(Self::duration(value).map_or_else(|| "none".into(), units::written).into())
    }

    fn tell(&self, value: &Option<HeaderValue>) -> String {
        Self::duration(value).map_or_else(|| "none".into(), units::written)
    }

    fn about(&self) -> About {
        <Timeout as Form<Option<Duration>>>::about(&Timeout)
    }
}
