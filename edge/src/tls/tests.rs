//! Against the client of rustls, and against a client that seals whatever a test wants.

use std::io::{Read as _, Write as _};

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::record::CONTENT_BYTES_MAX;
use super::*;

/// A certificate for `localhost`, and who trusts it.
struct World {
    server: Arc<ServerConfig>,
    roots: RootCertStore,
}

impl World {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        server.key_log = Arc::new(SecretTap);
        server.enable_secret_extraction = true;
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        Self { server: Arc::new(server), roots }
    }

    fn shared(&self) -> Shared {
        Shared::new(Arc::clone(&self.server))
    }

    fn client_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        suites: Option<SupportedCipherSuite>,
    ) -> ClientConfig {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if let Some(suite) = suites {
            provider.cipher_suites = vec![suite];
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.key_log = Arc::new(SecretTap);
        config.enable_secret_extraction = true;
        config
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Every suite of rustls, with its version.
fn suites() -> impl Iterator<Item = (SupportedCipherSuite, &'static SupportedProtocolVersion)> {
    rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        // The others want an RSA certificate, and seal in the same way.
        .filter(|suite| !format!("{:?}", suite.suite()).contains("RSA_WITH"))
        .map(|suite| (*suite, suite.version()))
}

fn client_of(config: ClientConfig) -> ClientConnection {
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// The server's end with its shard.
struct Server {
    tls: Tls,
    shared: Shared,
    /// Items as text, data joined.
    said: Vec<String>,
    data: Vec<u8>,
    info: Option<Info>,
}

impl Server {
    fn new(world: &World) -> Self {
        Self::with(world.shared())
    }

    fn with(shared: Shared) -> Self {
        Self { tls: Tls::accept(), shared, said: Vec::new(), data: Vec::new(), info: None }
    }

    /// Feeds `bytes` in inputs of `piece_bytes`.
    fn take(&mut self, bytes: &[u8], piece_bytes: usize) -> Result<(), TlsError> {
        let mut bytes = bytes.to_vec();
        for piece in bytes.chunks_mut(piece_bytes.max(1)) {
            let mut at = 0;
            while at < piece.len() {
                let (taken, item) = self.tls.next(&mut self.shared, &mut piece[at..])?;
                assert!(taken > 0, "a step takes something");
                at += taken;
                match item {
                    Some(Item::Open(info)) => self.info = Some(info),
                    Some(Item::Data(data)) => {
                        assert!(!data.is_empty());
                        self.data.extend_from_slice(data);
                    }
                    Some(Item::Closed) => self.said.push("closed".to_owned()),
                    None => assert_eq!(at, piece.len(), "nothing means that all is taken"),
                }
            }
            self.tls.settle(&mut self.shared);
        }
        Ok(())
    }

    fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.tls.seal(&mut self.shared, plaintext, &mut out).unwrap();
        assert!(!self.tls.wants_send(), "all that was due is out");
        out
    }
}

/// All that `client` has to send now.
fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn give(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

fn data_of(client: &mut ClientConnection) -> Vec<u8> {
    let mut data = vec![0; 1 << 20];
    let mut have = 0;
    while let Ok(more @ 1..) = client.reader().read(&mut data[have..]) {
        have += more;
    }
    data.truncate(have);
    data
}

/// Shakes hands with inputs of `piece_bytes`; what `client` says right behind its `Finished` is `early`.
fn shake(server: &mut Server, client: &mut ClientConnection, early: &[u8], piece_bytes: usize) {
    let mut early = Some(early);
    while client.is_handshaking() || !server.tls.is_open() {
        let mut bytes = sent(client);
        if !client.is_handshaking()
            && let Some(early) = early.take()
        {
            client.writer().write_all(early).unwrap();
            bytes.extend(sent(client));
        }
        server.take(&bytes, piece_bytes).unwrap();
        let bytes = server.seal(b"");
        give(client, &bytes).unwrap();
        if !client.is_handshaking()
            && let Some(early) = early.take_if(|_| server.tls.is_open())
        {
            client.writer().write_all(early).unwrap();
            server.take(&sent(client), piece_bytes).unwrap();
        }
    }
}

fn echo(server: &mut Server, client: &mut ClientConnection, data: &[u8], piece_bytes: usize) {
    client.set_buffer_limit(None);
    client.writer().write_all(data).unwrap();
    server.data.clear();
    server.take(&sent(client), piece_bytes).unwrap();
    assert!(server.data == data, "what the client said");
    let bytes = server.seal(data);
    let mut heard = Vec::new();
    for piece in bytes.chunks(16 * 1024) {
        give(client, piece).unwrap();
        heard.extend(data_of(client));
    }
    assert!(heard == data, "what the server said");
}

#[test]
fn every_suite_shakes_hands_and_echoes() {
    let world = World::new();
    let big: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
    let mut versions = Vec::new();
    for (suite, version) in suites() {
        let mut server = Server::new(&world);
        let mut client = client_of(world.client_config(&[version], Some(suite)));
        shake(&mut server, &mut client, b"", usize::MAX);
        let info = server.info.unwrap();
        assert!(!info.resumed && !info.client_certificate);
        versions.push(info.version);
        for data in
            [&b"x"[..], b"hello", &big, &[0; CONTENT_BYTES_MAX], &[7; CONTENT_BYTES_MAX + 1]]
        {
            echo(&mut server, &mut client, data, 2048);
            echo(&mut server, &mut client, data, usize::MAX);
        }
    }
    assert!(versions.iter().filter(|version| **version == Version::Tls12).count() == 3);
    assert!(versions.iter().filter(|version| **version == Version::Tls13).count() == 3);
}
