//! TLS to clients: who is shown which certificate, what is spoken behind it, and what goes wrong.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use isobar::telemetry::metrics::AddressLimit;

use crate::harness::{Client, Keys, Log, Scratch, TestBackend, TestProxy, body_of, eventually, soon};

/// Who signs the certificates of a test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the test's own");
        let root = params.self_signed(&key).unwrap();
        Self { root: root.der().clone(), pem: root.pem(), issuer: Issuer::new(params, key) }
    }

    fn pair(&self, names: &[&str], rsa: bool) -> Pair {
        self.signed(CertificateParams::new(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).unwrap(), rsa)
    }

    fn signed(&self, params: CertificateParams, rsa: bool) -> Pair {
        let kind = if rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 };
        let key = KeyPair::generate_for(kind).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A client that trusts it.
    fn client(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
        self.client_by(aws_lc_rs::default_provider(), versions)
    }

    fn client_by(
        &self,
        provider: rustls::crypto::CryptoProvider,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap();
        builder.with_root_certificates(roots).with_no_client_auth()
    }
}

impl Pair {
    /// Writes its two files, and tells how `certificates` lists them.
    fn write(&self, scratch: &Scratch, name: &str) -> String {
        let certificate = scratch.write(format!("{name}.pem"), &self.certificate);
        let key = scratch.write_secret(format!("{name}.key"), &self.key);
        listed(&certificate, &key)
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

fn listed(certificate: &Path, key: &Path) -> String {
    format!("{{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display())
}

/// A client's side of a handshake.
struct Secure {
    /// Speaks in the clear to a relay, which speaks TLS.
    client: Client,
    shown: CertificateDer<'static>,
    version: ProtocolVersion,
    resumed: bool,
    alpn: Option<Vec<u8>>,
    /// Ends with whether close_notify came.
    relay: tokio::task::JoinHandle<bool>,
}

async fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Secure> {
    let tcp = soon(TcpStream::connect(address)).await?;
    tcp.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::clone(config));
    let name = name.to_owned().try_into().map_err(std::io::Error::other)?;
    let mut tls = soon(connector.connect(name, tcp)).await?;
    let session = tls.get_ref().1;
    let shown = session.peer_certificates().unwrap()[0].clone().into_owned();
    let version = session.protocol_version().unwrap();
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = Client::connect(listener.local_addr()?).await;
    let (mut near, _) = listener.accept().await?;
    near.set_nodelay(true)?;
    // An end without close_notify is an error of the stream.
    let relay = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut tls).await.is_ok() });
    Ok(Secure { client, shown, version, resumed, alpn, relay })
}

/// A proxy with a listener of these certificates and further keys of `[listener.tls]`.
async fn proxy(pool: &[&TestBackend], certificates: &[String], keys: &str) -> TestProxy {
    TestProxy::with_config(text(pool, certificates, keys)).await
}

fn text(pool: &[&TestBackend], certificates: &[String], keys: &str) -> String {
    let listener = format!("[listener.tls]\ncertificates = [{}]\n{keys}\n", certificates.join(", "));
    Keys { listener: &listener, ..Keys::default() }.text(pool)
}

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&TLS13, &TLS12];

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
async fn who_has_shaken_hands_is_served_once_more_while_its_listener_goes() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let pair = authority.pair(&["localhost"], false);
    for version in [&TLS12, &TLS13] {
        let proxy = proxy(&[&backend], &[pair.write(&scratch, "a")], "").await;
        let address = proxy.address();
        let config = Arc::new(authority.client(&[version]));
        let mut asks = connect(address, &config, "localhost").await.unwrap();
        let silent = connect(address, &config, "localhost").await.unwrap();
        let elsewhere = Keys::default().text(&[&backend]).replace("\"127.0.0.1:0\"", "\"127.0.0.2:0\"");
        proxy.apply(elsewhere).await.unwrap();
        // The worker has been told, and its connections with it.
        eventually(|| std::net::TcpStream::connect(address).is_err()).await;
        let response = asks.client.get("/").await;
        assert_eq!((response.status(), response.header("connection")), (200, Some("close")));
        // Who asks nothing is waited for a second, and not for idle_timeout. Both are told that it is the end.
        for mut secure in [asks, silent] {
            secure.client.read_to_end().await;
            drop(secure.client);
            assert!(soon(secure.relay).await.unwrap(), "close_notify");
        }
    }
}

/// A client whose hello is on its way has connected, as far as it knows.
#[tokio::test]
async fn a_client_that_has_just_connected_is_heard_while_its_listener_goes() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let address = proxy.address();
    let (mut speaks, mut silent) = (proxy.client().await, proxy.client().await);
    eventually(|| proxy.connections().iter().sum::<usize>() == 2).await;
    let elsewhere = Keys::default().text(&[&backend]).replace("\"127.0.0.1:0\"", "\"127.0.0.2:0\"");
    proxy.apply(elsewhere).await.unwrap();
    eventually(|| std::net::TcpStream::connect(address).is_err()).await;
    // No hello, but it shows that the first bytes are read.
    assert_eq!(speaks.get("/").await.status(), 400);
    silent.closed().await;
    eventually(|| proxy.counted(|it| &it.handshake_failures[0]) == 0 && proxy.connections() == [0]).await;
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
async fn plain_http_is_told_so() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let answer = proxy.raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with("this port speaks TLS: use https\n"), "{answer}");
    assert_eq!(proxy.raw([0; 100]).await.matches("HTTP").count(), 0);
    eventually(|| proxy.counted(|it| &it.handshake_failures[6]) == 1).await;
    eventually(|| proxy.counted(|it| &it.handshake_failures[5]) == 1).await;
    assert_eq!(backend.requests(), 0);
}

#[tokio::test]
async fn what_is_refused_has_its_line_in_the_access_log() {
    let (authority, scratch, backend, log) = (Authority::new(), Scratch::new(), TestBackend::ok("a"), Log::new());
    let (listed, config) = (two(&authority, &scratch), Arc::new(authority.client(BOTH)));
    let keys = format!("[[listener]]\nname = \"other\"\naddress = \"127.0.0.1:0\"\n{}", log.table("json"));
    let text = text(&[&backend], &listed, &keys).replacen("[[listener]]", "[[listener]]\nmax_connections = 1", 1);
    let proxy = TestProxy::with_config(text).await;
    let mut lines = Vec::new();
    let mut next = async || -> serde_json::Value {
        lines = log.lines(lines.len() + 1).await;
        serde_json::from_str(lines.last().unwrap()).unwrap()
    };
    proxy.raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let line = next().await;
    assert_eq!(
        (&line["status"], &line["reason"], &line["method"]),
        (&400.into(), &"plain_http".into(), &serde_json::Value::Null)
    );
    assert_eq!((&line["detail"], &line["client_ip"]), (&"this port speaks TLS: use https".into(), &"127.0.0.1".into()));
    // What is no HTTP either is a handshake that has failed.
    proxy.raw([0; 100]).await;
    eventually(|| proxy.connections() == [0]).await;
    let mut a = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut a, "b.example").await.0, 421);
    let line = next().await;
    assert_eq!(
        (&line["status"], &line["reason"], &line["ended_by"]),
        (&421.into(), &"misdirected".into(), &"client".into())
    );
    assert_eq!((&line["host"], &line["detail"]), (&"b.example".into(), &serde_json::Value::Null));
    // A bad head within TLS.
    let mut other = Client::connect(proxy.addresses()[1]).await;
    assert!(connect(proxy.address(), &config, "a.example").await.is_err(), "it is full");
    let line = next().await;
    assert_eq!(
        (&line["status"], &line["reason"], &line["bytes_out"]),
        (&503.into(), &"connection_limit".into(), &0.into())
    );
    a.send("GET /x HTTP/1.1\r\n\r\n").await;
    assert_eq!(a.response().await.status(), 400);
    let line = next().await;
    assert_eq!(
        (&line["reason"], &line["target"], &line["protocol"]),
        (&"bad_request".into(), &"/x".into(), &"HTTP/1.1".into())
    );
    other.send("GET /y HTTP/1.1\r\n\r\n").await;
    other.response().await;
    assert_eq!(next().await["listener"], "other");
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
async fn large_bodies_go_both_ways() {
    let body = body_of(6_000_000);
    let sent = body.clone();
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(request) = peer.request().await {
            assert!(request.body == sent);
            peer.respond("200 OK", &request.body).await;
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let config = Arc::new(authority.client(BOTH));
    let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
    for _ in 0..3 {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        secure.client.send([head.as_bytes(), &body].concat()).await;
        assert!(secure.client.response().await.body == body);
    }
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n", body.len());
    secure.client.send([head.as_bytes(), chunk.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
    assert!(secure.client.response().await.body == body);
}

#[tokio::test]
async fn the_client_is_asked_for_its_body() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(request) = peer.request().await {
            peer.respond("200 OK", &request.body).await;
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let mut secure = connect(proxy.address(), &Arc::new(authority.client(BOTH)), "localhost").await.unwrap();
    secure.client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    let head = soon(secure.client.stream.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 100);
    secure.client.send("hello").await;
    assert_eq!(secure.client.response().await.body, b"hello");
}

#[tokio::test]
async fn tunnels_go_through() {
    let backend = TestBackend::upgrading();
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let mut secure = connect(proxy.address(), &Arc::new(authority.client(BOTH)), "localhost").await.unwrap();
    let ask = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    secure.client.send(ask).await;
    assert_eq!(soon(secure.client.stream.head()).await.unwrap().unwrap().status(), 101);
    for text in ["a".to_owned(), "hello".to_owned(), "x".repeat(300_000)] {
        secure.client.send(&text).await;
        assert!(secure.client.exact(text.len()).await == text.as_bytes());
    }
    drop(secure);
    eventually(|| proxy.in_flight() == 0 && proxy.connections() == [0]).await;
}

#[tokio::test]
async fn the_end_is_told_where_it_is_one() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            match head.target() {
                "/cut" => {
                    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nonly this").await;
                    return;
                }
                _ => peer.respond("200 OK", "whole").await,
            }
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let proxy = proxy(&[&backend], &[authority.pair(&["localhost"], false).write(&scratch, "a")], "").await;
    let config = Arc::new(authority.client(BOTH));
    for (target, told) in [("/", true), ("/cut", false)] {
        let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
        secure.client.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        secure.client.read_to_end().await;
        drop(secure.client);
        assert_eq!(soon(secure.relay).await.unwrap(), told, "{target}");
    }
}

#[tokio::test]
async fn a_reload_with_bad_certificates_changes_nothing() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (good, other) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    let proxy = proxy(&[&backend], &[good.write(&scratch, "a")], "").await;
    let mixed = Pair { certificate: good.certificate.clone(), key: other.key.clone() };
    for (listed, expected) in [
        (mixed.write(&scratch, "mixed"), "listener[0].tls.certificates[0].key: the key is not that of the certificate"),
        (listed(Path::new("/nowhere.pem"), &scratch.path("a.key")), "certificate: could not read /nowhere.pem"),
        (listed(&scratch.path("a.key"), &scratch.path("a.key")), "certificate: there is no certificate in"),
        (listed(&scratch.path("a.pem"), &scratch.path("a.pem")), "key: there is no private key in"),
    ] {
        let error = proxy.apply(text(&[&backend], &[listed], "")).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let config = Arc::new(authority.client(BOTH));
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == good.der());
    // And TLS may come and go: connections that are open keep what they have.
    let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
    let address = proxy.address();
    proxy.apply(Keys::default().text(&[&backend])).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(secure.client.get("/").await.status(), 200);
    proxy.apply(text(&[&backend], &[other.write(&scratch, "b")], "")).await.unwrap();
    assert_eq!(proxy.address(), address);
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == other.der());
}

#[tokio::test]
async fn new_certificates_are_taken_under_load() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (old, new) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    for (name, pair) in [("old", &old), ("new", &new)] {
        std::fs::create_dir(scratch.path(name)).unwrap();
        pair.write(&scratch, &format!("{name}/a"));
    }
    // As Kubernetes does it: the folder is a link, which is swapped.
    std::os::unix::fs::symlink(scratch.path("old"), scratch.path("live")).unwrap();
    let listed = listed(&scratch.path("live/a.pem"), &scratch.path("live/a.key"));
    let proxy = proxy(&[&backend], &[listed], "").await;
    let (address, mut config) = (proxy.address(), authority.client(BOTH));
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let mut kept = connect(address, &config, "localhost").await.unwrap();
    assert!(kept.shown == old.der());

    std::os::unix::fs::symlink(scratch.path("new"), scratch.path("next")).unwrap();
    std::fs::rename(scratch.path("next"), scratch.path("live")).unwrap();
    let mut requests = 0;
    loop {
        let mut secure = connect(address, &config, "localhost").await.unwrap();
        assert_eq!(secure.client.get("/").await.status(), 200);
        assert_eq!(kept.client.get("/").await.status(), 200);
        requests += 1;
        if secure.shown == new.der() {
            break;
        }
        assert!(secure.shown == old.der() && requests < 10_000);
    }
    assert_eq!(proxy.handle().status().generation, 1, "without a reload");
    let failed = |index: usize| proxy.counted(|it| &it.handshake_failures[index]);
    assert_eq!((0..8).map(failed).sum::<u64>(), 0);
}

#[tokio::test]
async fn bad_new_certificates_keep_those_before() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (old, new) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    let proxy = proxy(&[&backend], &[old.write(&scratch, "a")], "").await;
    let mut config = authority.client(BOTH);
    // Whoever resumes a session is shown no certificate.
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let refused = || proxy.handle().listeners()[0].certificates_refused.load(std::sync::atomic::Ordering::Relaxed);
    scratch.write("a.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    eventually(|| refused() == 1).await;
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == old.der());
    std::fs::remove_file(scratch.path("a.pem")).unwrap();
    eventually(|| refused() == 2).await;
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == old.der());
    new.write(&scratch, "a");
    let expiry = || proxy.handle().listeners()[0].tls.load_full().unwrap();
    let before = expiry();
    eventually(|| !Arc::ptr_eq(&before, &expiry())).await;
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == new.der());
}

#[test]
fn a_check_reads_the_certificates() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let mut expired = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut early = CertificateParams::new(vec![]).unwrap();
    early.not_before = rcgen::date_time_ymd(3000, 1, 1);
    let (good, other) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    let chain = Pair { certificate: format!("{}{}", good.certificate, other.certificate), key: good.key.clone() };
    let check = |certificates: String| {
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n[listener.tls]";
        let text = format!("{listener}\ncertificates = [{certificates}]\n[[route]]\nrespond = {{ body = \"a\" }}\n");
        let file = scratch.write("lb.toml", text);
        let mut isobar = std::process::Command::new(env!("CARGO_BIN_EXE_isobar"));
        let output = isobar.arg("check").arg("--config").arg(file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(good.write(&scratch, "good")), (true, String::new()));
    for (listed, well, expected) in [
        (
            authority.signed(expired, false).write(&scratch, "expired"),
            true,
            &["certificate: the certificate expired "][..],
        ),
        (
            authority.signed(early, false).write(&scratch, "early"),
            true,
            &["the certificate is not valid yet", "is for no name: clients refuse it"],
        ),
        (chain.write(&scratch, "chain"), true, &["was not issued by the one behind it"]),
        (
            Pair { key: other.key, ..good }.write(&scratch, "mixed"),
            false,
            &["key: the key is not that of the certificate"],
        ),
    ] {
        let (success, said) = check(listed);
        assert_eq!(success, well, "{said}");
        for expected in expected {
            assert!(said.contains(expected) && said.contains("lb.toml:4:"), "{said}");
        }
    }
}

#[tokio::test]
async fn plain_listeners_redirect_and_browsers_are_told_to_stay() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            let own = if head.target() == "/own" { "\r\nstrict-transport-security: max-age=1" } else { "" };
            peer.respond(&format!("200 OK{own}"), "a").await;
        }
    });
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let listed = authority.pair(&["localhost"], false).write(&scratch, "a");
    let listener = |keys: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{keys}\n");
    let listeners = [
        listener("name = \"a\"\nredirect_to_https = true"),
        listener("name = \"b\"\nredirect_to_https = true\nhttps_port = 8443"),
        listener(&format!("name = \"c\"\ntls = {{ certificates = [{listed}], hsts = \"1d\" }}")),
    ];
    let rest = format!(
        "[[route]]\npath_prefix = \"/r\"\nredirect = {{ to = \"{{scheme}}://{{host}}/new\" }}\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nbackends = [\"{}\"]\n",
        backend.address()
    );
    let proxy = TestProxy::with_config(format!("workers = 1\n{}{rest}", listeners.concat())).await;
    let addresses = proxy.addresses();
    for (address, host, expected) in [
        (addresses[0], "example.com", "https://example.com/a%22b?c=d"),
        (addresses[0], "example.com:8080", "https://example.com/a%22b?c=d"),
        (addresses[1], "[::1]:8080", "https://[::1]:8443/a%22b?c=d"),
    ] {
        let mut client = Client::connect(address).await;
        client.send(format!("GET /a\"b?c=d HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.head.get("location")), (308, Some(expected)));
        assert_eq!(response.head.get("strict-transport-security"), None);
    }
    assert_eq!(backend.requests(), 0);
    let mut secure = connect(addresses[2], &Arc::new(authority.client(BOTH)), "localhost").await.unwrap();
    for (target, age) in [("/", "max-age=86400"), ("/own", "max-age=1"), ("/r", "max-age=86400")] {
        let response = secure.client.get(target).await;
        assert_eq!(response.head.get("strict-transport-security"), Some(age), "{target}");
        assert!(target != "/r" || response.head.get("location") == Some("https://test/new"));
    }
}

/// The same client, with a certificate.
fn with(authority: &Authority, pair: &Pair) -> Arc<ClientConfig> {
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

#[tokio::test]
async fn an_address_over_its_handshakes_is_closed_before_tls() {
    let (scratch, authority) = (Scratch::new(), Authority::new());
    let backend = TestBackend::ok("a");
    let certificate = authority.pair(&["a.example"], false).write(&scratch, "a");
    let proxy = proxy(&[&backend], &[certificate], "handshakes_per_second_per_address = 3").await;
    let config = Arc::new(authority.client(&[&TLS13]));
    // More at a time than the limit lets in, however slow the machine: who is let in says nothing, and stays.
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(proxy.client().await);
    }
    eventually(|| proxy.counted(|it| &it.limited[AddressLimit::Handshakes as usize]) >= 1).await;
    let limited = || proxy.counted(|it| &it.limited[AddressLimit::Handshakes as usize]);
    eventually(|| limited() + proxy.counted(|it| &it.accepted) == 200).await;
    let mut closed = 0;
    for client in &mut clients {
        let mut byte = [0];
        if let Ok(Ok(0)) = tokio::time::timeout(std::time::Duration::ZERO, client.stream.tcp.peek(&mut byte)).await {
            closed += 1;
        }
    }
    assert_eq!(closed, limited());
    assert_eq!(proxy.counted(|it| &it.handshake_failures[0]), 0, "no handshake was begun for them");
    // A while later the address has one again.
    let mut secure = None;
    let start = std::time::Instant::now();
    while secure.is_none() && start.elapsed() < crate::harness::PATIENCE {
        secure = connect(proxy.address(), &config, "a.example").await.ok();
    }
    assert_eq!(secure.expect("a handshake").client.get("/").await.status(), 200);
}

/// A request for that host over a connection there is: its status and `Connection`.
async fn ask(client: &mut Client, host: &str) -> (u16, Option<String>) {
    client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    let response = client.response().await;
    (response.status(), response.header("connection").map(str::to_owned))
}

/// Two certificates, one of them for several hosts.
fn two(authority: &Authority, scratch: &Scratch) -> [String; 2] {
    [
        authority.pair(&["a.example", "*.a.example"], false).write(scratch, "a"),
        authority.pair(&["b.example"], false).write(scratch, "b"),
    ]
}

#[tokio::test]
async fn a_request_for_a_host_of_another_certificate_is_misdirected() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let (listed, config) = (two(&authority, &scratch), Arc::new(authority.client(BOTH)));
    let proxy = proxy(&[&backend], &listed, "").await;
    let mut a = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    for (host, expected) in [
        ("a.example", 200),
        ("A.example.:443", 200),
        // What a browser does that has coalesced two connections.
        ("www.a.example:8443", 200),
        ("b.example", 421),
        // Nobody has a certificate for it, so it is shown the first one.
        ("c.example", 200),
        ("a.example", 200),
        ("b.example:443", 421),
    ] {
        assert_eq!(ask(&mut a, host).await, (expected, None), "{host}");
    }
    assert_eq!(proxy.counted(|it| &it.misdirected), 2);
    assert_eq!(backend.requests(), 5, "it has not seen those");
    let mut b = connect(proxy.address(), &config, "b.example").await.unwrap().client;
    for (host, expected) in [("b.example", 200), ("a.example", 421), ("c.example", 421), ("b.example", 200)] {
        assert_eq!(ask(&mut b, host).await, (expected, None), "{host}");
    }
    // A target with a host in it outweighs the field.
    b.send("GET http://a.example/ HTTP/1.1\r\nhost: b.example\r\n\r\n").await;
    assert_eq!(b.response().await.status(), 421);
    // In HTTP/1.0 there may be no host, and in the handshake there may be none.
    b.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(b.response().await.status(), 200);
    let mut config = authority.client(BOTH);
    config.enable_sni = false;
    let mut unnamed = connect(proxy.address(), &Arc::new(config), "a.example").await.unwrap().client;
    assert_eq!(ask(&mut unnamed, "b.example").await, (200, None));
}

#[tokio::test]
async fn misdirected_requests_end_their_connection_or_are_served_as_the_listener_says() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let (listed, config) = (two(&authority, &scratch), Arc::new(authority.client(BOTH)));
    let proxy = proxy(&[&backend], &listed, "misdirected = \"close\"").await;
    let mut client = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut client, "a.example").await, (200, None));
    assert_eq!(ask(&mut client, "b.example").await, (421, Some("close".to_owned())));
    client.closed().await;
    proxy.apply(text(&[&backend], &listed, "misdirected = \"allow\"")).await.unwrap();
    let mut client = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut client, "b.example").await, (200, None));
    // Where clients show certificates, not even one that is shown the same.
    let ca = scratch.write("ca.pem", &authority.pem);
    let keys = format!("unknown_names = \"refuse\"\nclient_certificates = {{ ca = \"{}\" }}", ca.display());
    proxy.apply(text(&[&backend], &listed, &keys)).await.unwrap();
    let config = with(&authority, &authority.pair(&["alice.example"], false));
    let mut client = connect(proxy.address(), &config, "a.example").await.unwrap().client;
    assert_eq!(ask(&mut client, "a.example").await, (200, None));
    assert_eq!(ask(&mut client, "www.a.example").await, (421, None));
}

#[tokio::test]
async fn misdirected_streams_are_refused_and_the_others_go_on() {
    let (scratch, authority, backend) = (Scratch::new(), Authority::new(), TestBackend::ok("a"));
    let listed = two(&authority, &scratch);
    let proxy = proxy(&[&backend], &listed, "").await;
    let mut config = authority.client(&[&TLS13]);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    for close in [false, true] {
        if close {
            proxy.apply(text(&[&backend], &listed, "misdirected = \"close\"")).await.unwrap();
        }
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let tls = soon(connector.connect("a.example".try_into().unwrap(), tcp)).await.unwrap();
        let (mut send, connection) = soon(h2::client::handshake(tls)).await.unwrap();
        let driver = tokio::spawn(connection);
        for (host, expected) in [("a.example", 200), ("www.a.example", 200), ("b.example", 421), ("a.example", 200)] {
            let request = http::Request::builder().uri(format!("https://{host}/")).body(()).unwrap();
            send = match soon(send.ready()).await {
                Ok(send) => send,
                Err(error) => panic!("{error}"),
            };
            let response = soon(send.send_request(request, true).unwrap().0).await.unwrap();
            assert_eq!(response.status(), expected, "{host}");
            if close && expected == 421 {
                break;
            }
        }
        if close {
            // It may have had something to say when the other end was gone.
            let _ = soon(driver).await.unwrap();
            assert!(soon(send.ready()).await.is_err(), "the connection is over");
        }
    }
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
