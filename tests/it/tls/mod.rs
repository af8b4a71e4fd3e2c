//! TLS to clients: who is shown which certificate, what is spoken behind it, and what goes wrong.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::harness::{Client, Keys, Scratch, TestBackend, TestProxy, soon};

mod handshakes;
mod connections;
mod certificates;
mod client_certificates;
mod misdirected;

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
