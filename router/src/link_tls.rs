//! TLS of the links that come over TCP: certificate files to a configuration, and the handshake; and of those that the server
//! API has to other routers.
//!
//! TLS 1.3 alone, since both ends are of one house, and without resumption: an edge connects seldom, and its certificate
//! is looked at every time. Leaves out what is said inside, which is [`link`](crate::link)'s.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::config::Config;
use crate::limits;

/// How long an edge that was refused gets to read why.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);

/// How this router shakes hands with edges.
#[derive(Clone)]
pub struct LinkTls(TlsAcceptor);

impl std::fmt::Debug for LinkTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkTls")
    }
}

impl LinkTls {
    /// Reads what the `--link-tls-*` knobs name; `None` where there is no certificate.
    ///
    /// # Errors
    /// A sentence that names the knob and the file.
    pub fn load(config: &Config) -> Result<Option<Self>, String> {
        let (Some(cert), Some(key)) = (&config.link_tls_cert, &config.link_tls_key) else {
            return Ok(None);
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates("--link-tls-cert", cert)?;
        let key_der = private_key(key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| format!("--link-tls-cert: {error}"))?;
        let builder = match &config.link_tls_client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(verifier(ca, provider)?),
        };
        let mut tls = builder.with_single_cert(chain, key_der).map_err(|error| {
            let (cert, key) = (cert.display(), key.display());
            format!("--link-tls-cert: {cert} and --link-tls-key {key} cannot be used: {error}")
        })?;
        tls.send_tls13_tickets = 0;
        Ok(Some(Self(TlsAcceptor::from(Arc::new(tls)))))
    }

    /// Shakes hands with an edge.
    ///
    /// # Errors
    /// Why not, in a sentence for the log.
    pub async fn accept(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let shaking = self.0.accept(stream).into_fallible();
        match timeout(limits::HELLO_TIMEOUT, shaking).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((error, stream))) => {
                let _ = timeout(REFUSED_TIMEOUT, let_read(stream)).await;
                Err(reason(&error))
            }
            Err(_) => Err("the handshake did not end in time".to_owned()),
        }
    }
}

/// How this router shakes hands with the other routers, as an edge does.
#[derive(Clone)]
pub struct PeerTls(TlsConnector);

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerTls")
    }
}

impl PeerTls {
    /// Reads what `--api-peers-ca` names, and the certificate to show; `None` where there are no authorities.
    ///
    /// # Errors
    /// A sentence that names the knob and the file.
    pub fn load(config: &Config) -> Result<Option<Self>, String> {
        const KNOB: &str = "--api-peers-ca";
        let Some(ca) = &config.api.api_peers_ca else { return Ok(None) };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| format!("{KNOB}: {error}"))?
            .with_root_certificates(authorities(KNOB, ca)?);
        let tls = match (&config.link_tls_cert, &config.link_tls_key) {
            (Some(cert), Some(key)) => {
                let (chain, key) = (certificates("--link-tls-cert", cert)?, private_key(key)?);
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    format!("--link-tls-cert: {} cannot be used: {error}", cert.display())
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Some(Self(TlsConnector::from(Arc::new(tls)))))
    }

    /// Shakes hands with the router at this address, which its certificate has to be for.
    ///
    /// # Errors
    /// It broke, or the router is not who it should be.
    pub async fn connect(
        &self,
        address: IpAddr,
        stream: TcpStream,
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        self.0.connect(ServerName::IpAddress(address.into()), stream).await
    }
}

/// Waits until the edge has closed: while something of it is unread, closing would take the alert that tells it why out of
/// its hands.
async fn let_read(mut stream: TcpStream) {
    let mut unread = [0; 1024];
    let _ = stream.shutdown().await;
    while matches!(stream.read(&mut unread).await, Ok(1..)) {}
}

fn reason(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::NoCertificatesPresented) => {
            "it shows no certificate; it needs --router-tls-cert".to_owned()
        }
        Some(Error::InvalidCertificate(problem)) => {
            format!("its certificate is not accepted: {problem}")
        }
        Some(Error::AlertReceived(alert)) => {
            format!("it does not accept this router's certificate: {alert:?}")
        }
        Some(Error::InvalidMessage(_)) => {
            "it does not speak TLS; it needs --router-tls-ca".to_owned()
        }
        Some(_) | None => error.to_string(),
    }
}

fn verifier(
    ca: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
    const KNOB: &str = "--link-tls-client-ca";
    WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(KNOB, ca)?), provider)
        .build()
        .map_err(|error| format!("{KNOB}: {}: {error}", ca.display()))
}

fn authorities(knob: &str, ca: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(knob, ca)? {
        roots.add(authority).map_err(|error| format!("{knob}: {}: {error}", ca.display()))?;
    }
    Ok(roots)
}

fn private_key(key: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(key)
        .map_err(|error| format!("--link-tls-key: {}: {error}", key.display()))
}

/// The certificates in a PEM file; at least one.
fn certificates(knob: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let refuse = |error: &dyn std::fmt::Display| format!("{knob}: {}: {error}", path.display());
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates = read.map_err(|error| refuse(&error))?;
    if certificates.is_empty() {
        return Err(refuse(&"has no certificate in it; wanted is PEM"));
    }
    Ok(certificates)
}
