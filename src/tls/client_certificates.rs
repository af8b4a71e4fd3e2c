//! Certificates of clients: their trusted issuers, and what backends are told about a certificate.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::Files;
use super::certificate::certificates;
use crate::config::{ClientCertificates, ClientCertificatesConfig, Problem};

/// Its SHA-256, in lower-case hexadecimals.
const SHA256: HeaderName = HeaderName::from_static("x-client-cert-sha256");
/// Its subject, as RFC 4514 writes it.
const SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");

/// The check of client certificates, and what it was made of: a session is resumed only while that is the same.
pub(super) type ClientVerifier = (Arc<dyn ClientCertVerifier>, Vec<Vec<u8>>);

/// Reads the files. Whatever is wrong with them is added to `problems`.
pub(super) fn verifier(
    config: &ClientCertificatesConfig,
    files: &mut Files,
    problems: &mut Vec<Problem>,
) -> Option<ClientVerifier> {
    let mut material = vec![vec![u8::from(config.mode == ClientCertificates::Optional)]];
    let ca = files.read(&config.ca, problems);
    let issuers = ca.as_ref().and_then(|bytes| certificates(&config.ca, bytes, problems));
    material.extend(ca);
    let mut lists = Vec::new();
    for key in &config.crl {
        let Some(bytes) = files.read(key, problems) else { continue };
        match CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
            Ok(all) if !all.is_empty() => lists.extend(all),
            Ok(_) => problems.push(key.error("there is no list in this file").expected("PEM, with BEGIN X509 CRL")),
            Err(error) => problems.push(key.error(format!("{} is not PEM: {error}", key.shown()))),
        }
        material.push(bytes);
    }
    if lists.is_empty() && !config.crl.is_empty() {
        return None;
    }
    let mut roots = RootCertStore::empty();
    for issuer in issuers? {
        if let Err(error) = roots.add(issuer) {
            problems.push(config.ca.error(format!("a certificate in {} cannot be used: {error}", config.ca.shown())));
            return None;
        }
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_crls(lists);
    let builder = match config.mode {
        ClientCertificates::Required => builder,
        ClientCertificates::Optional => builder.allow_unauthenticated(),
    };
    let built = builder.build().map_err(|error| problems.push(config.ca.error(error.to_string())));
    Some((built.ok()?, material))
}

/// What backends are told of a client that has shown this certificate, which was verified.
pub fn identity(certificate: &CertificateDer<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let mut told = Vec::with_capacity(2);
    if let Some(suite) = TLS13_AES_128_GCM_SHA256.tls13() {
        let hash = suite.common.hash_provider.hash(certificate);
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        told.extend(HeaderValue::try_from(hex).ok().map(|value| (SHA256, value)));
    }
    if let Ok((_, parsed)) = X509Certificate::from_der(certificate) {
        told.extend(HeaderValue::try_from(subject(parsed.subject())).ok().map(|value| (SUBJECT, value)));
    }
    told
}

/// RFC 4514: the last name first. What would be taken for the end of a value is escaped, and what may not stand in a header is
/// percent-encoded, `%` with it.
fn subject(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let names: Vec<_> = name.iter_rdn().collect();
    for (index, relative) in names.iter().rev().enumerate() {
        text.push_str(if index == 0 { "" } else { "," });
        for (index, attribute) in relative.iter().enumerate() {
            text.push_str(if index == 0 { "" } else { "+" });
            let oid = attribute.attr_type().to_id_string();
            text.push_str(match oid.as_str() {
                "2.5.4.3" => "CN",
                "2.5.4.6" => "C",
                "2.5.4.7" => "L",
                "2.5.4.8" => "ST",
                "2.5.4.10" => "O",
                "2.5.4.11" => "OU",
                "0.9.2342.19200300.100.1.1" => "UID",
                "0.9.2342.19200300.100.1.25" => "DC",
                other => other,
            });
            text.push('=');
            match attribute.as_str() {
                Ok(value) => escape(value, &mut text),
                // Of a type that holds no plain text: its bytes, as §2.4 has them.
                Err(_) => {
                    text.push('#');
                    attribute.as_slice().iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
                }
            }
        }
    }
    text
}

fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (index, byte) in value.bytes().enumerate() {
        let edge = (byte == b' ' && (index == 0 || index == last)) || (byte == b'#' && index == 0);
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=' => text.extend(['\\', char::from(byte)]),
            _ if edge => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header_names::tells_identity;

    #[test]
    fn values_cannot_pass_for_more_than_one() {
        for (value, expected) in [
            ("alice", "alice"),
            ("a,O=admins", "a\\,O\\=admins"),
            (" a b ", "\\ a b\\ "),
            ("#a#", "\\#a#"),
            ("100%\r\nx: y", "100%25%0D%0Ax: y"),
            ("é", "%C3%A9"),
        ] {
            let mut text = String::new();
            escape(value, &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn underscores_forge_nothing() {
        for (name, expected) in [
            ("x-client-cert-subject", true),
            ("x_client-cert_anything", true),
            ("x-client-cert", false),
            ("x-client-certs", false),
            ("x-request-id", false),
        ] {
            assert_eq!(tells_identity(&HeaderName::from_static(name)), expected, "{name}");
        }
    }
}
