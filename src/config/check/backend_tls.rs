//! `[upstream.NAME.tls]`

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Check;
use super::upstream::is_host_name;
use super::value::is_file_path;
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::{FilePath, Location};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{BackendTlsConfig, ClientCertificateConfig, NamedFile, Spot};

/// How backends are spoken to by TLS; `None` when there is no such table, or it is switched off.
pub(super) fn backend_tls(check: &Check<'_>, field: &Field<raw::BackendTls>) -> Option<Arc<BackendTlsConfig>> {
    let (place, raw) = field.given()?;
    let enabled = raw.enabled.value().copied().unwrap_or(true);
    let insecure = raw.insecure_skip_verify.value().copied().unwrap_or(false);
    if let (Some((place, _)), true) = (raw.insecure_skip_verify.given(), insecure) {
        if let Some(ca) = raw.ca.place() {
            let problem = Problem::error("no certificate is verified, so this would mean nothing");
            check.add(ca, problem.expected("insecure_skip_verify = false, or not this key"));
        }
        if enabled {
            let what =
                "certificates of backends are not verified: whoever is in between can read and change everything";
            check.add(place, Problem::warning(what));
        }
    }
    let config = BackendTlsConfig {
        ca: named_file(check, &raw.ca),
        server_name: server_name(check, &raw.server_name),
        client_certificate: client_certificate(check, &raw.client_certificate),
        insecure_skip_verify: insecure,
        spot: spot(check, place),
    };
    enabled.then(|| Arc::new(config))
}

fn server_name(check: &Check<'_>, field: &Field<Location>) -> Option<Arc<str>> {
    let (place, text) = field.given()?;
    let name = text.to_ascii_lowercase();
    if name.parse::<IpAddr>().is_ok() || (is_host_name(&name) && !name.ends_with('.')) {
        return Some(Arc::from(name));
    }
    let problem = Problem::error(format!("{} is not a name that a certificate can have", check.quote(place, text)));
    check.add(place, problem.expected("a host name such as \"users.internal\" or an IP address, without a port"));
    None
}

fn client_certificate(check: &Check<'_>, field: &Field<raw::ClientCertificate>) -> Option<ClientCertificateConfig> {
    let (place, raw) = field.given()?;
    for (key, missing) in [("certificate", raw.certificate.place()), ("key", raw.key.place())] {
        if missing.is_none() {
            let problem = Problem::error("a client certificate takes both files");
            let expected = "{ certificate = \"isobar.pem\", key = \"isobar.key\" }";
            check.report.add_missing(place, key, problem.expected(expected));
        }
    }
    Some(ClientCertificateConfig {
        certificate: named_file(check, &raw.certificate)?,
        key: named_file(check, &raw.key)?,
    })
}

fn named_file(check: &Check<'_>, field: &Field<FilePath>) -> Option<NamedFile> {
    let (place, text) = field.given()?;
    if text.ends_with('/') || !is_file_path(text) {
        let problem = Problem::error(format!("{} is not a file's path", check.quote(place, text)));
        check.add(place, problem.expected("the path of a PEM file"));
        return None;
    }
    Some(NamedFile {
        path: PathBuf::from(text.as_str()),
        spot: spot(check, place).showing(check.show(place, text.as_str())),
    })
}

fn spot(check: &Check<'_>, place: Place) -> Spot {
    Spot::new(check.report.locate(place, Problem::error("")))
}
