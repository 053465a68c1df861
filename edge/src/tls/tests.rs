//! Against the client of rustls, and against a client that seals whatever a test wants.

use std::io::{Read as _, Write as _};

use aws_lc_rs::aead::{Aad, Nonce};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite,
    SupportedProtocolVersion,
};

use super::keys::Direction;
use super::record::{ALERT, CHANGE_CIPHER_SPEC, CONTENT_BYTES_MAX, DATA, HANDSHAKE, HEADER_BYTES};
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
pub(crate) struct Server {
    tls: Tls,
    shared: Shared,
    /// Items other than data, as text.
    said: Vec<String>,
    data: Vec<u8>,
    pub(crate) info: Option<Info>,
}

impl Server {
    fn new(world: &World) -> Self {
        Self::with(world.shared())
    }

    pub(crate) fn with(shared: Shared) -> Self {
        Self { tls: Tls::accept(), shared, said: Vec::new(), data: Vec::new(), info: None }
    }

    /// Feeds `bytes` in inputs of `piece_bytes`.
    pub(crate) fn take(&mut self, bytes: &[u8], piece_bytes: usize) -> Result<(), TlsError> {
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

    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.tls.seal(&mut self.shared, plaintext, &mut out).unwrap();
        assert!(!self.tls.wants_send(), "all that was due is out");
        out
    }
}

/// All that `client` has to send now.
pub(crate) fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

pub(crate) fn give(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
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
pub(crate) fn shake(
    server: &mut Server,
    client: &mut ClientConnection,
    early: &[u8],
    piece_bytes: usize,
) {
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

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Both ends of the trace in RFC 8448 section 3, from the application traffic secrets on.
#[test]
fn the_records_of_rfc_8448_section_3_are_opened_and_sealed_as_they_stand_there() {
    let client = hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
    let server = hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
    let mut shared = World::new().shared();
    let tls = Tls::from_secrets(&mut shared, &client, &server).unwrap();
    let mut end = Server { tls, ..Server::with(shared) };
    let data: Vec<u8> = (0..50).collect();
    let said = hex(
        "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66
         bc ab 3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70
         14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4
         17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3",
    );
    end.take(&said, 17).unwrap();
    assert_eq!((end.data.clone(), end.said.clone()), (data.clone(), vec!["closed".to_owned()]));
    // The first of the server's records is a ticket.
    end.open().tx().set_sequence(1);
    end.tls.close();
    let heard = hex(
        "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82
         aa 1b 36 e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00
         47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d
         17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9",
    );
    assert_eq!(end.seal(&data), heard);
    assert!(Tls::from_secrets(&mut end.shared, &client[1..], &server).is_err());
}

#[test]
fn a_handshake_and_its_data_are_the_same_wherever_they_are_cut() {
    let world = World::new();
    for version in [&TLS12, &TLS13] {
        for piece_bytes in (1..40).chain([100, 1000, 5000]) {
            let mut server = Server::new(&world);
            let mut client = client_of(world.client_config(&[version], None));
            // The client's first data comes with its `Finished`, in one input with it or not.
            shake(&mut server, &mut client, b"right behind it", piece_bytes);
            assert_eq!(server.data, b"right behind it", "{version:?} in {piece_bytes}");
            echo(&mut server, &mut client, &[7; 3000], piece_bytes);
            assert!(server.shared.buffers.all_are_back(), "{version:?} in {piece_bytes}");
        }
    }
}

#[test]
fn data_behind_the_last_handshake_record_is_kept_also_where_the_server_has_nothing_to_answer() {
    let world = World::new();
    let mut config = world.client_config(&[&TLS12], None);
    config.resumption = Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    let connect = || {
        ClientConnection::new(Arc::clone(&config), ServerName::try_from("localhost").unwrap())
            .unwrap()
    };
    let mut server = Server::new(&world);
    shake(&mut server, &mut connect(), b"", usize::MAX);
    // TLS 1.2 resumed: the client's Finished is the last message of the handshake.
    let mut server = Server::new(&world);
    shake(&mut server, &mut connect(), b"in the same input", usize::MAX);
    assert_eq!(server.data, b"in the same input");
    assert!(server.info.unwrap().resumed);
    // TLS 1.3 without tickets: nothing is to be sent after the client's Finished either.
    let mut without = ServerConfig::clone(&world.server);
    without.send_tls13_tickets = 0;
    let mut server = Server::with(Shared::new(Arc::new(without)));
    let mut client = client_of(world.client_config(&[&TLS13], None));
    shake(&mut server, &mut client, b"in the same input", usize::MAX);
    assert_eq!(server.data, b"in the same input");
    echo(&mut server, &mut client, b"and on", usize::MAX);
}

#[test]
fn sessions_are_resumed_by_another_shard() {
    let world = World::new();
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(world.client_config(&[version], None));
        for resumed in [false, true, true] {
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(Arc::clone(&config), name).unwrap();
            let mut server = Server::new(&world);
            shake(&mut server, &mut client, b"", 100);
            echo(&mut server, &mut client, b"hello", 100);
            assert_eq!(server.info.unwrap().resumed, resumed, "{version:?}");
        }
    }
}

#[test]
fn close_notify_goes_both_ways_and_what_comes_after_it_is_discarded() {
    let world = World::new();
    for version in [&TLS12, &TLS13] {
        let mut server = Server::new(&world);
        let mut client = client_of(world.client_config(&[version], None));
        shake(&mut server, &mut client, b"", usize::MAX);
        client.writer().write_all(b"last words").unwrap();
        client.send_close_notify();
        let mut bytes = sent(&mut client);
        bytes.extend(b"\x16\x03\x03\xff\xffgarbage of all kinds");
        server.take(&bytes, 7).unwrap();
        server.take(b"GET / HTTP/1.1", usize::MAX).unwrap();
        assert_eq!(
            (&server.data[..], &server.said[..]),
            (&b"last words"[..], &["closed".into()][..])
        );

        // Half closed: we may go on.
        server.tls.close();
        assert!(server.tls.wants_send());
        let bytes = server.seal(b"goodbye");
        assert!(server.seal(b"").is_empty());
        let mut reader = &bytes[..];
        client.read_tls(&mut reader).unwrap();
        assert!(client.process_new_packets().unwrap().peer_has_closed());
        assert_eq!(data_of(&mut client), b"goodbye");
    }
}

#[test]
fn both_ends_update_their_keys_and_go_on() {
    let world = World::new();
    for (suite, _) in suites().filter(|(suite, _)| suite.tls13().is_some()) {
        let mut server = Server::new(&world);
        let mut client = client_of(world.client_config(&[&TLS13], Some(suite)));
        shake(&mut server, &mut client, b"", usize::MAX);
        for _ in 0..100 {
            // The client's `KeyUpdate` asks for ours; it comes before our next data.
            client.refresh_traffic_keys().unwrap();
            echo(&mut server, &mut client, b"hello", 9);
        }
        // Without data the answer goes out by itself.
        client.refresh_traffic_keys().unwrap();
        server.take(&sent(&mut client), usize::MAX).unwrap();
        assert!(server.tls.wants_send());
        let bytes = server.seal(b"");
        give(&mut client, &bytes).unwrap();
        echo(&mut server, &mut client, b"hello", usize::MAX);
    }
}

#[test]
fn keys_that_have_sealed_what_they_may_are_renewed_or_end_the_connection() {
    let world = World::new();
    for (suite, version) in suites() {
        let common = match suite {
            SupportedCipherSuite::Tls13(suite) => &suite.common,
            SupportedCipherSuite::Tls12(suite) => &suite.common,
        };
        let mut end = RawEnd::shake(&world, version, suite);
        let records_max = end.server.open().tx().cipher().records_max();
        assert!(records_max <= common.confidentiality_limit);
        // As if that many records had been sealed, at both ends.
        end.server.open().tx().set_sequence(records_max - 3);
        end.rx.set_sequence(records_max - 3);
        let sealed = end.server.seal(b"the last but one");
        assert_eq!(end.open(&sealed), [(DATA, b"the last but one".to_vec())]);
        let mut out = Vec::new();
        let server = &mut end.server;
        let result = server.tls.seal(&mut server.shared, &[7; CONTENT_BYTES_MAX + 1], &mut out);
        if version == &TLS13 {
            result.unwrap();
            let update = (HANDSHAKE, vec![24, 0, 0, 1, 1]);
            let heard = end.open(&out);
            assert_eq!(heard, [(DATA, vec![7; CONTENT_BYTES_MAX]), update, (DATA, vec![7])]);
        } else {
            assert_eq!(result, Err(TlsError::KeysExhausted));
            end.server.tls.seal(&mut end.server.shared, b"", &mut out).unwrap();
            let close_notify = (ALERT, vec![1, 0]);
            assert_eq!(end.open(&out), [(DATA, vec![7; CONTENT_BYTES_MAX]), close_notify]);
            assert!(!end.server.tls.is_open());
        }
    }
}

/// A client after its handshake that seals whatever a test wants, with this module's own records.
struct RawEnd {
    server: Server,
    tx: Direction,
    rx: Direction,
    contexts: Contexts,
    version: Version,
}

impl RawEnd {
    fn new(world: &World, version: &'static SupportedProtocolVersion) -> Self {
        let suite = suites().find(|(_, of)| *of == version).unwrap().0;
        Self::shake(world, version, suite)
    }

    /// Shakes hands by rustls, then takes the client's keys out of it.
    fn shake(
        world: &World,
        version: &'static SupportedProtocolVersion,
        suite: SupportedCipherSuite,
    ) -> Self {
        let mut server = Server::new(world);
        let config = Arc::new(world.client_config(&[version], Some(suite)));
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = UnbufferedClientConnection::new(config, name).unwrap();
        let mut to_client = Vec::new();
        let mut secrets = None;
        while !server.tls.is_open() || !to_client.is_empty() || client.is_handshaking() {
            let mut to_server = Vec::new();
            loop {
                SecretTap::clear();
                let UnbufferedStatus { discard, state } =
                    client.process_tls_records(&mut to_client);
                #[expect(
                    clippy::wildcard_enum_match_arm,
                    reason = "the others wait for the server"
                )]
                let blocked = match state.unwrap() {
                    ConnectionState::EncodeTlsData(mut data) => {
                        handshake::append(&mut to_server, |free| data.encode(free)).unwrap();
                        false
                    }
                    ConnectionState::TransmitTlsData(data) => {
                        data.done();
                        false
                    }
                    _ => true,
                };
                secrets = SecretTap::take().or(secrets);
                to_client.drain(..discard);
                if blocked {
                    break;
                }
            }
            server.take(&to_server, usize::MAX).unwrap();
            to_client.extend(server.seal(b""));
        }
        let (extracted, _) = client.dangerous_into_kernel_connection().unwrap();
        let mut contexts = Contexts::new();
        let (tx, rx) =
            secrets.map_or((None, None), |secrets| (Some(secrets.client), Some(secrets.server)));
        let version = server.info.unwrap().version;
        Self {
            server,
            tx: Direction::new(tx, extracted.tx, &mut contexts).unwrap(),
            rx: Direction::new(rx, extracted.rx, &mut contexts).unwrap(),
            contexts,
            version,
        }
    }

    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        record::seal(kind, content, self.version, &mut self.tx, &mut self.contexts, &mut out)
            .unwrap();
        out
    }

    /// TLS 1.3: seals `inner` as it is, type, padding and all.
    fn seal_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        let sealed_bytes = inner.len() + 16;
        let mut out = vec![DATA, 3, 3, (sealed_bytes >> 8) as u8, sealed_bytes as u8];
        let aad = Aad::from(<[u8; HEADER_BYTES]>::try_from(&out[..]).unwrap());
        out.extend_from_slice(inner);
        let nonce = Nonce::assume_unique_for_key(self.tx.nonce());
        let context = self.tx.context(&mut self.contexts).unwrap();
        let tag = context.seal_in_place_separate_tag(nonce, aad, &mut out[HEADER_BYTES..]).unwrap();
        out.extend_from_slice(tag.as_ref());
        self.tx.advance();
        out
    }

    /// What the server said, record by record; follows its key updates.
    fn open(&mut self, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut bytes = bytes.to_vec();
        let (mut at, mut said) = (0, Vec::new());
        while at < bytes.len() {
            let record_bytes = record::record_bytes(&bytes[at..], self.version).unwrap().unwrap();
            let record = &mut bytes[at..at + record_bytes];
            let (kind, content) =
                record::open(record, self.version, &mut self.rx, &mut self.contexts).unwrap();
            said.push((kind, record[content].to_vec()));
            if kind == HANDSHAKE {
                self.rx.update(&mut self.contexts).unwrap();
            }
            at += record_bytes;
        }
        said
    }

    /// The server refuses `bytes` with `error`, cut as they are, and says so to the client with `alert`.
    fn assert_refused(mut self, bytes: &[u8], error: TlsError, alert: AlertDescription) {
        assert_eq!(self.server.take(bytes, 11), Err(error));
        self.server.take(bytes, 7).expect("what comes after is discarded");
        assert!(!self.server.tls.is_open() && self.server.tls.wants_send());
        let out = self.server.seal(b"");
        assert_eq!(self.open(&out), [(ALERT, vec![2, alert.into()])]);
        assert!(self.server.shared.buffers.all_are_back());
    }
}

impl Server {
    fn open(&mut self) -> &mut Open {
        let State::Open(open) = &mut *self.tls.0 else { panic!("not open") };
        open
    }
}

/// Runs `refuse` for both versions, in one input and cut.
fn for_versions(mut refuse: impl FnMut(RawEnd)) {
    let world = World::new();
    for version in [&TLS12, &TLS13] {
        refuse(RawEnd::new(&world, version));
    }
}

#[test]
fn a_bit_that_flips_anywhere_in_a_record_ends_the_connection() {
    let world = World::new();
    for (suite, version) in suites() {
        let record_bytes = RawEnd::shake(&world, version, suite).seal(DATA, b"hi").len();
        for at in 0..record_bytes {
            let mut end = RawEnd::shake(&world, version, suite);
            let mut bytes = end.seal(DATA, b"hi");
            let behind = end.seal(DATA, b"behind");
            bytes[at] ^= 1 << (at % 8);
            // A length that has become longer takes what is behind it.
            bytes.extend(behind.repeat(4000));
            let error = end.server.take(&bytes, usize::MAX).unwrap_err();
            let expected = match at {
                0 => [TlsError::UnexpectedMessage, TlsError::BadRecord],
                1 | 2 => [TlsError::UnexpectedMessage, TlsError::BadRecord],
                3 | 4 => [TlsError::RecordOverflow, TlsError::BadRecord],
                _ => [TlsError::BadRecord; 2],
            };
            assert!(expected.contains(&error), "byte {at}: {error}");
            assert!(end.server.data.is_empty(), "nothing of it comes out");
        }
    }
}

#[test]
fn records_repeated_left_out_or_swapped_are_refused() {
    for_versions(|mut end| {
        let [first, second] = [end.seal(DATA, b"first"), end.seal(DATA, b"second")];
        match end.version {
            Version::Tls12 => {
                end.assert_refused(&second, TlsError::BadRecord, AlertDescription::BadRecordMac)
            }
            Version::Tls13 => {
                let twice = [&first[..], &first].concat();
                end.assert_refused(&twice, TlsError::BadRecord, AlertDescription::BadRecordMac);
            }
        }
    });
}

#[test]
fn a_record_over_the_limit_is_refused_at_its_header() {
    for_versions(|end| {
        let (max, header) = match end.version {
            Version::Tls13 => (CONTENT_BYTES_MAX + 256, [DATA, 3, 3]),
            Version::Tls12 => (CONTENT_BYTES_MAX + 2048, [DATA, 3, 3]),
        };
        let header_of = |length: usize| [&header[..], &(length as u16).to_be_bytes()].concat();
        assert!(record::record_bytes(&header_of(max), end.version).is_ok());
        let too_long = header_of(max + 1);
        end.assert_refused(&too_long, TlsError::RecordOverflow, AlertDescription::RecordOverflow);
    });
    // Within the limit for what is sealed, over that for what is in it.
    let mut end = RawEnd::new(&World::new(), &TLS13);
    let inner = [&[7; CONTENT_BYTES_MAX + 1][..], &[DATA]].concat();
    let bytes = end.seal_inner(&inner);
    end.assert_refused(&bytes, TlsError::RecordOverflow, AlertDescription::RecordOverflow);
    // The longest that is allowed, padded to the limit and not.
    for content_bytes in [CONTENT_BYTES_MAX, 1, 0] {
        let mut end = RawEnd::new(&World::new(), &TLS13);
        let mut inner = vec![7; content_bytes];
        inner.push(DATA);
        inner.resize(CONTENT_BYTES_MAX + 1, 0);
        let bytes = end.seal_inner(&inner);
        end.server.take(&bytes, 1000).unwrap();
        assert_eq!(end.server.data, vec![7; content_bytes]);
    }
}

#[test]
fn what_has_no_place_after_the_handshake_is_refused() {
    use AlertDescription as Alert;
    type Case = (fn(&mut RawEnd) -> Vec<u8>, TlsError, Alert);
    let client_hello = [1, 0, 0, 2, 3, 3];
    let cases_13: [Case; 16] = [
        // ChangeCipherSpec in the open, as in the handshake, and inside.
        (
            |_| b"\x14\x03\x03\x00\x01\x01".to_vec(),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        (
            |end| end.seal(CHANGE_CIPHER_SPEC, &[1]),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        // An alert in the open.
        (
            |_| b"\x15\x03\x03\x00\x02\x02\x28".to_vec(),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        (
            |_| b"\x16\x03\x03\x00\x02\x02\x28".to_vec(),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        // Shorter than a tag, and nothing at all.
        (|_| b"\x17\x03\x03\x00\x02\x02\x28".to_vec(), TlsError::BadRecord, Alert::BadRecordMac),
        (|_| b"\x17\x03\x03\x00\x00".to_vec(), TlsError::BadRecord, Alert::BadRecordMac),
        // Nothing but padding.
        (|end| end.seal_inner(&[0; 9]), TlsError::UnexpectedMessage, Alert::UnexpectedMessage),
        (|end| end.seal_inner(&[]), TlsError::UnexpectedMessage, Alert::UnexpectedMessage),
        (|end| end.seal(99, b"x"), TlsError::UnexpectedMessage, Alert::UnexpectedMessage),
        // Alerts and handshake messages are never empty, alerts never cut.
        (|end| end.seal(ALERT, b""), TlsError::UnexpectedMessage, Alert::UnexpectedMessage),
        (|end| end.seal(ALERT, b"\x02"), TlsError::Malformed, Alert::DecodeError),
        (|end| end.seal(HANDSHAKE, b""), TlsError::UnexpectedMessage, Alert::UnexpectedMessage),
        // Key updates that are none.
        (|end| end.seal(HANDSHAKE, &[24, 0, 0, 2, 0, 0]), TlsError::Malformed, Alert::DecodeError),
        (
            |end| end.seal(HANDSHAKE, &[24, 0, 0, 1, 2]),
            TlsError::IllegalParameter,
            Alert::IllegalParameter,
        ),
        (
            |end| end.seal(HANDSHAKE, &[24, 0, 0, 1, 0, 24]),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        // One that is cut by data.
        (
            |end| [end.seal(HANDSHAKE, &[24, 0, 0]), end.seal(DATA, b"x")].concat(),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
    ];
    let world = World::new();
    for (bytes, error, alert) in cases_13 {
        let mut end = RawEnd::new(&world, &TLS13);
        let bytes = bytes(&mut end);
        end.assert_refused(&bytes, error, alert);
    }
    for kind in [0, 1, 2, 4, 5, 8, 11, 13, 15, 20, 25, 254] {
        let mut end = RawEnd::new(&world, &TLS13);
        let bytes = end.seal(HANDSHAKE, &[kind, 0, 0, 1, 0]);
        end.assert_refused(&bytes, TlsError::UnexpectedMessage, Alert::UnexpectedMessage);
    }
    let cases_12: [Case; 6] = [
        (
            |_| b"\x14\x03\x03\x00\x01\x01".to_vec(),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        (
            |_| b"\x17\x03\x01\x00\x20".to_vec(),
            TlsError::UnexpectedMessage,
            Alert::UnexpectedMessage,
        ),
        (|_| b"\x17\x03\x03\x00\x02\x02\x28".to_vec(), TlsError::BadRecord, Alert::BadRecordMac),
        (
            |_| [&b"\x17\x03\x03\x00\x17"[..], &[0; 23]].concat(),
            TlsError::BadRecord,
            Alert::BadRecordMac,
        ),
        (|end| end.seal(ALERT, b""), TlsError::UnexpectedMessage, Alert::UnexpectedMessage),
        (|end| end.seal(ALERT, b"\x01\x00\x00"), TlsError::Malformed, Alert::DecodeError),
    ];
    for (bytes, error, alert) in cases_12 {
        let mut end = RawEnd::new(&world, &TLS12);
        let bytes = bytes(&mut end);
        end.assert_refused(&bytes, error, alert);
    }
    let mut end = RawEnd::new(&world, &TLS12);
    let bytes = end.seal(HANDSHAKE, &client_hello);
    end.assert_refused(&bytes, TlsError::Renegotiation, Alert::HandshakeFailure);
}

#[test]
fn a_peer_that_gives_up_gets_no_alert_back() {
    for_versions(|mut end| {
        let bytes = end.seal(ALERT, &[2, 40]);
        assert_eq!(end.server.take(&bytes, 3), Err(TlsError::PeerAlert(40)));
        assert!(!end.server.tls.wants_send() && !end.server.tls.is_open());
        assert_eq!(TlsError::PeerAlert(40).to_string(), "the client gave up with an alert (40)");
    });
}

#[test]
fn floods_of_records_that_say_nothing_are_bounded() {
    let world = World::new();
    for version in [&TLS12, &TLS13] {
        let mut end = RawEnd::new(&world, version);
        for _ in 0..3 {
            // Data in between makes it good again.
            let empty: Vec<u8> = (0..32).flat_map(|_| end.seal(DATA, b"")).collect();
            let data = end.seal(DATA, b"x");
            end.server.take(&[empty, data].concat(), 100).unwrap();
        }
        let empty: Vec<u8> = (0..33).flat_map(|_| end.seal(DATA, b"")).collect();
        assert_eq!(end.server.data, b"xxx");
        let alert = AlertDescription::UnexpectedMessage;
        end.assert_refused(&empty, TlsError::TooManyEmptyRecords, alert);
    }
    let mut end = RawEnd::new(&world, &TLS12);
    let warnings: Vec<u8> = (0..5).flat_map(|_| end.seal(ALERT, &[1, 41])).collect();
    end.assert_refused(&warnings, TlsError::TooManyWarnings, AlertDescription::UnexpectedMessage);
    let mut end = RawEnd::new(&world, &TLS13);
    let canceled: Vec<u8> = (0..5).flat_map(|_| end.seal(ALERT, &[1, 90])).collect();
    end.assert_refused(&canceled, TlsError::TooManyWarnings, AlertDescription::UnexpectedMessage);
}

#[test]
fn key_updates_are_taken_wherever_they_are_cut_and_bounded_without_data() {
    let world = World::new();
    for cut in 1..5 {
        let mut end = RawEnd::new(&world, &TLS13);
        let update = [24, 0, 0, 1, 1];
        let mut bytes = end.seal(HANDSHAKE, &update[..cut]);
        bytes.extend(end.seal(HANDSHAKE, &update[cut..]));
        end.tx.update(&mut end.contexts).unwrap();
        bytes.extend(end.seal(DATA, b"with the next key"));
        end.server.take(&bytes, usize::MAX).unwrap();
        assert_eq!(end.server.data, b"with the next key");
        let out = end.server.seal(b"so be it");
        let answer = (HANDSHAKE, vec![24, 0, 0, 1, 0]);
        assert_eq!(end.open(&out), [answer, (DATA, b"so be it".to_vec())]);
    }
    let mut end = RawEnd::new(&world, &TLS13);
    let mut bytes = Vec::new();
    for _ in 0..33 {
        bytes.extend(end.seal(HANDSHAKE, &[24, 0, 0, 1, 1]));
        end.tx.update(&mut end.contexts).unwrap();
    }
    let alert = AlertDescription::UnexpectedMessage;
    end.assert_refused(&bytes, TlsError::TooManyKeyUpdates, alert);
}

#[test]
fn many_records_in_one_input_come_out_one_by_one_and_cut_ones_wherever_they_are_cut() {
    for_versions(|mut end| {
        let bytes: Vec<u8> = (0..100u8).flat_map(|at| end.seal(DATA, &[at])).collect();
        end.server.take(&bytes, usize::MAX).unwrap();
        assert_eq!(end.server.data, (0..100).collect::<Vec<u8>>());
        end.server.data.clear();
        let two: Vec<u8> = [end.seal(DATA, b"hello"), end.seal(DATA, b"world")].concat();
        let (front, back) = two.split_at(two.len() / 2);
        end.server.take(front, 1).unwrap();
        end.server.take(back, 3).unwrap();
        assert_eq!(end.server.data, b"helloworld");
        assert!(end.server.shared.buffers.all_are_back());
    });
}

#[test]
fn a_whole_record_is_lent_where_it_lies_and_an_idle_connection_has_no_buffer() {
    for_versions(|mut end| {
        let mut bytes = end.seal(DATA, b"hello");
        let (range, bytes_len) = (bytes.as_ptr_range(), bytes.len());
        let server = &mut end.server;
        let (taken, item) = server.tls.next(&mut server.shared, &mut bytes).unwrap();
        let Some(Item::Data(data)) = item else { panic!("{item:?}") };
        assert!(range.contains(&data.as_ptr()));
        assert_eq!((taken, &*data), (bytes_len, &b"hello"[..]));
        assert!(end.server.shared.buffers.all_are_back());
    });
}

#[test]
fn a_key_whose_context_went_from_the_cache_goes_on() {
    for_versions(|mut end| {
        for _ in 0..3 {
            let bytes = end.seal(DATA, b"hello");
            end.server.take(&bytes, usize::MAX).unwrap();
            let bytes = end.server.seal(b"hello");
            assert_eq!(end.open(&bytes), [(DATA, b"hello".to_vec())]);
            end.server.shared.contexts.clear();
        }
    });
}

#[test]
fn plain_http_is_told_by_its_first_byte_and_gets_no_alert() {
    let world = World::new();
    for start in ["GET / HTTP/1.1\r\n\r\n", "P", "OPTIONS * HTTP/1.1\r\n"] {
        let mut server = Server::new(&world);
        assert_eq!(server.take(start.as_bytes(), usize::MAX), Err(TlsError::PlainHttp));
        assert!(!server.tls.wants_send() && server.seal(b"").is_empty());
        server.take(b"more", usize::MAX).expect("discarded");
    }
}

/// A `ClientHello` for TLS up to `minor`, whose cipher suite every old client had.
fn old_client_hello(minor: u8) -> Vec<u8> {
    let mut hello = vec![22, 3, minor.min(1), 0, 45, 1, 0, 0, 41, 3, minor];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    hello
}

#[test]
fn old_versions_garbage_and_what_is_not_offered_are_refused_with_an_alert_in_the_open() {
    let world = World::new();
    let cases: &[(&[u8], TlsError, AlertDescription)] = &[
        (&old_client_hello(0), TlsError::NothingInCommon, AlertDescription::HandshakeFailure),
        (&old_client_hello(1), TlsError::NothingInCommon, AlertDescription::HandshakeFailure),
        (&old_client_hello(2), TlsError::NothingInCommon, AlertDescription::HandshakeFailure),
        (
            b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
            TlsError::BadHandshake,
            AlertDescription::DecodeError,
        ),
        (b"\x17\x03\x03\x00\x02xy", TlsError::BadHandshake, AlertDescription::UnexpectedMessage),
        (b"\x80\x2e\x01\x00\x02\x00\x15", TlsError::NotTls, AlertDescription::DecodeError),
        (b"\x16\x09\x01\x00\x02\x00\x15", TlsError::NotTls, AlertDescription::DecodeError),
        (b"\x16\x03\x01\xff\xff\x00\x15", TlsError::BadHandshake, AlertDescription::DecodeError),
        (b"\x00\x00\x00\x00\x00\x00", TlsError::NotTls, AlertDescription::DecodeError),
    ];
    for (bytes, error, alert) in cases {
        for piece_bytes in [usize::MAX, 1] {
            let mut server = Server::new(&world);
            assert_eq!(server.take(bytes, piece_bytes), Err(*error), "{bytes:x?}");
            let out = server.seal(b"");
            assert_eq!(out[..2], [ALERT, 3], "{bytes:x?}");
            assert_eq!(out[3..], [0, 2, 2, u8::from(*alert)], "{bytes:x?}");
        }
    }
}

#[test]
fn a_client_that_speaks_only_h2_is_refused_and_one_that_asks_for_nothing_is_not() {
    let world = World::new();
    for (protocols, refused) in [(&["h2"][..], true), (&["h2", "http/1.1"], false), (&[], false)] {
        let mut config = world.client_config(&[&TLS13, &TLS12], None);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut client = client_of(config);
        let mut server = Server::new(&world);
        if !refused {
            shake(&mut server, &mut client, b"", usize::MAX);
            continue;
        }
        let hello = sent(&mut client);
        assert_eq!(server.take(&hello, usize::MAX), Err(TlsError::NothingInCommon));
        let error = give(&mut client, &server.seal(b"")).unwrap_err();
        let alert = AlertDescription::NoApplicationProtocol;
        assert_eq!(error, rustls::Error::AlertReceived(alert));
    }
}

#[test]
fn a_client_hello_over_many_records_is_taken_and_one_without_end_is_not() {
    let world = World::new();
    let mut client = client_of(world.client_config(&[&TLS13], None));
    let hello = sent(&mut client);
    let fragment = |piece: &[u8]| [&[22, 3, 1, 0, piece.len() as u8][..], piece].concat();
    let bytes: Vec<u8> = hello[HEADER_BYTES..].chunks(10).flat_map(fragment).collect();
    let mut server = Server::new(&world);
    server.take(&bytes, 33).unwrap();
    give(&mut client, &server.seal(b"")).unwrap();
    server.take(&sent(&mut client), usize::MAX).unwrap();
    assert!(server.tls.is_open());

    let mut server = Server::new(&world);
    let mut endless = fragment(&[1, 0, 255, 255]);
    endless.extend(fragment(&[0; 100]).repeat(400));
    assert_eq!(server.take(&endless, 2048), Err(TlsError::HandshakeTooLong));
    assert!(server.shared.buffers.all_are_back());
}

#[test]
fn a_connection_that_ends_at_any_time_leaves_nothing_with_its_shard() {
    let world = World::new();
    for limit in [0, 1, 100, 600, 5000] {
        let mut server = Server::new(&world);
        let mut client = client_of(world.client_config(&[&TLS13], None));
        let hello = sent(&mut client);
        server.take(&hello[..hello.len().min(limit)], usize::MAX).unwrap();
        let mut shared = server.shared;
        server.tls.end(&mut shared);
        assert!(shared.buffers.all_are_back());
    }
    for_versions(|mut end| {
        let bytes = end.seal(DATA, b"hello");
        end.server.take(&bytes[..7], usize::MAX).unwrap();
        let mut shared = end.server.shared;
        end.server.tls.end(&mut shared);
        assert!(shared.buffers.all_are_back() && shared.contexts.is_empty());
    });
}

#[test]
fn a_new_config_is_for_new_handshakes() {
    let (world, other) = (World::new(), World::new());
    let mut server = Server::new(&world);
    let mut client = client_of(world.client_config(&[&TLS13], None));
    server.take(&sent(&mut client), usize::MAX).unwrap();
    server.shared.set_config(Arc::clone(&other.server));
    give(&mut client, &server.seal(b"")).unwrap();
    shake(&mut server, &mut client, b"", usize::MAX);
    echo(&mut server, &mut client, b"as it began", usize::MAX);
    let mut server = Server::with(server.shared);
    shake(&mut server, &mut client_of(other.client_config(&[&TLS13], None)), b"", usize::MAX);
}
