//! Which certificate a client is shown: by the host that it names, and by the signatures that it can verify.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::certificate::LoadedCertificate;
use crate::config::UnknownNames;

/// Certificates by the names that they are for.
#[derive(Debug)]
pub(super) struct CertificatesByName {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what stands behind `*.`, which is for one label.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// The first, and those that are for the same names: its twin with another kind of key.
    default: Vec<Arc<CertifiedKey>>,
    unknown: UnknownNames,
}

impl CertificatesByName {
    /// Of certificates in the order of the configuration.
    pub(super) fn new(loaded: &[LoadedCertificate], unknown: UnknownNames) -> Self {
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        // To sign with an elliptic curve costs a tenth of RSA: a client that can verify it gets that. Else the first in the file.
        let mut sorted: Vec<&LoadedCertificate> = loaded.iter().collect();
        sorted.sort_by_key(|loaded| loaded.certified.key.algorithm() == SignatureAlgorithm::RSA);
        for loaded in &sorted {
            for name in &loaded.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(Arc::clone(&loaded.certified));
            }
        }
        let twins = sorted.iter().filter(|it| loaded.first().is_some_and(|first| first.names == it.names));
        Self { exact, wildcard, default: twins.map(|it| Arc::clone(&it.certified)).collect(), unknown }
    }

    /// Those that are shown for the server name `name`, the best first.
    fn shown(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<CertifiedKey>> + Clone {
        let name = name.map(str::to_ascii_lowercase);
        let exact = name.as_ref().and_then(|name| self.exact.get(name)).map_or(&[][..], Vec::as_slice);
        let parent = name.as_ref().and_then(|name| Some(name.split_once('.')?.1));
        let wildcard = parent.and_then(|parent| self.wildcard.get(parent)).map_or(&[][..], Vec::as_slice);
        let default = match (exact.is_empty() && wildcard.is_empty(), self.unknown) {
            (true, UnknownNames::Default) => &self.default[..],
            _ => &[],
        };
        exact.iter().chain(wildcard).chain(default)
    }

    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown(name);
        let fits = |it: &&Arc<CertifiedKey>| it.key.choose_scheme(schemes).is_some();
        // Where none fits rustls finds that out itself and says handshake_failure (RFC 8446 §6.2); of no certificate at all it would say
        // access_denied, which scanners and clients take for something else.
        shown.clone().find(fits).or_else(|| shown.clone().next()).cloned()
    }

    /// Whether a client with the server name `name` would have been shown the same for `host`, whichever of several kinds of key it was.
    pub(super) fn are_shown_alike(&self, name: &str, host: &str) -> bool {
        let mut shown = self.shown(Some(name));
        let others = self.shown(Some(host));
        shown.all(|it| others.clone().any(|other| Arc::ptr_eq(it, other)))
    }
}

impl ResolvesServerCert for CertificatesByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
    }
}
