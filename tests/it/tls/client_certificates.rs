//! Certificates of clients.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::harness::{Client, Scratch, TestBackend, eventually};

use super::{Authority, BOTH, Pair, connect, proxy, text};

/// The same client, with a certificate.
pub(super) fn with(authority: &Authority, pair: &Pair) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(BOTH).unwrap().with_root_certificates(roots);
    Arc::new(builder.with_client_auth_cert(vec![pair.der()], key).unwrap())
}

/// Whether a request is answered: with TLS 1.3, a client learns only behind its handshake that it is not let in.
async fn is_served(address: SocketAddr, config: &Arc<ClientConfig>) -> bool {
    let Ok(mut secure) = connect(address, config, "localhost").await else { return false };
    secure.client.try_send("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    secure.client.read_to_end().await.starts_with(b"HTTP/1.1 200 ")
}

#[tokio::test]
async fn clients_show_certificates_and_forge_nothing() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let (scratch, backend) = (Scratch::new(), TestBackend::ok("a"));
    let listed = [authority.pair(&["localhost"], false).write(&scratch, "a")];
    let ca = scratch.write("ca.pem", &authority.pem);
    let keys = |mode: &str| format!("client_certificates = {{ ca = \"{}\", mode = \"{mode}\" }}", ca.display());
    let mut alice = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
    alice.distinguished_name = rcgen::DistinguishedName::new();
    alice.distinguished_name.push(DnType::OrganizationName, "Example");
    alice.distinguished_name.push(DnType::CommonName, "alice, the first");
    let alice = authority.signed(alice, false);
    let stranger = strangers.pair(&["alice.example"], false);
    let (nobody, known) = (Arc::new(authority.client(BOTH)), with(&authority, &alice));

    let proxy = proxy(&[&backend], &listed, "").await;
    let address = proxy.address();
    // A session from before certificates were asked for.
    assert!(is_served(address, &nobody).await);
    proxy.apply(text(&[&backend], &listed, &keys("required"))).await.unwrap();
    assert!(!is_served(address, &nobody).await, "no ticket gets round it");
    assert!(!is_served(address, &with(&authority, &stranger)).await);
    assert!(is_served(address, &known).await);
    let again = connect(address, &known, "localhost").await.unwrap();
    assert!(!again.resumed, "each connection shows its certificate");
    drop(again);
    eventually(|| proxy.counted(|it| &it.handshake_failures[4]) == 2).await;

    let forged = "GET / HTTP/1.1\r\nhost: localhost\r\nx-client-cert-subject: CN=root\r\nX_Client_Cert_Sha256: 00\r\n\
                  x-client-cert-verified: yes\r\nconnection: x-client-cert-subject\r\n\r\n";
    let mut secure = connect(address, &known, "localhost").await.unwrap();
    secure.client.send(forged).await;
    assert_eq!(secure.client.response().await.status(), 200);
    let head = backend.last_head();
    assert_eq!(head.get("x-client-cert-subject"), Some("CN=alice\\, the first,O=Example"));
    assert_eq!(head.get("x-client-cert-sha256").map(str::len), Some(64));
    let told =
        head.fields.iter().filter(|(name, _)| name.to_lowercase().replace('_', "-").starts_with("x-client-cert"));
    assert_eq!(told.count(), 2, "{head:?}");

    let plain = "[[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n[[route]]";
    let optional = text(&[&backend], &listed, &keys("optional")).replace("[[route]]", plain);
    proxy.apply(optional).await.unwrap();
    let mut unknown = connect(address, &nobody, "localhost").await.unwrap();
    unknown.client.send(forged).await;
    let mut in_the_clear = Client::connect(proxy.addresses()[1]).await;
    in_the_clear.send(forged).await;
    for client in [&mut unknown.client, &mut in_the_clear] {
        assert_eq!(client.response().await.status(), 200);
        let fields = backend.last_head().fields;
        assert!(!fields.iter().any(|(name, _)| name.to_lowercase().starts_with("x-client")), "{fields:?}");
    }
    assert!(!is_served(address, &with(&authority, &stranger)).await);
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let listed = [authority.pair(&["localhost"], false).write(&scratch, "a")];
    let ca = scratch.write("ca.pem", &authority.pem);
    let serial = |number: u64| {
        let mut params = CertificateParams::new(vec!["c.example".to_owned()]).unwrap();
        params.serial_number = Some(number.into());
        authority.signed(params, false)
    };
    let (good, bad) = (serial(7), serial(8));
    let list = |revoked: &[u64]| {
        let revoked = revoked.iter().map(|&number| rcgen::RevokedCertParams {
            serial_number: number.into(),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&authority.issuer).unwrap().pem().unwrap()
    };
    let crl = scratch.write("crl.pem", list(&[]));
    let keys = format!("client_certificates = {{ ca = \"{}\", crl = [\"{}\"] }}", ca.display(), crl.display());
    let proxy = proxy(&[&backend], &listed, &keys).await;
    let (good, bad) = (with(&authority, &good), with(&authority, &bad));
    assert!(is_served(proxy.address(), &good).await && is_served(proxy.address(), &bad).await);
    let tls = || proxy.handle().listeners()[0].tls.load_full().unwrap();
    let before = tls();
    scratch.write("crl.pem", list(&[8]));
    eventually(|| !Arc::ptr_eq(&before, &tls())).await;
    assert!(is_served(proxy.address(), &good).await && !is_served(proxy.address(), &bad).await);
}
