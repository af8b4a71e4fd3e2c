use std::path::PathBuf;
use std::sync::Arc;

use super::access::Access;
use super::error::{Problem, Severity};
use super::tls::exposed;

/// `[upstream.NAME.tls]`: how its backends are spoken to by TLS. Files are read when it is put to use, not when it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTlsConfig {
    /// Who may have issued the backends' certificates; `None` is whomever the system trusts.
    pub ca: Option<NamedFile>,
    /// For whom their certificates have to be, a host name or an IP address; `None` is the host of each one's address.
    pub server_name: Option<Arc<str>>,
    /// What is shown to backends that ask who the proxy is.
    pub client_certificate: Option<ClientCertificateConfig>,
    /// Whether any certificate will do. What is sent can then be read and changed by whoever is in between.
    pub insecure_skip_verify: bool,
    /// Where the table is in the file.
    pub spot: Spot,
}

/// `client_certificate = { .. }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificateConfig {
    /// PEM: its own first, then those that lead to its issuer.
    pub certificate: NamedFile,
    /// PEM: the private key of the first.
    pub key: NamedFile,
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
    pub(super) fn new(located: Problem) -> Self {
        Self(Box::new(located))
    }

    /// The same, with what stands there as problems have it.
    pub(super) fn showing(self, shown: String) -> Self {
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
