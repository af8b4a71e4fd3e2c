//! What differs in a listener.

use super::change::{Change, Changes, limit};
use crate::config::{ListenerConfig, PathRule, PathsConfig, TlsConfig};

type RuleOf = fn(&PathsConfig) -> PathRule;

/// The rules for paths, by their keys.
const PATHS: [(&str, RuleOf); 4] = [
    ("paths.dot_segments", |paths| paths.dot_segments),
    ("paths.encoded_slashes", |paths| paths.encoded_slashes),
    ("paths.duplicate_slashes", |paths| paths.duplicate_slashes),
    ("paths.backslashes", |paths| paths.backslashes),
];

pub(super) fn listener_changes(old: &ListenerConfig, new: &ListenerConfig) -> Vec<Change> {
    let mut changes = Changes::of("listener[]");
    changes.value("name", &old.name, &new.name);
    changes.value_of("backlog", "backlog (of the next start)", &old.backlog, &new.backlog);
    changes.value("max_connections", &old.max_connections, &new.max_connections);
    let (before, after) = (limit(old.max_connections_per_address), limit(new.max_connections_per_address));
    changes.value("max_connections_per_address", &before, &after);
    changes.value("max_header_bytes", &old.max_header_bytes, &new.max_header_bytes);
    changes.value("max_headers", &old.max_headers, &new.max_headers);
    changes.value("max_body", &old.max_body, &new.max_body);
    changes.value("lingering.bytes", &old.lingering.bytes, &new.lingering.bytes);
    changes.time("lingering.time", old.lingering.time, new.lingering.time);
    changes.time("lingering.idle", old.lingering.idle, new.lingering.idle);
    changes.time("header_timeout", old.header_timeout, new.header_timeout);
    changes.time("idle_timeout", old.idle_timeout, new.idle_timeout);
    changes.value("min_bytes_per_second", &old.min_bytes_per_second, &new.min_bytes_per_second);
    changes.members("trusted_proxies", &old.trusted_proxies, &new.trusted_proxies);
    changes.value("forwarded", &old.forwarded, &new.forwarded);
    changes.members("forwarded_headers", &old.forwarded_headers, &new.forwarded_headers);
    changes.value("via", &old.via, &new.via);
    changes.switch("http2", old.http2.is_some(), new.http2.is_some());
    if let (Some(was), Some(is)) = (&old.http2, &new.http2) {
        changes.value("http2.max_concurrent_streams", &was.max_concurrent_streams, &is.max_concurrent_streams);
        changes.value("http2.stream_window", &was.stream_window, &is.stream_window);
        changes.value("http2.connection_window", &was.connection_window, &is.connection_window);
        changes.value("http2.resets_per_second", &was.resets_per_second, &is.resets_per_second);
        let (before, after) = (&was.control_frames_per_second, &is.control_frames_per_second);
        changes.value("http2.control_frames_per_second", before, after);
    }
    for (key, of) in PATHS {
        changes.value(key, of(&old.paths).as_str(), of(&new.paths).as_str());
    }
    changes.switched("redirect_to_https", &old.redirect_to_https, &new.redirect_to_https);
    changes.switch("tls", old.tls.is_some(), new.tls.is_some());
    if let (Some(was), Some(is)) = (&old.tls, &new.tls) {
        tls_changes(&mut changes, was, is);
    }
    changes.found()
}

fn tls_changes(changes: &mut Changes, old: &TlsConfig, new: &TlsConfig) {
    let files = |tls: &TlsConfig| {
        tls.certificates.iter().map(|it| it.certificate.path.display().to_string()).collect::<Vec<_>>()
    };
    changes.members_of("tls.certificates[].certificate", "tls.certificates", &files(old), &files(new));
    if files(old) == files(new) {
        changes.other("tls.certificates", &old.certificates, &new.certificates);
    }
    changes.debug("tls.unknown_names", &old.unknown_names, &new.unknown_names);
    changes.debug("tls.misdirected", &old.misdirected, &new.misdirected);
    changes.debug("tls.profile", &old.profile, &new.profile);
    changes.time("tls.handshake_timeout", old.handshake_timeout, new.handshake_timeout);
    changes.value("tls.max_handshakes", &old.max_handshakes, &new.max_handshakes);
    let of = |tls: &TlsConfig| limit(tls.handshakes_per_second_per_address);
    changes.value("tls.handshakes_per_second_per_address", &of(old), &of(new));
    changes.switched("tls.hsts", &old.hsts, &new.hsts);
    changes.switched("tls.client_certificates", &old.client_certificates, &new.client_certificates);
}
