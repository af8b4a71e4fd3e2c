//! Handshakes: versions, server names, kinds of keys, sessions, and those that fail.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion, SignatureScheme};

use crate::harness::{Scratch, TestBackend, TestProxy, eventually, soon};

use super::{Authority, BOTH, Pair, connect, proxy, text};

#[tokio::test]
async fn speaks_both_versions_and_tells_backends_https() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let pair = authority.pair(&["localhost"], false);
    let proxy = proxy(&[&backend], &[pair.write(&scratch, "a")], "").await;
    for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let mut config = authority.client(&[version]);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut secure = connect(proxy.address(), &Arc::new(config), "localhost").await.unwrap();
        assert_eq!((secure.version, secure.resumed), (expected, false));
        assert_eq!(secure.alpn.as_deref(), Some(&b"http/1.1"[..]));
        for _ in 0..3 {
            assert_eq!(secure.client.get("/").await.status(), 200);
            assert_eq!(backend.last_head().get("x-forwarded-proto"), Some("https"));
        }
    }
    eventually(|| proxy.counted(|it| &it.handshakes[0]) == 1 && proxy.counted(|it| &it.handshakes[2]) == 1).await;
    let plain = TestProxy::over(&[&backend]).await;
    plain.get("/").await;
    assert_eq!(backend.last_head().get("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn modern_takes_no_older_version() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let pair = authority.pair(&["localhost"], false);
    let proxy = proxy(&[&backend], &[pair.write(&scratch, "a")], "profile = \"modern\"").await;
    assert!(connect(proxy.address(), &Arc::new(authority.client(&[&TLS12])), "localhost").await.is_err());
    assert!(connect(proxy.address(), &Arc::new(authority.client(&[&TLS13])), "localhost").await.is_ok());
    eventually(|| proxy.counted(|it| &it.handshake_failures[2]) == 1).await;
}

#[tokio::test]
async fn the_name_chooses_the_certificate() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let first = authority.pair(&["first.example", "other.example"], false);
    let wild = authority.pair(&["*.example.com"], false);
    let exact = authority.pair(&["a.example.com"], false);
    let listed = [first.write(&scratch, "first"), wild.write(&scratch, "wild"), exact.write(&scratch, "exact")];
    let proxy = proxy(&[&backend], &listed, "unknown_names = \"refuse\"").await;
    let config = Arc::new(authority.client(BOTH));
    for (name, expected) in [
        ("first.example", Some(&first)),
        ("other.example", Some(&first)),
        ("A.example.com", Some(&exact)),
        ("b.example.com", Some(&wild)),
        ("b.c.example.com", None),
        ("nobody.example", None),
    ] {
        let shown = connect(proxy.address(), &config, name).await.ok().map(|secure| secure.shown);
        assert_eq!(shown, expected.map(Pair::der), "{name}");
    }
    eventually(|| proxy.counted(|it| &it.handshake_failures[1]) == 2).await;
}

/// A client that takes any certificate, as one has to that looks at what it is shown.
#[derive(Debug)]
struct Trusting(Vec<SignatureScheme>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.verify_tls12_signature(message, certificate, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[tokio::test]
async fn signatures_choose_between_two_kinds_of_key() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (rsa, ec) = (authority.pair(&["localhost"], true), authority.pair(&["localhost"], false));
    let proxy = proxy(&[&backend], &[rsa.write(&scratch, "rsa"), ec.write(&scratch, "ec")], "").await;
    for (schemes, expected) in [
        (vec![SignatureScheme::RSA_PSS_SHA256], &rsa),
        (vec![SignatureScheme::ECDSA_NISTP256_SHA256], &ec),
        (vec![SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256], &ec),
    ] {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(BOTH).unwrap().dangerous();
        let config = builder.with_custom_certificate_verifier(Arc::new(Trusting(schemes))).with_no_client_auth();
        let config = Arc::new(config);
        for name in ["localhost", "unknown.example"] {
            assert!(connect(proxy.address(), &config, name).await.unwrap().shown == expected.der());
        }
    }
}

#[tokio::test]
async fn a_client_without_a_common_cipher_is_told_so() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    for version in [&TLS12, &TLS13] {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(&[version]).unwrap().dangerous();
        let rsa = Trusting(vec![SignatureScheme::RSA_PSS_SHA256]);
        let config = Arc::new(builder.with_custom_certificate_verifier(Arc::new(rsa)).with_no_client_auth());
        let error = connect(proxy.address(), &config, "localhost").await.err().unwrap();
        assert!(format!("{error:?}").contains("HandshakeFailure"), "{error:?}");
    }
}

#[tokio::test]
async fn sessions_are_resumed_at_any_worker_and_over_reloads() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let listed = [authority.pair(&["localhost"], false).write(&scratch, "a")];
    let text = |keys: &str| text(&[&backend], &listed, keys).replace("workers = 1", "workers = 3");
    let proxy = TestProxy::with_config(text("")).await;
    for version in [&TLS12, &TLS13] {
        let mut config = authority.client(&[version]);
        config.resumption = Resumption::in_memory_sessions(64);
        let config = Arc::new(config);
        for round in 0..8 {
            if round == 4 {
                proxy.apply(text("handshake_timeout = \"9s\"")).await.unwrap();
                proxy.apply(text("")).await.unwrap();
            }
            let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
            assert_eq!(secure.resumed, round > 0, "{round}");
            // The tickets of TLS 1.3 come behind the handshake.
            assert_eq!(secure.client.get("/").await.status(), 200);
        }
    }
}

#[tokio::test]
async fn a_handshake_takes_its_time_at_most() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let listed = [authority.pair(&["localhost"], false).write(&scratch, "a")];
    let proxy = proxy(&[&backend], &listed, "handshake_timeout = \"300ms\"\nmax_handshakes = 1").await;
    let silent = proxy.client().await;
    let mut begun = proxy.client().await;
    begun.send([22, 3, 1]).await;
    // It waits for its turn, which comes in time where the one before has failed.
    let config = Arc::new(authority.client(BOTH));
    eventually(|| proxy.connections() == [2]).await;
    let waited = connect(proxy.address(), &config, "localhost").await;
    drop(waited);
    begun.closed().await;
    drop(silent);
    eventually(|| proxy.counted(|it| &it.handshake_failures[0]) >= 2).await;
    let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
    assert_eq!(secure.client.get("/").await.status(), 200);
}

#[tokio::test]
async fn the_alert_of_a_failed_handshake_is_not_overtaken_by_a_reset() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let listed = [authority.pair(&["a.example"], false).write(&scratch, "a")];
    let proxy = proxy(&[&backend], &listed, "unknown_names = \"refuse\"").await;
    let mut hello = Vec::new();
    let config = Arc::new(authority.client(&[&TLS13]));
    rustls::ClientConnection::new(config, "b.example".try_into().unwrap()).unwrap().write_tls(&mut hello).unwrap();
    for rest in [0, 1, 200_000] {
        let mut client = proxy.client().await;
        // What comes behind it nobody is going to read.
        client.send([&hello[..], &vec![0; rest]].concat()).await;
        let mut said = Vec::new();
        soon(client.stream.rest(&mut said)).await.expect("an end without a reset");
        // RFC 8446 §6: a record of type alert, which is fatal.
        assert_eq!((said.len(), said[0], said[5]), (7, 21, 2), "{said:?} behind {rest}");
    }
    assert_eq!(proxy.counted(|it| &it.handshake_failures[1]), 3);
}
