//! TLS to backends: what is verified, what is shown, and the sessions that are taken up again.
//!
//! A [`BackendTls`] belongs to an upstream. It outlives the upstream's replacement as long as it would be made again from the
//! same keys and the same bytes in their files: with it live the sessions, which all workers share, and the idle connections.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{self, Access, Address, BackendTlsConfig, NamedFile, Problem, Protocol};
use crate::socket::Socket;

/// Names whose sessions are kept: with a thousand backends each, and a few kilobytes for those that are used.
const SESSIONS_MAX: usize = 1024;

/// How the backends of an upstream are spoken to by TLS.
pub struct BackendTls {
    /// Tells one from another in this process; never 0, which stands for no TLS.
    id: u64,
    config: Arc<BackendTlsConfig>,
    /// Of the bytes it was made from. No copy of them: there may be a key among them.
    bytes: u64,
    protocol: Protocol,
    client: Arc<ClientConfig>,
    /// For connections that have to speak HTTP/1.1, as those that may switch do.
    http1: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

/// What the system trusts, read once for all upstreams of a configuration.
#[derive(Default)]
pub struct SystemRoots(Option<(Arc<RootCertStore>, u64)>);

impl BackendTls {
    /// Reads the files and makes it, or takes the one from `before` where it would be the same. What is odd about them is added
    /// to `warnings`.
    ///
    /// # Errors
    /// What is wrong with a file, and which key names it.
    pub fn prepare(
        config: &Arc<BackendTlsConfig>,
        protocol: Protocol,
        before: Option<&Arc<Self>>,
        system: &mut SystemRoots,
        warnings: &mut Vec<Problem>,
    ) -> Result<Arc<Self>, Box<Problem>> {
        let mut bytes = Vec::new();
        let verifier = match &config.ca {
            _ if config.insecure_skip_verify => BackendVerifier::None,
            Some(file) => {
                let (pem, _) = read(file)?;
                bytes.push(hash(&pem));
                BackendVerifier::Roots(roots_in(file, &pem)?)
            }
            None => {
                let (roots, hash) = system.read(config)?;
                bytes.push(hash);
                BackendVerifier::Roots(roots)
            }
        };
        let shown = match &config.client_certificate {
            None => None,
            Some(shown) => {
                let ((certificate, _), (key, access)) = (read(&shown.certificate)?, read(&shown.key)?);
                warnings.extend(shown.key.exposed(access));
                bytes.extend([hash(&certificate), hash(&key)]);
                Some((chain_in(&shown.certificate, &certificate)?, key_in(&shown.key, &key)?, shown))
            }
        };
        let bytes = hash(&bytes);
        if let Some(before) =
            before.filter(|before| before.bytes == bytes && before.protocol == protocol && before.config == *config)
        {
            return Ok(Arc::clone(before));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let whole = |error: rustls::Error| config.spot.problem(format!("TLS cannot be set up: {error}"));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(whole)?;
        let builder = match verifier {
            BackendVerifier::Roots(roots) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                let verifier =
                    verifier.map_err(|error| config.spot.problem(format!("TLS cannot be set up: {error}")))?;
                builder.with_webpki_verifier(verifier)
            }
            BackendVerifier::None => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            }
        };
        let mut client = match shown {
            None => builder.with_no_client_auth(),
            Some((chain, key, shown)) => builder.with_client_auth_cert(chain, key).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    let certificate = shown.certificate.shown();
                    shown.key.spot.problem(format!("{} is not the key of {certificate}", shown.key.shown()))
                }
                error => shown.key.spot.problem(format!("{} cannot be used: {error}", shown.key.shown())),
            })?,
        };
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        client.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        let http1 = Arc::new(client.clone());
        let client = match protocol {
            Protocol::Http1 => Arc::clone(&http1),
            Protocol::Http2 | Protocol::Auto => {
                client.alpn_protocols = match protocol {
                    Protocol::Http2 => vec![b"h2".to_vec()],
                    _ => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
                };
                client.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
                Arc::new(client)
            }
        };
        let server_name = match &config.server_name {
            None => None,
            Some(name) => Some(named(name).ok_or_else(|| config.spot.problem("server_name is not a name"))?),
        };
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { id, config: Arc::clone(config), bytes, protocol, client, http1, server_name }))
    }

    /// What connections were made with: those of another identity are no use. 0 is in the clear.
    pub fn identity(tls: Option<&Self>) -> u64 {
        tls.map_or(0, |tls| tls.id)
    }

    /// The TLS of a backend of the upstream.
    pub fn of<'a>(&'a self, server_name: Option<&'a ServerName<'static>>) -> TlsOf<'a> {
        TlsOf { tls: self, server_name }
    }

    /// Makes a connection to the backend at `address` a secure one, by which what the upstream's protocol says is spoken, or
    /// `http1`. Its certificate must be for `server_name`, where there is one.
    ///
    /// # Errors
    /// Why it cannot be. Nothing but the handshake was sent.
    async fn handshake(
        &self,
        (address, server_name): (&Address, Option<&ServerName<'static>>),
        tcp: TcpStream,
        http1: bool,
    ) -> Result<Socket, HandshakeFailed> {
        let name = server_name.or(self.server_name.as_ref()).cloned().or_else(|| match address {
            Address::Ip(address) => Some(address.ip().into()),
            Address::Name(host, _) | Address::Resolved(host, _) => named(host.trim_end_matches('.')),
        });
        let name =
            name.ok_or_else(|| HandshakeFailed::new(io::Error::other("its host is no name for a certificate")))?;
        let connector = TlsConnector::from(Arc::clone(if http1 { &self.http1 } else { &self.client }));
        let stream = connector.connect(name, tcp).await.map_err(HandshakeFailed::new)?;
        Ok(Socket::Tls(Box::new(stream.into())))
    }
}

/// The TLS of one backend: that of its upstream, and the name that its source says for its certificate.
#[derive(Clone, Copy, Debug)]
pub struct TlsOf<'a> {
    tls: &'a BackendTls,
    server_name: Option<&'a ServerName<'static>>,
}

impl TlsOf<'_> {
    /// Makes a connection to `address` a secure one, by which what the upstream's protocol says is spoken, or `http1`.
    ///
    /// # Errors
    /// Why it cannot be. Nothing but the handshake was sent.
    pub async fn handshake(self, address: &Address, tcp: TcpStream, http1: bool) -> Result<Socket, HandshakeFailed> {
        self.tls.handshake((address, self.server_name), tcp, http1).await
    }
}

/// Whether a socket's TLS took up an earlier session, which saves both sides the costly part; `None` in the clear.
pub fn resumed(socket: &Socket) -> Option<bool> {
    match socket {
        Socket::Plain(_) => None,
        Socket::Tls(tls) => Some(tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)),
    }
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendTls").field("id", &self.id).field("config", &self.config).finish_non_exhaustive()
    }
}

enum BackendVerifier {
    Roots(Arc<RootCertStore>),
    None,
}

impl SystemRoots {
    fn read(&mut self, config: &BackendTlsConfig) -> Result<(Arc<RootCertStore>, u64), Box<Problem>> {
        if let Some((roots, hash)) = &self.0 {
            return Ok((Arc::clone(roots), *hash));
        }
        let found = rustls_native_certs::load_native_certs();
        let hashed: Vec<&[u8]> = found.certs.iter().map(AsRef::as_ref).collect();
        let bytes = hash(&hashed);
        let mut roots = RootCertStore::empty();
        // Among a system's there are some that no current library takes.
        let (taken, _) = roots.add_parsable_certificates(found.certs);
        if taken == 0 {
            let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
            return Err(config
                .spot
                .problem(format!("the system has no certificates to trust, and ca is not given{why}")));
        }
        let roots = Arc::new(roots);
        self.0 = Some((Arc::clone(&roots), bytes));
        Ok((roots, bytes))
    }
}

fn named(name: &str) -> Option<ServerName<'static>> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Some(ip.into()),
        Err(_) => ServerName::try_from(name.to_owned()).ok(),
    }
}

fn hash<T: std::hash::Hash + ?Sized>(bytes: &T) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one(bytes)
}

fn read(file: &NamedFile) -> Result<(Vec<u8>, Access), Box<Problem>> {
    config::read(&file.path).map_err(|error| file.spot.problem(format!("could not read {}: {error}", file.shown())))
}

fn roots_in(file: &NamedFile, pem: &[u8]) -> Result<Arc<RootCertStore>, Box<Problem>> {
    let mut roots = RootCertStore::empty();
    for certificate in chain_in(file, pem)? {
        roots.add(certificate).map_err(|error| unusable(file, &error))?;
    }
    Ok(Arc::new(roots))
}

fn chain_in(file: &NamedFile, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Box<Problem>> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| unusable(file, &error))?;
    if chain.is_empty() {
        return Err(file.spot.problem(format!("{} has no certificate in it, in PEM", file.shown())));
    }
    Ok(chain)
}

fn key_in(file: &NamedFile, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Box<Problem>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            file.spot.problem(format!("{} has no private key in it, in PEM", file.shown()))
        }
        error => unusable(file, &error),
    })
}

fn unusable(file: &NamedFile, error: &dyn fmt::Display) -> Box<Problem> {
    file.spot.problem(format!("{} cannot be used: {error}", file.shown()))
}

/// A handshake with a backend came to nothing.
#[derive(Debug)]
pub struct HandshakeFailed {
    /// Of what kind it is.
    pub kind: BackendHandshakeFailure,
    source: io::Error,
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendHandshakeFailure {
    /// The backend's certificate has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// Its issuer is not trusted.
    UnknownIssuer,
    /// It is for another name.
    WrongName,
    /// Something else is wrong with it.
    BadCertificate,
    /// The backend refused, or speaks nothing that both sides do.
    Other,
}

impl BackendHandshakeFailure {
    /// Whether it is the backend's certificate that is not good.
    pub fn is_certificate(self) -> bool {
        self != Self::Other
    }
}

impl HandshakeFailed {
    fn new(source: io::Error) -> Self {
        use CertificateError as E;
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let kind = match inner {
            Some(rustls::Error::InvalidCertificate(error)) => match error {
                E::Expired | E::ExpiredContext { .. } => BackendHandshakeFailure::Expired,
                E::NotValidYet | E::NotValidYetContext { .. } => BackendHandshakeFailure::NotYetValid,
                E::UnknownIssuer => BackendHandshakeFailure::UnknownIssuer,
                E::NotValidForName | E::NotValidForNameContext { .. } => BackendHandshakeFailure::WrongName,
                _ => BackendHandshakeFailure::BadCertificate,
            },
            Some(rustls::Error::NoCertificatesPresented) => BackendHandshakeFailure::BadCertificate,
            _ => BackendHandshakeFailure::Other,
        };
        Self { kind, source }
    }
}

impl fmt::Display for HandshakeFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            BackendHandshakeFailure::Expired => "certificate has expired",
            BackendHandshakeFailure::NotYetValid => "certificate is not valid yet",
            BackendHandshakeFailure::UnknownIssuer => "certificate has an unknown issuer",
            BackendHandshakeFailure::WrongName => "certificate is for another name",
            BackendHandshakeFailure::BadCertificate => "certificate is not good",
            BackendHandshakeFailure::Other => "tls handshake failed",
        })?;
        match self.kind {
            // All there is to say.
            BackendHandshakeFailure::UnknownIssuer => Ok(()),
            _ if self.source.kind() == io::ErrorKind::UnexpectedEof => f.write_str(": the connection was closed"),
            _ => write!(f, ": {}", self.source),
        }
    }
}

impl std::error::Error for HandshakeFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Takes any certificate, but its signature must be valid: the backend must have its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
