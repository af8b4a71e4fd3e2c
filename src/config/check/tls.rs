//! `[listener.tls]`

use std::path::PathBuf;

use http::HeaderValue;

use super::Check;
use super::limits::limit;
use super::listener::count;
use super::value::{choice, is_file_path, optional_timeout, timeout};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::FilePath;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{
    CertificateConfig, ClientCertificates, ClientCertificatesConfig, FileKey, Misdirected, TlsConfig, TlsProfile,
    UnknownNames,
};

/// How a listener speaks TLS; `None` where it does not.
pub(super) fn tls(check: &Check<'_>, field: &Field<raw::Tls>, http2: bool) -> Option<TlsConfig> {
    let (place, raw) = field.given()?;
    let unknown_names = [("default", UnknownNames::Default), ("refuse", UnknownNames::Refuse)];
    let misdirected = [("refuse", Misdirected::Refuse), ("close", Misdirected::Close), ("allow", Misdirected::Allow)];
    let profiles = [("intermediate", TlsProfile::Intermediate), ("modern", TlsProfile::Modern)];
    Some(TlsConfig {
        certificates: certificates(check, place, &raw.certificates),
        unknown_names: choice(check, &raw.unknown_names, UnknownNames::Default, &unknown_names),
        misdirected: choice(check, &raw.misdirected, Misdirected::Refuse, &misdirected),
        profile: choice(check, &raw.profile, TlsProfile::Intermediate, &profiles),
        handshake_timeout: timeout(check, &raw.handshake_timeout, "10s"),
        max_handshakes: count(check, &raw.max_handshakes, 1000, 1..=1_000_000),
        handshakes_per_second_per_address: limit(check, &raw.handshakes_per_second_per_address).flatten(),
        hsts: optional_timeout(check, &raw.hsts)
            .and_then(|age| HeaderValue::try_from(format!("max-age={}", age.as_secs())).ok()),
        client_certificates: client_certificates(check, &raw.client_certificates),
        http2,
    })
}

fn client_certificates(check: &Check<'_>, field: &Field<raw::ClientCertificates>) -> Option<ClientCertificatesConfig> {
    let (place, raw) = field.given()?;
    let modes = [("required", ClientCertificates::Required), ("optional", ClientCertificates::Optional)];
    let mode = choice(check, &raw.mode, ClientCertificates::Required, &modes);
    let crl = raw.crl.members().filter_map(|(place, text)| file(check, place, text)).collect();
    Some(ClientCertificatesConfig { ca: needed(check, place, "ca", &raw.ca)?, mode, crl })
}

fn certificates(check: &Check<'_>, tls: Place, field: &Field<raw::Tables<raw::Certificate>>) -> Vec<CertificateConfig> {
    let expected = "[{ certificate = \"cert.pem\", key = \"key.pem\" }]";
    match field {
        Field::Absent => {
            check.report.add_missing(tls, "certificates", Problem::error("TLS needs a certificate").expected(expected));
        }
        Field::Given(place, given) if given.is_empty() => {
            check.add(*place, Problem::error("TLS needs a certificate").expected(expected));
        }
        Field::Given(..) | Field::Wrong(_) => {}
    }
    field
        .members()
        .filter_map(|(place, raw)| {
            let certificate = needed(check, place, "certificate", &raw.certificate);
            let key = needed(check, place, "key", &raw.key);
            let ocsp = raw.ocsp.given().and_then(|(place, text)| file(check, place, text));
            Some(CertificateConfig { certificate: certificate?, key: key?, ocsp })
        })
        .collect()
}

fn needed(check: &Check<'_>, table: Place, key: &str, field: &Field<FilePath>) -> Option<FileKey> {
    if matches!(field, Field::Absent) {
        let problem = Problem::error(format!("there is no {key}")).expected("the path of a file in PEM");
        check.report.add_missing(table, key, problem);
    }
    field.given().and_then(|(place, text)| file(check, place, text))
}

/// The path of a file, which is looked at by who reads it.
fn file(check: &Check<'_>, place: Place, text: &str) -> Option<FileKey> {
    if !is_file_path(text) {
        check.add(place, Problem::error(format!("{} is not a file's path", check.quote(place, text))));
        return None;
    }
    let (path, shown) = (PathBuf::from(text), check.show(place, text));
    Some(FileKey { path, shown, place: Box::new(check.report.locate(place, Problem::error(""))) })
}
