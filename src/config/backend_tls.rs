//! `[upstream.NAME.tls]`

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::address::is_host_name;
use super::check::{Check, value};
use super::error::{Problem, Severity};
use super::form::{About, Else, Form, Part, Switch};
use super::json_tree::Tree;
use super::report::Place;
use super::secret_file::Access;
use super::table::Table;
use super::tls::exposed;
use super::visibility::{FilePath, Location};

/// TLS 1.2 or 1.3 to the backends; the table alone switches it on. Files are read when they are put to use, not by `isobar check` alone.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, check = Self::check, reload = Requests)]
pub struct BackendTlsConfig {
    /// PEM: the authorities that may have issued the backends' certificates.
    #[key(Else(PemFile, "the system's"), otherwise = "the system's")]
    pub ca: Option<NamedFile>,
    /// The name that their certificates have to be for: a host name or an IP address.
    #[key(Else(ServerName, "the host"), otherwise = "the host of each backend's address")]
    pub server_name: Option<Arc<str>>,
    /// What is shown to backends that ask for a certificate.
    #[key(Part)]
    pub client_certificate: Option<ClientCertificateConfig>,
    /// Whether any certificate will do. What is sent can then be read and changed by anything in between.
    #[key(Switch, default = false)]
    pub insecure_skip_verify: bool,
    /// Where the table is in the file.
    pub spot: Spot,
}

const BOTH: (&str, &str) =
    ("a client certificate takes both files", "{ certificate = \"isobar.pem\", key = \"isobar.key\" }");

/// A certificate that isobar shows, with its key. Both are needed.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct ClientCertificateConfig {
    /// PEM: the certificate, and behind it those that lead to its issuer.
    #[key(PemFile, needed = BOTH.0, expected = BOTH.1, example = "isobar.pem")]
    pub certificate: NamedFile,
    /// PEM: its private key.
    #[key(PemFile, needed = BOTH.0, expected = BOTH.1, example = "isobar.key")]
    pub key: NamedFile,
}

impl BackendTlsConfig {
    fn check(check: &Check<'_>, place: Place, written: &WrittenBackendTlsConfig, mut it: Self) -> Option<Self> {
        if let (Some((place, _)), true) = (written.insecure_skip_verify.given(), it.insecure_skip_verify) {
            if let Some(ca) = written.ca.place() {
                let problem = Problem::error("no certificate is verified, so this would mean nothing");
                check.add(ca, problem.expected("insecure_skip_verify = false, or not this key"));
            }
            if Self::says_enabled(written) {
                let what =
                    "certificates of backends are not verified: whoever is in between can read and change everything";
                check.add(place, Problem::warning(what));
            }
        }
        it.spot = Spot::at(check, place);
        Some(it)
    }
}

/// A file that the configuration names. One that names the same file elsewhere is equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// As written: relative to the working directory.
    pub path: PathBuf,
    /// Where it is named.
    pub spot: Spot,
}

impl NamedFile {
    /// The path as problems have it: without what the environment has put into it.
    pub fn shown(&self) -> String {
        match self.spot.0.what.as_str() {
            "" => self.path.display().to_string(),
            shown => shown.to_owned(),
        }
    }

    /// What is to be said of a private key in this file, if everybody may read it.
    pub fn exposed(&self, access: Access) -> Option<Problem> {
        let warning = Problem { severity: Severity::Warning, ..*self.spot.problem("") };
        exposed(warning, &self.shown(), access)
    }
}

/// A place in the file, for what is found out after the check. All are equal: where a thing is written makes no difference.
#[derive(Clone, Debug)]
pub struct Spot(Box<Problem>);

impl Spot {
    fn new(located: Problem) -> Self {
        Self(Box::new(located))
    }

    fn at(check: &Check<'_>, place: Place) -> Self {
        Self::new(check.report.locate(place, Problem::error("")))
    }

    /// The same, with what stands there as problems have it.
    fn showing(self, shown: String) -> Self {
        Self(self.problem(shown))
    }

    /// Something that is wrong with what is named there.
    pub fn problem(&self, what: impl Into<String>) -> Box<Problem> {
        Box::new(Problem { what: what.into(), ..(*self.0).clone() })
    }
}

/// No place.
impl Default for Spot {
    fn default() -> Self {
        Self::new(Problem::error(""))
    }
}

impl PartialEq for Spot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Spot {}

/// The path of a PEM file.
struct PemFile;

impl Form<NamedFile> for PemFile {
    type Written = FilePath;

    fn read(&self, check: &Check<'_>, place: Place, text: &FilePath) -> Option<NamedFile> {
        if text.ends_with('/') || !value::is_file_path(text) {
            let problem = Problem::error(format!("{} is not a file's path", check.quote(place, text)));
            check.add(place, problem.expected("the path of a PEM file"));
            return None;
        }
        let spot = Spot::at(check, place).showing(check.show(place, text.as_str()));
        Some(NamedFile { path: PathBuf::from(text.as_str()), spot })
    }

    fn show(&self, value: &NamedFile) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &NamedFile) -> String {
        value.path.display().to_string()
    }

    fn about(&self) -> About {
        About::new::<FilePath>("the path of a file", json!({ "type": "string", "minLength": 1 }))
    }
}

/// A name that a certificate can have.
struct ServerName;

impl Form<Arc<str>> for ServerName {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<Arc<str>> {
        let name = text.to_ascii_lowercase();
        if name.parse::<IpAddr>().is_ok() || (is_host_name(&name) && !name.ends_with('.')) {
            return Some(Arc::from(name));
        }
        let problem = Problem::error(format!("{} is not a name that a certificate can have", check.quote(place, text)));
        check.add(place, problem.expected("a host name such as \"users.internal\" or an IP address, without a port"));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some((**value).into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Location>("a host name or an IP address", json!({ "type": "string", "minLength": 1 }))
    }
}
