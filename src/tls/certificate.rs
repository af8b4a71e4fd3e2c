//! One certificate with its key: read, and looked at for what would make clients refuse it.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Expiry, Files, unix};
use crate::config::{CertificateConfig, FileKey, Problem};

/// A certificate that can be shown to clients.
#[derive(Debug)]
pub(super) struct LoadedCertificate {
    /// With its key.
    pub(super) certified: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case; those of a wildcard begin with `*.`.
    pub(super) names: Vec<String>,
    /// Its end.
    pub(super) expiry: Expiry,
}

/// Reads one. Whatever is wrong with it is added to `problems`.
pub(super) fn load(
    config: &CertificateConfig,
    files: &mut Files,
    now: SystemTime,
    problems: &mut Vec<Problem>,
) -> Option<LoadedCertificate> {
    // All files are read, so that every problem is found at once.
    let chain = files.read(&config.certificate, problems);
    let key = files.read_secret(&config.key, problems);
    let ocsp = config.ocsp.as_ref().map(|ocsp| files.read(ocsp, problems));
    let chain = chain.and_then(|bytes| certificates(&config.certificate, &bytes, problems));
    let key = key.and_then(|bytes| private_key(&config.key, &bytes, problems));
    let looked_at = chain.as_ref().and_then(|chain| look(&config.certificate, chain, now, problems));
    let mut certified = match CertifiedKey::from_der(chain?, key?, &aws_lc_rs::default_provider()) {
        Ok(certified) => certified,
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let what = format!("the key is not that of the certificate in {}", config.certificate.shown());
            problems.push(config.key.error(what));
            return None;
        }
        Err(error) => {
            problems.push(config.key.error(format!("the key cannot be used: {error}")));
            return None;
        }
    };
    certified.ocsp = ocsp.flatten();
    let (names, expires) = looked_at?;
    let expiry = Expiry { file: config.certificate.path.clone(), at: expires };
    Some(LoadedCertificate { certified: Arc::new(certified), names, expiry })
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(
    key: &FileKey,
    bytes: &[u8],
    problems: &mut Vec<Problem>,
) -> Option<Vec<CertificateDer<'static>>> {
    let file = key.shown();
    match CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if chain.is_empty() => {
            problems
                .push(key.error(format!("there is no certificate in {file}")).expected("PEM, with BEGIN CERTIFICATE"));
            None
        }
        Ok(chain) => Some(chain),
        Err(error) => {
            problems.push(key.error(format!("{file} is not PEM: {error}")));
            None
        }
    }
}

fn private_key(key: &FileKey, bytes: &[u8], problems: &mut Vec<Problem>) -> Option<PrivateKeyDer<'static>> {
    let file = key.shown();
    PrivateKeyDer::from_pem_slice(bytes)
        .map_err(|error| {
            let problem = match error {
                rustls::pki_types::pem::Error::NoItemsFound => {
                    key.error(format!("there is no private key in {file}")).expected("PEM, with BEGIN PRIVATE KEY")
                }
                error => key.error(format!("{file} is not PEM: {error}")),
            };
            problems.push(problem);
        })
        .ok()
}

/// The names of the first certificate of a chain, and when it ends.
fn look(
    key: &FileKey,
    chain: &[CertificateDer<'static>],
    now: SystemTime,
    problems: &mut Vec<Problem>,
) -> Option<(Vec<String>, i64)> {
    let file = key.shown();
    let mut parsed = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok((_, certificate)) => parsed.push(certificate),
            Err(error) => {
                problems.push(key.error(format!("certificate {} in {file} cannot be read: {error}", index + 1)));
                return None;
            }
        }
    }
    for (index, pair) in parsed.windows(2).enumerate() {
        if pair[0].issuer() != pair[1].subject() {
            let what = format!("certificate {} in {file} was not issued by the one behind it", index + 1);
            problems.push(key.warning(what).expected("the certificate first, then who issued it, and so on"));
        }
    }
    let first = parsed.first()?;
    let expiry = Expiry { file: key.path.clone(), at: first.validity().not_after.timestamp() };
    if let Some(complaint) = expiry.complaint(now) {
        problems.push(key.warning(complaint));
    }
    if first.validity().not_before.timestamp() > unix(now) {
        problems.push(key.warning("the certificate is not valid yet"));
    }
    let alternative = first.subject_alternative_name().ok().flatten();
    let all = alternative.as_ref().map_or(&[][..], |names| &names.value.general_names);
    if !all.iter().any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))) {
        let what = format!("the certificate in {file} is for no name: clients refuse it");
        problems.push(key.warning(what).expected("a subject alternative name"));
    }
    let dns = all.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
        _ => None,
    });
    Some((dns.collect(), expiry.at))
}
