//! `[[listener]]`

use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Shown;
use super::value::{duration, entry_if, limit_entry, shown, texts};
use crate::config::{
    BodyLimit, CertificateConfig, ClientCertificates, ClientCertificatesConfig, Http2Config, LingeringConfig,
    ListenerConfig, LocationPart, Misdirected, PathsConfig, TlsConfig, TlsProfile, UnknownNames,
};

impl Serialize for Shown<&ListenerConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ListenerConfig {
            name,
            address,
            backlog,
            max_connections,
            max_connections_per_address,
            max_header_bytes,
            max_headers,
            max_body,
            lingering,
            header_timeout,
            idle_timeout,
            min_bytes_per_second,
            trusted_proxies,
            forwarded,
            forwarded_headers,
            via,
            paths,
            redirect_to_https,
            tls,
            http2,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", name.as_str())?;
        map.serialize_entry("address", address)?;
        map.serialize_entry("backlog", backlog)?;
        map.serialize_entry("max_connections", max_connections)?;
        limit_entry(&mut map, "max_connections_per_address", *max_connections_per_address)?;
        map.serialize_entry("max_header_bytes", max_header_bytes)?;
        map.serialize_entry("max_headers", max_headers)?;
        map.serialize_entry("max_body", &Shown(*max_body))?;
        map.serialize_entry("lingering", &Shown(lingering))?;
        map.serialize_entry("header_timeout", &Shown(*header_timeout))?;
        map.serialize_entry("idle_timeout", &Shown(*idle_timeout))?;
        map.serialize_entry("min_bytes_per_second", min_bytes_per_second)?;
        map.serialize_entry("trusted_proxies", &texts(trusted_proxies))?;
        map.serialize_entry("forwarded", forwarded)?;
        map.serialize_entry("forwarded_headers", &texts(forwarded_headers))?;
        map.serialize_entry("via", via)?;
        map.serialize_entry("paths", &Shown(paths))?;
        map.serialize_entry("redirect_to_https", &redirect_to_https.is_some())?;
        if let Some(redirect) = redirect_to_https {
            let port = redirect.location.iter().find_map(|part| match part {
                LocationPart::Text(text) => text.strip_prefix(':')?.parse::<u16>().ok(),
                _ => None,
            });
            map.serialize_entry("https_port", &port.unwrap_or(443))?;
        }
        entry_if(&mut map, "tls", tls.as_deref().map(Shown).as_ref())?;
        map.serialize_entry("http2", &Shown(http2))?;
        map.end()
    }
}

impl Serialize for Shown<BodyLimit> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            BodyLimit::Unlimited => serializer.serialize_str("unlimited"),
            BodyLimit::Bytes(bytes) => serializer.serialize_u64(bytes),
        }
    }
}

impl Serialize for Shown<&LingeringConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let LingeringConfig { bytes, time, idle } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("bytes", bytes)?;
        map.serialize_entry("time", &Shown(*time))?;
        map.serialize_entry("idle", &Shown(*idle))?;
        map.end()
    }
}

impl Serialize for Shown<&Option<Http2Config>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &self.0.is_some())?;
        if let Some(http2) = self.0 {
            let Http2Config {
                max_concurrent_streams,
                stream_window,
                connection_window,
                resets_per_second,
                control_frames_per_second,
            } = http2;
            map.serialize_entry("max_concurrent_streams", max_concurrent_streams)?;
            map.serialize_entry("stream_window", stream_window)?;
            map.serialize_entry("connection_window", connection_window)?;
            map.serialize_entry("resets_per_second", resets_per_second)?;
            map.serialize_entry("control_frames_per_second", control_frames_per_second)?;
        }
        map.end()
    }
}

impl Serialize for Shown<&PathsConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PathsConfig { dot_segments, encoded_slashes, duplicate_slashes, backslashes } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("dot_segments", dot_segments.as_str())?;
        map.serialize_entry("encoded_slashes", encoded_slashes.as_str())?;
        map.serialize_entry("duplicate_slashes", duplicate_slashes.as_str())?;
        map.serialize_entry("backslashes", backslashes.as_str())?;
        map.end()
    }
}

/// Of the files, where they are.
impl Serialize for Shown<&TlsConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TlsConfig {
            certificates,
            unknown_names,
            misdirected,
            profile,
            handshake_timeout,
            max_handshakes,
            handshakes_per_second_per_address,
            hsts,
            client_certificates,
            http2: _,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("certificates", &shown(certificates.iter()))?;
        let unknown_names = match unknown_names {
            UnknownNames::Default => "default",
            UnknownNames::Refuse => "refuse",
        };
        map.serialize_entry("unknown_names", unknown_names)?;
        let misdirected = match misdirected {
            Misdirected::Refuse => "refuse",
            Misdirected::Close => "close",
            Misdirected::Allow => "allow",
        };
        map.serialize_entry("misdirected", misdirected)?;
        let profile = match profile {
            TlsProfile::Intermediate => "intermediate",
            TlsProfile::Modern => "modern",
        };
        map.serialize_entry("profile", profile)?;
        map.serialize_entry("handshake_timeout", &Shown(*handshake_timeout))?;
        map.serialize_entry("max_handshakes", max_handshakes)?;
        limit_entry(&mut map, "handshakes_per_second_per_address", *handshakes_per_second_per_address)?;
        let age = hsts.as_ref().and_then(|hsts| hsts.to_str().ok()?.strip_prefix("max-age=")?.parse().ok());
        let age = age.map(|seconds| duration(Duration::from_secs(seconds)));
        map.serialize_entry("hsts", age.as_deref().unwrap_or("none"))?;
        entry_if(&mut map, "client_certificates", client_certificates.as_ref().map(Shown).as_ref())?;
        map.end()
    }
}

impl Serialize for Shown<&ClientCertificatesConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ClientCertificatesConfig { ca, mode, crl } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("ca", &ca.path)?;
        let mode = match mode {
            ClientCertificates::Required => "required",
            ClientCertificates::Optional => "optional",
        };
        map.serialize_entry("mode", mode)?;
        map.serialize_entry("crl", &crl.iter().map(|file| &file.path).collect::<Vec<_>>())?;
        map.end()
    }
}

impl Serialize for Shown<&CertificateConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let CertificateConfig { certificate, key, ocsp } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("certificate", &certificate.path)?;
        map.serialize_entry("key", &key.path)?;
        entry_if(&mut map, "ocsp", ocsp.as_ref().map(|file| &file.path).as_ref())?;
        map.end()
    }
}
