//! TLS as the clients of a run speak it: rustls between the bytes of a socket and those of WebSocket, without I/O; and
//! certificates for servers of our own.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, NamedGroup,
    RootCertStore, SignatureScheme,
};

use crate::failure::Failure;

/// Tickets that are kept; the oldest go.
const TICKETS_MAX: usize = 200_000;
const ALPN: &[u8] = b"http/1.1";
const TICKET_KEY_BYTES: usize = 32;

/// What all clients of a run have in common: whom they trust, and tickets of earlier sessions, which any of them may use.
#[derive(Debug)]
pub(crate) struct TlsClients {
    config: Arc<ClientConfig>,
    handshakes: AtomicU64,
    resumed: AtomicU64,
    /// What the first handshake agreed on.
    agreed: Mutex<Option<String>>,
}

impl TlsClients {
    /// Clients that trust `authorities`; so many of a hundred connects resume a session, as far as there are tickets.
    ///
    /// # Errors
    /// When an authority is none.
    pub(crate) fn trusting(
        authorities: impl IntoIterator<Item = CertificateDer<'static>>,
        resume_percent: u32,
    ) -> Result<Arc<Self>, Error> {
        let mut roots = RootCertStore::empty();
        authorities.into_iter().try_for_each(|authority| roots.add(authority))?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        Self::new(verifier, resume_percent)
    }

    /// The same with authorities from a PEM file.
    ///
    /// # Errors
    /// A sentence with the file's name.
    pub(crate) fn trusting_file(path: &Path, resume_percent: u32) -> Result<Arc<Self>, Failure> {
        let unfit = |error: &dyn fmt::Display| {
            Failure::Usage(format!("--tls-ca: {}: {error}", path.display()))
        };
        let authorities = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unfit(&error))?;
        Self::trusting(authorities, resume_percent).map_err(|error| unfit(&error))
    }

    /// Clients that take whatever certificate they are shown: to measure a server, not to tell it anything.
    ///
    /// # Errors
    /// When rustls has no TLS with this provider.
    pub(crate) fn trusting_all(resume_percent: u32) -> Result<Arc<Self>, Error> {
        Self::new(Arc::new(Anyone(provider())), resume_percent)
    }

    fn new(verifier: Arc<dyn ServerCertVerifier>, resume_percent: u32) -> Result<Arc<Self>, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = match resume_percent {
            0 => Resumption::disabled(),
            percent => Resumption::store(Arc::new(Tickets::new(percent))),
        };
        Ok(Arc::new(Self {
            config: Arc::new(config),
            handshakes: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            agreed: Mutex::new(None),
        }))
    }

    /// A connection to a server, which is asked for the name in the URL, or else for its address.
    pub(crate) fn connect(self: &Arc<Self>, host: &str, address: SocketAddr) -> TlsConnection {
        let port = |(_, port): &(&str, &str)| port.parse::<u16>().is_ok();
        let name = host.rsplit_once(':').filter(port).map_or(host, |(name, _)| name);
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned());
        let name = name.unwrap_or_else(|_| ServerName::IpAddress(address.ip().into()));
        let inner = ClientConnection::new(Arc::clone(&self.config), name);
        let mut inner = inner.expect("nothing in the configuration depends on the server");
        inner.set_buffer_limit(None);
        TlsConnection { inner, clients: Arc::clone(self), is_open: false }
    }

    /// Handshakes that were finished, and how many of them resumed a session.
    pub(crate) fn handshakes(&self) -> (u64, u64) {
        (self.handshakes.load(Ordering::Relaxed), self.resumed.load(Ordering::Relaxed))
    }

    /// Version, cipher suite and key exchange of the first handshake.
    pub(crate) fn agreed(&self) -> Option<String> {
        lock(&self.agreed).clone()
    }

    fn note_handshake(&self, connection: &ClientConnection) {
        // Counters for a report; nothing is published with them.
        let number = self.handshakes.fetch_add(1, Ordering::Relaxed);
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.resumed.fetch_add(1, Ordering::Relaxed);
        }
        if number == 0 {
            let version = connection.protocol_version().and_then(|version| version.as_str());
            let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
            let suite = suite.and_then(|suite| suite.as_str());
            let group = connection.negotiated_key_exchange_group().map(|group| group.name());
            let group = group.and_then(|group| group.as_str());
            let agreed: Vec<_> = [version, suite, group].into_iter().flatten().collect();
            *lock(&self.agreed) = Some(agreed.join(" "));
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct TlsConnection {
    inner: ClientConnection,
    clients: Arc<TlsClients>,
    /// The handshake is done, and counted.
    is_open: bool,
}

impl TlsConnection {
    /// Takes what is to be said; before the end of the handshake it waits for that. Then call [`Self::take_output`].
    pub(crate) fn write(&mut self, plain: &[u8]) {
        let written = self.inner.writer().write_all(plain);
        debug_assert!(written.is_ok(), "there is no bound");
    }

    /// Appends what has to go to the socket now: also after [`Self::read`].
    pub(crate) fn take_output(&mut self, out: &mut Vec<u8>) {
        while self.inner.wants_write() {
            let written = self.inner.write_tls(out);
            debug_assert!(written.is_ok(), "a Vec takes everything");
        }
    }

    /// There is something to take.
    pub(crate) fn has_output(&self) -> bool {
        self.inner.wants_write()
    }

    /// Takes what came from the socket, and appends what it says.
    ///
    /// # Errors
    /// When this connection is over; what [`Self::take_output`] then gives tells the server why.
    pub(crate) fn read(&mut self, mut input: &[u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        let full = |error: io::Error| Error::General(error.to_string());
        while !input.is_empty() {
            self.inner.read_tls(&mut input).map_err(full)?;
            let state = self.inner.process_new_packets()?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.inner.reader().read_exact(&mut plain[start..]).map_err(full)?;
        }
        if !self.is_open && !self.inner.is_handshaking() {
            self.is_open = true;
            self.clients.note_handshake(&self.inner);
        }
        Ok(())
    }
}

/// Tickets of TLS 1.3, used by whoever connects next; a server gives more of them than it gets back.
struct Tickets {
    percent: u64,
    asked: AtomicU64,
    tickets: Mutex<VecDeque<Tls13ClientSessionValue>>,
    /// TLS 1.2 may use a session as often as it likes.
    session: Mutex<Option<Tls12ClientSessionValue>>,
}

impl Tickets {
    fn new(percent: u32) -> Self {
        Self {
            percent: percent.into(),
            asked: AtomicU64::new(0),
            tickets: Mutex::default(),
            session: Mutex::default(),
        }
    }

    /// Whether it is a connect's turn to resume: evenly as many as were wanted.
    fn is_due(&self) -> bool {
        let before = self.asked.fetch_add(1, Ordering::Relaxed);
        (before + 1) * self.percent / 100 > before * self.percent / 100
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("percent", &self.percent).finish_non_exhaustive()
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        *lock(&self.session) = Some(session);
    }

    /// Asked after a ticket of TLS 1.3 was not to be had. Where there are such tickets, there is no session of this kind.
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let session = lock(&self.session).clone()?;
        self.is_due().then_some(session)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        *lock(&self.session) = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = lock(&self.tickets);
        if tickets.len() >= TICKETS_MAX {
            tickets.pop_front();
        }
        tickets.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut tickets = lock(&self.tickets);
        if tickets.is_empty() || !self.is_due() {
            return None;
        }
        tickets.pop_front()
    }
}

/// Takes every certificate; that its owner signed the handshake is checked all the same.
#[derive(Debug)]
struct Anyone(CryptoProvider);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// What is in there is whole even if another thread panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Certificate and key of servers of our own, in PEM files, the key of their tickets, and the authority that signed the
/// certificate.
#[derive(Debug)]
pub(crate) struct Issued {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// A random key in base64.
    pub ticket_keys: PathBuf,
    pub authority: CertificateDer<'static>,
}

impl Issued {
    /// A new authority, and from it a certificate (ECDSA P-256) for this machine by its loopback address and as
    /// `localhost`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        let [cert, key, ticket_keys] =
            ["cert.pem", "key.pem", "ticket-keys"].map(|name| folder.join(name));
        let (authority, cert_pem, key_pem) = issue().map_err(io::Error::other)?;
        fs::write(&cert, cert_pem)?;
        fs::write(&key, key_pem)?;
        let mut ticket_key = [0; TICKET_KEY_BYTES];
        let filled = provider().secure_random.fill(&mut ticket_key);
        filled.map_err(|_| io::Error::other("there are no random bytes"))?;
        fs::write(&ticket_keys, BASE64.encode(ticket_key))?;
        Ok(Self { cert, key, ticket_keys, authority })
    }
}

fn issue() -> Result<(CertificateDer<'static>, String, String), rcgen::Error> {
    let authority_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate()?;
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    Ok((authority.der().clone(), cert.pem(), key.serialize_pem()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    /// A server of rustls's own that says `hello` to each of `connections` clients in turn and hears it out.
    pub(crate) fn server(
        issued: &Issued,
        connections: usize,
        hello: &'static [u8],
    ) -> (SocketAddr, JoinHandle<Vec<Vec<u8>>>) {
        let chain = CertificateDer::pem_file_iter(&issued.cert).unwrap().map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.collect(), key)
            .unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let serve = move |_| {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let mut heard = Vec::new();
            // A client that trusts nobody goes in the middle of the handshake.
            if stream.write_all(hello).is_ok() {
                let _ = stream.read_to_end(&mut heard);
            }
            heard
        };
        (address, thread::spawn(move || (0..connections).map(serve).collect()))
    }

    /// Says `said` to a server, and returns what it said before `enough` bytes of it had come.
    fn talk(
        clients: &Arc<TlsClients>,
        to: SocketAddr,
        said: &[u8],
        enough: usize,
    ) -> Result<Vec<u8>, Error> {
        let mut socket = std::net::TcpStream::connect(to).unwrap();
        let mut tls = clients.connect(&to.to_string(), to);
        tls.write(said);
        let (mut out, mut heard, mut buffer) = (Vec::new(), Vec::new(), [0; 100]);
        loop {
            tls.take_output(&mut out);
            socket.write_all(&out).unwrap();
            out.clear();
            if heard.len() >= enough {
                return Ok(heard);
            }
            let received = socket.read(&mut buffer).unwrap();
            assert!(received > 0, "the server has gone");
            tls.read(&buffer[..received], &mut heard)?;
        }
    }

    #[test]
    fn what_is_said_before_the_handshake_arrives_and_so_does_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let issued = Issued::new(folder.path()).unwrap();
        let (address, server) = server(&issued, 1, b"welcome");
        let clients = TlsClients::trusting([issued.authority], 0).unwrap();
        assert_eq!(talk(&clients, address, b"hello", 7), Ok(b"welcome".to_vec()));
        assert_eq!(server.join().unwrap(), [b"hello".to_vec()]);
        assert_eq!(clients.handshakes(), (1, 0));
        let agreed = clients.agreed().unwrap();
        assert!(agreed.starts_with("TLSv1_3 ") && agreed.ends_with("X25519"), "{agreed}");
    }

    #[test]
    fn as_many_resume_as_were_asked_for_once_there_are_tickets() {
        let folder = tempfile::tempdir().unwrap();
        let issued = Issued::new(folder.path()).unwrap();
        let (address, server) = server(&issued, 9, b"welcome");
        let clients = TlsClients::trusting([issued.authority], 50).unwrap();
        (0..9).for_each(|_| drop(talk(&clients, address, b"hello", 7).unwrap()));
        server.join().unwrap();
        assert_eq!(clients.handshakes(), (9, 4), "the first had no ticket");
    }

    #[test]
    fn a_certificate_of_somebody_else_is_refused_unless_all_are_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let issued = Issued::new(folder.path()).unwrap();
        let (address, server) = server(&issued, 2, b"welcome");
        let (stranger, _, _) = issue().unwrap();
        let clients = TlsClients::trusting([stranger], 0).unwrap();
        let error = talk(&clients, address, b"hello", 7).unwrap_err();
        assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
        let clients = TlsClients::trusting_all(0).unwrap();
        assert_eq!(talk(&clients, address, b"hello", 7), Ok(b"welcome".to_vec()));
        server.join().unwrap();
    }
}
