//! TLS to what is asked.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Which servers are believed. Cheap to clone.
#[derive(Clone)]
pub struct Trust(pub(super) Arc<ClientConfig>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

/// Why no server can be believed.
#[derive(Debug)]
pub struct NoTrust(String);

impl fmt::Display for NoTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoTrust {}

impl Trust {
    /// Believes servers with certificates of the authorities in `pem`; where there is none, of those that the system trusts.
    ///
    /// # Errors
    /// When there is no authority to be trusted.
    pub fn new(pem: Option<&[u8]>) -> Result<Self, NoTrust> {
        Self::with_identity(pem, None)
    }

    /// The same, and shows a certificate to servers that ask for one: PEM, with the key beside it.
    ///
    /// # Errors
    /// When there is no authority to be trusted, or the certificate and its key make no pair.
    pub fn with_identity(pem: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Self, NoTrust> {
        let no_trust = |what: &dyn fmt::Display| NoTrust(format!("TLS cannot be set up: {what}"));
        let mut roots = RootCertStore::empty();
        match pem {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| no_trust(&error))?;
                    roots.add(certificate).map_err(|error| no_trust(&error))?;
                }
            }
            // Among a system's there are some that no current library takes.
            None => {
                let (_taken, _ignored) =
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(no_trust(&"there is no certificate authority to trust"));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| no_trust(&error))?;
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| no_trust(&error))?.with_webpki_verifier(verifier);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
                let chain = chain.map_err(|error| no_trust(&error))?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| no_trust(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| no_trust(&error))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http::Request;
    use http_body_util::Full;
    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::http_client::{Fetch, FetchLimits, To};

    /// A server that answers `ok` with a certificate of its own for `localhost`, which is given back in PEM.
    async fn server() -> (u16, String) {
        server_for(None).await
    }

    /// The same, for those alone that show a certificate of this authority.
    async fn server_for(clients: Option<CertificateDer<'static>>) -> (u16, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(match clients {
                None => WebPkiClientVerifier::no_client_auth(),
                Some(authority) => {
                    let mut roots = RootCertStore::empty();
                    roots.add(authority).unwrap();
                    let provider = Arc::new(aws_lc_rs::default_provider());
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap()
                }
            })
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    stream.flush().await.unwrap();
                }
            }
        });
        (port, made.cert.pem())
    }

    async fn ask(host: &str, port: u16, trust: Trust) -> Result<Bytes, crate::http_client::FetchError> {
        let to = To::Server { host: host.into(), port, tls: Some(trust) };
        let fetch = Fetch::new(to, FetchLimits { time: Duration::from_secs(5), body: 16 });
        let request = Request::get(format!("http://{host}:{port}/")).body(Full::default()).unwrap();
        fetch.whole(request).await.map(http::Response::into_body)
    }

    #[tokio::test]
    async fn a_server_is_believed_for_its_authority_and_its_name_alone() {
        let ((port, pem), (_, other)) = (server().await, server().await);
        let trust = |pem: &str| Trust::new(Some(pem.as_bytes())).unwrap();
        assert_eq!(ask("localhost", port, trust(&pem)).await.unwrap(), "ok");
        assert!(ask("localhost", port, trust(&other)).await.is_err());
        assert!(ask("127.0.0.1", port, trust(&pem)).await.is_err());
        for nothing in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Trust::new(Some(nothing.as_bytes())).is_err(), "{nothing}");
        }
    }

    #[tokio::test]
    async fn a_certificate_is_shown_to_a_server_that_asks_for_one() {
        let made = rcgen::generate_simple_self_signed(vec!["isobar".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(vec!["isobar".to_owned()]).unwrap().signing_key.serialize_pem();
        let (port, pem) = server_for(Some(made.cert.der().clone())).await;
        let with =
            |key: &str| Trust::with_identity(Some(pem.as_bytes()), Some((certificate.as_bytes(), key.as_bytes())));
        assert_eq!(ask("localhost", port, with(&key).unwrap()).await.unwrap(), "ok");
        assert!(ask("localhost", port, Trust::new(Some(pem.as_bytes())).unwrap()).await.is_err());
        for wrong in [&other, "", "no PEM"] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
    }
}
