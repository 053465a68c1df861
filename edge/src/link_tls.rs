//! TLS between the uplink and the link's socket, as a client.
//!
//! One a link attempt, free of I/O. There is one link an edge, so simplicity counts here and not memory: rustls keeps the
//! buffers.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, Error};

use crate::uplink::LinkError;

/// How links shake hands.
#[derive(Debug, Clone)]
pub struct LinkTlsConfig {
    /// Authorities, and this edge's certificate where it has one.
    pub config: Arc<ClientConfig>,
    /// What the router's certificate has to be for.
    pub name: ServerName<'static>,
}

/// What came of bytes from the router.
#[derive(Debug)]
pub struct Received<'a> {
    /// The handshake is done by them: the uplink can speak.
    pub opened: bool,
    /// For the uplink.
    pub bytes: &'a [u8],
}

/// See the module.
#[derive(Debug)]
pub struct LinkTls {
    connection: ClientConnection,
    /// What arrived for the uplink.
    plaintext: Vec<u8>,
}

impl LinkTls {
    /// A handshake that begins; its first bytes can be [polled](Self::poll_transmit).
    ///
    /// # Errors
    /// rustls cannot begin with this configuration.
    pub fn new(config: &LinkTlsConfig) -> Result<Self, LinkError> {
        let made = ClientConnection::new(Arc::clone(&config.config), config.name.clone());
        let mut connection = made.map_err(|error| LinkError::Tls(error.to_string()))?;
        // The uplink gives one batch at a time, and waits until it is out.
        connection.set_buffer_limit(None);
        Ok(Self { connection, plaintext: Vec::new() })
    }

    /// Whether the router has not shown its certificate yet. Whether it accepts this edge's is known later, by an alert.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes bytes from the router and gives what is in them for the uplink.
    ///
    /// # Errors
    /// The link cannot go on; the sentence is for the log.
    pub fn handle_received(&mut self, mut bytes: &[u8]) -> Result<Received<'_>, LinkError> {
        let was_handshaking = self.connection.is_handshaking();
        self.plaintext.clear();
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).map_err(|e| LinkError::Tls(e.to_string()))?;
            let state = self.connection.process_new_packets().map_err(|error| told(&error))?;
            match self.connection.reader().read_to_end(&mut self.plaintext) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(LinkError::Tls(error.to_string()));
                }
                Ok(_) | Err(_) => {}
            }
            if state.peer_has_closed() {
                break;
            }
        }
        let opened = was_handshaking && !self.connection.is_handshaking();
        Ok(Received { opened, bytes: &self.plaintext })
    }

    /// The stream ended; why the link did.
    #[must_use]
    pub fn handle_closed(&self, error: LinkError) -> LinkError {
        if !self.connection.is_handshaking() {
            return error;
        }
        LinkError::Tls(format!(
            "{error} in the middle of the handshake; does it speak TLS there (its --link-tls-cert)?"
        ))
    }

    /// Takes bytes of the uplink.
    pub fn write(&mut self, plaintext: &[u8]) {
        // Without a limit of its buffer rustls takes everything.
        let written = self.connection.writer().write_all(plaintext);
        debug_assert!(written.is_ok(), "{written:?}");
    }

    /// Whether [`Self::poll_transmit`] has something.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        self.connection.wants_write()
    }

    /// What has to go to the router; empty when there is nothing.
    pub fn poll_transmit(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.connection.wants_write() {
            // Writing to memory does not fail.
            if self.connection.write_tls(&mut out).is_err() {
                break;
            }
        }
        out
    }
}

/// Why there is no TLS with the router, and what its or this edge's operator can do.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has more errors than can be told apart, and adds some"
)]
fn told(error: &Error) -> LinkError {
    let sentence = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the router's certificate is not signed by an authority in --router-tls-ca".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            format!("the router's certificate is for another name than --router-tls-name: {error}")
        }
        Error::InvalidCertificate(problem) => {
            format!("the router's certificate is not accepted: {problem}")
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the router wants a certificate: give --router-tls-cert and --router-tls-key".to_owned()
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "the router does not know who signed --router-tls-cert (its --link-tls-client-ca)"
                .to_owned()
        }
        Error::AlertReceived(alert) => {
            format!("the router does not accept --router-tls-cert: {alert:?}")
        }
        Error::InvalidMessage(_) => {
            format!("the router does not speak TLS there (its --link-tls-cert): {error}")
        }
        _ => error.to_string(),
    };
    LinkError::Tls(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_begins_by_itself_and_says_what_is_wrong_with_an_answer() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("router.internal").unwrap();
        let config = LinkTlsConfig { config: Arc::new(config), name };
        let mut tls = LinkTls::new(&config).unwrap();
        assert_eq!(tls.poll_transmit().first_chunk(), Some(&[0x16, 3, 1]), "a handshake record");
        assert!(tls.poll_transmit().is_empty());
        let LinkError::Tls(cut) = tls.handle_closed(LinkError::Closed) else { panic!() };
        assert!(cut.contains("does it speak TLS"), "{cut}");
        let Err(LinkError::Tls(plain)) = tls.handle_received(&[0, 0, 0, 9, 10, 7, 0, 0, 0]) else {
            panic!("a link frame is no TLS")
        };
        assert!(plain.contains("does not speak TLS"), "{plain}");
        assert!(tls.is_handshaking());
    }
}
