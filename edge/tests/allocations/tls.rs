//! TLS: what an idle connection holds, and that data on an open one allocates nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use hawser_edge::certs;
use hawser_edge::config::TlsKnobs;
use hawser_edge::tls::{Item, Shared, Tls};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

/// What TLS may add to an idle connection, in bytes (DESIGN.md 2.3).
const IDLE_BYTES_MAX: u64 = 1024;

fn shared_and_roots() -> (Shared, RootCertStore) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).unwrap()).unwrap();
    let knobs = TlsKnobs { tls_cert: vec![cert], tls_key: vec![key], ..TlsKnobs::default() };
    (Shared::new(certs::load(&knobs).unwrap().config), roots)
}

fn client_config(
    roots: &RootCertStore,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_protocol_versions(&[version]).unwrap();
    let mut config = config.with_root_certificates(roots.clone()).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn give(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets().unwrap();
    }
}

/// Feeds `input` in pieces; data is counted, and what is due goes to `out`.
fn take(
    tls: &mut Tls,
    shared: &mut Shared,
    input: &mut [u8],
    piece_bytes: usize,
    out: &mut Vec<u8>,
) -> usize {
    let mut data_bytes = 0;
    for piece in input.chunks_mut(piece_bytes) {
        let mut at = 0;
        while at < piece.len() {
            let (taken, item) = tls.next(shared, &mut piece[at..]).unwrap();
            if let Some(Item::Data(data)) = item {
                data_bytes += data.len();
            }
            at += taken;
        }
        tls.settle(shared);
    }
    tls.seal(shared, b"", out).unwrap();
    data_bytes
}

fn connect(shared: &mut Shared, config: &Arc<ClientConfig>) -> (Tls, ClientConnection) {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut tls = Tls::accept();
    while client.is_handshaking() || !tls.is_open() {
        let mut out = Vec::new();
        take(&mut tls, shared, &mut sent(&mut client), 100, &mut out);
        give(&mut client, &out);
    }
    (tls, client)
}

#[test]
fn an_idle_tls_connection_holds_at_most_a_kilobyte() {
    const CONNECTIONS: usize = 200;
    let (mut shared, roots) = shared_and_roots();
    for version in [&TLS12, &TLS13] {
        let config = client_config(&roots, version);
        let mut idle = Vec::with_capacity(CONNECTIONS);
        // Buffers and everything that is made once.
        connect(&mut shared, &config);
        let counted = allocation_counter::measure(|| {
            idle.extend((0..CONNECTIONS).map(|_| connect(&mut shared, &config).0));
        });
        let bytes = u64::try_from(counted.bytes_current).unwrap() / CONNECTIONS as u64;
        println!("{version:?}: {bytes} bytes an idle connection");
        assert!((100..=IDLE_BYTES_MAX).contains(&bytes), "{version:?}: {bytes} bytes");
        assert!(counted.count_current <= CONNECTIONS as i64, "one allocation each");
    }
    let silent = allocation_counter::measure(|| std::mem::forget(Tls::accept()));
    assert!(silent.bytes_max <= IDLE_BYTES_MAX, "who only connects costs no more");
}

#[test]
fn data_on_an_open_tls_connection_allocates_nothing_in_the_steady_state() {
    const ROUNDS: usize = 500;
    let (mut shared, roots) = shared_and_roots();
    for version in [&TLS12, &TLS13] {
        let (mut tls, mut client) = connect(&mut shared, &client_config(&roots, version));
        let mut out = Vec::with_capacity(64 * 1024);
        for (message_bytes, piece_bytes) in [(64, 2048), (64, 33), (20_000, 2048)] {
            let message = vec![7; message_bytes];
            // The first half warms buffers up.
            for counts in [false, true] {
                let mut inputs: Vec<Vec<u8>> = (0..ROUNDS)
                    .map(|_| {
                        client.writer().write_all(&message).unwrap();
                        sent(&mut client)
                    })
                    .collect();
                let mut data_bytes = 0;
                let mut answers = Vec::with_capacity(ROUNDS * (message_bytes + 100));
                let counted = allocation_counter::measure(|| {
                    for input in &mut inputs {
                        out.clear();
                        data_bytes += take(&mut tls, &mut shared, input, piece_bytes, &mut out);
                        tls.seal(&mut shared, &message, &mut out).unwrap();
                        answers.extend_from_slice(&out);
                    }
                });
                assert_eq!(data_bytes, ROUNDS * message_bytes);
                if counts {
                    assert_eq!(counted.count_total, 0, "{version:?} {message_bytes} {piece_bytes}");
                }
                let mut heard = vec![0; message_bytes];
                for answer in answers.chunks(16 * 1024) {
                    give(&mut client, answer);
                    while client.reader().read(&mut heard).is_ok_and(|bytes| bytes > 0) {}
                }
            }
        }
    }
}
